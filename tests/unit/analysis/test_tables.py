"""Labels, confidences and failures, with values calculated by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchcl.analysis.counts import confidence_histogram, failure_table, label_table
from batchcl.analysis.results import open_results
from batchcl.errors import UsageError
from batchcl.outcomes import Label
from unit.analysis.conftest import arn_of

if TYPE_CHECKING:
    from unit.analysis.conftest import Make, Root

BOX = (0.0, 0.0, 0.5, 0.5)


def test_labels_report_images_detections_and_quantiles(root: Root, make: type[Make]) -> None:
    root.results(
        make.scored("s3://b/1", Label("cat", 50, BOX), Label("cat", 60, BOX), Label("ñandú", 99)),
        make.scored("s3://b/2", Label("cat", 80)),
        make.scored("s3://b/2", Label("cat", 100), version_id="v2"),
        make.scored("s3://b/3"),
    )
    table = label_table(open_results(str(root)))
    assert table.select("label", "images", "share").rows() == [
        ("cat", 3, 0.75),
        ("(none)", 1, 0.25),
        ("ñandú", 1, 0.25),
    ]
    cat = table.row(0, named=True)
    assert (cat["images"], cat["detections"], cat["mean"]) == (3, 4, 72.5)
    expected = np.percentile([50, 60, 80, 100], [10, 50, 90])
    assert [cat["p10"], cat["p50"], cat["p90"]] == pytest.approx(expected.tolist())


def test_an_image_scored_by_two_runs_counts_once(root: Root, make: type[Make]) -> None:
    for run in ("a", "b"):
        root.results(make.scored("s3://b/1", Label("cat", 50)), run_id=run)
    for all_runs in (False, True):
        row = label_table(open_results(str(root), all_runs=all_runs)).row(0, named=True)
        assert (row["images"], row["detections"]) == (1 + all_runs, 1 + all_runs)


def test_labels_of_two_models_are_separate(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("cat", 50)), model="m@1")
    root.results(make.scored("s3://b/1", Label("cat", 90)), model="m@2")
    table = label_table(open_results(str(root)))
    assert table.select("model", "mean").rows() == [("m@1", 50.0), ("m@2", 90.0)]


@pytest.fixture
def retrained(root: Root, make: type[Make]) -> tuple[str, str]:
    """The ARNs of two models named m@1, which detected a cat at 50 and 90; a third model is m@2."""
    older, newer = (arn_of("m@1").replace("1700000000000", stamp) for stamp in ("1700000000000", "1800000000000"))
    root.results(make.scored("s3://b/1", Label("cat", 50)), model="m@1", model_arn=older, run_id="a")
    root.results(make.scored("s3://b/1", Label("cat", 90)), model="m@1", model_arn=newer, run_id="b")
    root.results(make.scored("s3://b/1", Label("cat", 70)), model="m@2", run_id="c")
    return older, newer


def test_labels_of_retrained_models_are_separated_by_arn(root: Root, retrained: tuple[str, str]) -> None:
    older, newer = retrained
    table = label_table(open_results(str(root)))
    assert table.select("model", "mean").rows() == [(older, 50.0), (newer, 90.0), ("m@2", 70.0)]
    assert "model_arn" not in table.columns
    chosen = label_table(open_results(str(root), model=newer))
    assert chosen.select("model", "mean").rows() == [("m@1", 90.0)], "the name does where nothing shares it"


def test_histograms_of_several_models_are_separate(root: Root, retrained: tuple[str, str]) -> None:
    older, newer = retrained
    table = confidence_histogram(open_results(str(root)), bins=2)
    assert table.select("model", "detections", "share").rows() == [
        *((older, 0, 0.0), (older, 1, 1.0)),
        *((newer, 0, 0.0), (newer, 1, 1.0)),
        *(("m@2", 0, 0.0), ("m@2", 1, 1.0)),
    ]
    each = confidence_histogram(open_results(str(root), model="m@1"), bins=1, per_label=True)
    assert each.select("model", "label", "detections").rows() == [(older, "cat", 1), (newer, "cat", 1)]
    one = confidence_histogram(open_results(str(root), model=older), bins=1)
    assert one.columns == ["from", "to", "detections", "share"]


def test_a_histogram_includes_empty_bins_and_all_edges(root: Root, make: type[Make]) -> None:
    values = [0, 24.9, 25, 50, 74.9, 100]
    root.results(*(make.scored(f"s3://b/{at}", Label("cat", value)) for at, value in enumerate(values)))
    table = confidence_histogram(open_results(str(root)), bins=4)
    assert table["from"].to_list() == [0, 25, 50, 75]
    assert table["to"].to_list() == [25, 50, 75, 100]
    assert table["detections"].to_list() == np.histogram(values, 4, (0, 100))[0].tolist() == [2, 1, 2, 1]
    assert table["share"].to_list() == pytest.approx([1 / 3, 1 / 6, 1 / 3, 1 / 6])


@pytest.mark.parametrize("bins", [20, 1000])
def test_a_confidence_at_an_edge_is_in_the_upper_bin(root: Root, make: type[Make], bins: int) -> None:
    edges = [100 * at / bins for at in range(bins)]
    root.results(make.scored("s3://b/1", *(Label("cat", edge) for edge in edges)))
    table = confidence_histogram(open_results(str(root)), bins=bins)
    assert table["detections"].to_list() == [1] * bins


def test_a_histogram_of_one_label_and_of_each(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("cat", 10), Label("dog", 90), Label("dog", 20)))
    detections = open_results(str(root))
    assert confidence_histogram(detections, bins=2, label="dog")["detections"].to_list() == [1, 1]
    each = confidence_histogram(detections, bins=2, per_label=True)
    assert each.select("label", "detections", "share").rows() == [
        ("cat", 1, 1.0),
        ("cat", 0, 0.0),
        ("dog", 1, 0.5),
        ("dog", 1, 0.5),
    ]


def test_an_unknown_label_is_refused_with_the_existing_ones(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("dog", 90), Label("dog", 20), Label("cat", 10)))
    with pytest.raises(UsageError, match=r"no detection has the label 'cta'; the labels are 'dog', 'cat'$"):
        confidence_histogram(open_results(str(root)), label="cta")
    many = [Label(f"label {number:02}", 50) for number in range(11)]
    root.results(make.scored("s3://b/2", *many), run_id="r2", model="many@v1")
    with pytest.raises(UsageError, match=r"the labels are 'label 00', .*'label 09', …$"):
        confidence_histogram(open_results(str(root), model="many@v1"), label="cta")


def test_an_empty_histogram_has_null_shares(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1"))
    table = confidence_histogram(open_results(str(root)), bins=3)
    assert table.select("detections", "share").rows() == [(0, None)] * 3
    assert confidence_histogram(open_results(str(root)), per_label=True).height == 0


@pytest.mark.parametrize("bins", [0, -1, 1001])
def test_an_invalid_number_of_bins_is_refused(root: Root, make: type[Make], bins: int) -> None:
    root.results(make.scored("s3://b/1"))
    with pytest.raises(UsageError, match="1 to 1000"):
        confidence_histogram(open_results(str(root)), bins=bins)


def test_failures_are_counted_by_reason_with_examples(root: Root, make: type[Make]) -> None:
    root.failures(
        [make.failed(f"s3://b/{at}") for at in (3, 1, 2)] + [make.failed("s3://b/é.gif", "TooLarge", skipped=True)]
    )
    table = failure_table(open_results(str(root)).failures(), examples=2)
    assert table.rows() == [
        (
            "failed",
            "InvalidImageFormatException",
            3,
            0.75,
            "`batchcl retry --fit` may convert them",
            "InvalidImageFormatException of s3://b/1",
            ["s3://b/1", "s3://b/2"],
        ),
        (
            "skipped",
            "TooLarge",
            1,
            0.25,
            "`batchcl retry --fit` may convert them",
            "TooLarge of s3://b/é.gif",
            ["s3://b/é.gif"],
        ),
    ]


def test_examples_are_the_first_uris_of_all_files(root: Root, make: type[Make]) -> None:
    for run, uri in (("a", "s3://b/3"), ("b", "s3://b/1"), ("c", "s3://b/2"), ("d", "s3://b/1")):
        root.failures([make.failed(uri)], run_id=run)
    row = failure_table(open_results(str(root)).failures(), examples=2).row(0, named=True)
    assert (row["count"], row["examples"], row["message"][-8:]) == (3, ["s3://b/1", "s3://b/2"], "s3://b/1")


def test_skipped_and_failed_are_counted_separately(root: Root, make: type[Make]) -> None:
    root.failures([make.failed("s3://b/1", "TooLarge"), make.failed("s3://b/2", "TooLarge", skipped=True)])
    table = failure_table(open_results(str(root)).failures(), examples=0)
    assert table.select("status", "count", "examples").rows() == [("failed", 1, []), ("skipped", 1, [])]
    with pytest.raises(UsageError):
        failure_table(open_results(str(root)).failures(), examples=-1)


def test_an_image_that_failed_with_two_models_counts_once(root: Root, make: type[Make]) -> None:
    for model in ("m@1", "m@2"):
        root.failures([make.failed("s3://b/1")], model=model, run_id=model[-1])
    (row,) = failure_table(open_results(str(root)).failures()).iter_rows(named=True)
    assert (row["count"], row["examples"]) == (1, ["s3://b/1"])
