"""Of several rows of an image, readers use the newest one of each model, and labels above the thresholds."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from batchcl.analysis.counts import confidence_histogram, label_table
from batchcl.analysis.newest import newest_of
from batchcl.analysis.part_files import Batch
from batchcl.analysis.query import query
from batchcl.analysis.results import Results, open_results
from batchcl.errors import UsageError
from batchcl.outcomes import Label
from batchcl.thresholds import Thresholds
from unit.analysis.conftest import arn_of

if TYPE_CHECKING:
    from unit.analysis.conftest import Make, Root

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def at(hours: float) -> dt.datetime:
    return NOON + dt.timedelta(hours=hours)


def labels_of(results: Results) -> list[tuple[str, str]]:
    return sorted(results.detections().select("uri", "label").collect().rows())


def test_the_newest_row_of_an_image_counts_in_whatever_order_runs_were_published(root: Root, make: type[Make]) -> None:
    for hours, label, run in ((0, "oldest", "z"), (2, "newest", "m"), (1, "middle", "a")):
        root.results(
            make.scored("s3://b/1", Label(label, 90), at=at(hours)),
            make.scored(f"s3://b/{run}", Label(label, 90), at=at(hours)),
            run_id=run,
        )
    found = labels_of(open_results(str(root)))
    assert found == [("s3://b/1", "newest"), ("s3://b/a", "middle"), ("s3://b/m", "newest"), ("s3://b/z", "oldest")]
    assert len(labels_of(open_results(str(root), all_runs=True))) == 6
    assert labels_of(open_results(str(root), run_id="a")) == [("s3://b/1", "middle"), ("s3://b/a", "middle")]


def test_versions_and_models_have_a_row_each(root: Root, make: type[Make]) -> None:
    newer = arn_of("m@1").replace("1700000000000", "1800000000000")
    for hours, run, arn in ((0, "a", arn_of("m@1")), (1, "b", arn_of("m@1")), (2, "c", newer)):
        versions = [make.scored("s3://b/1", at=at(hours), version_id=version) for version in (None, "v1", "v2")]
        root.results(*versions, run_id=run, model="m@1", model_arn=arn)
    rows = open_results(str(root)).images().select("run_id", "version_id").collect().sort("run_id", "version_id").rows()
    assert rows == [(run, version) for run in ("b", "c") for version in (None, "v1", "v2")]


def test_the_newest_of_a_day_counts_with_a_date(root: Root, make: type[Make]) -> None:
    for day, run, label in (("2026-11-20", "a", "cat"), ("2026-11-21", "b", "dog")):
        root.results(make.scored("s3://b/1", Label(label, 90), at=at(24 if run == "b" else 0)), run_id=run, date=day)
    assert labels_of(open_results(str(root), date="2026-11-20")) == [("s3://b/1", "cat")]
    assert labels_of(open_results(str(root))) == [("s3://b/1", "dog")]


def test_many_rows_are_compared_in_parts() -> None:
    chance = random.Random(7)
    images = [chance.randrange(500) for _ in range(2000)]
    times = [chance.randrange(10) for _ in images]
    last = {
        image: row
        for row, _, image in sorted(zip(range(2000), times, images, strict=True), key=lambda row: row[:2][::-1])
    }
    hashes = pl.Series(images).hash()
    for rows_at_once in (1, 100, 10_000):
        found = newest_of(hashes, pl.Series(times), rows_at_once=rows_at_once)
        assert found.arg_true().to_list() == sorted(last.values())


def test_random_runs_agree_with_a_reference(root: Root, make: type[Make]) -> None:
    chance = random.Random(7)
    expected: dict[str, tuple[dt.datetime, str]] = {}
    for run in range(6):
        images = chance.sample(range(80), 40)
        rows = [(f"s3://b/{image:02}", at(chance.uniform(0, 9))) for image in images]
        root.results(*(make.scored(uri, Label(f"run{run}", 90), at=when) for uri, when in rows), run_id=f"r{run}")
        for uri, when in rows:
            expected[uri] = max(expected.get(uri, (when, "")), (when, f"run{run}"))
    results = open_results(str(root))
    assert labels_of(results) == sorted((uri, label) for uri, (_, label) in expected.items())

    def images_of(batch: Batch) -> pl.DataFrame:
        return batch.images.with_row_index("image").join(batch.detections, on="image")

    batches = pl.concat(list(results.map_batches(images_of, columns=["uri", "model", "date"])))
    assert sorted(batches.select("uri", pl.col("label").cast(pl.String)).rows()) == labels_of(results)


def test_thresholds_leave_out_labels_in_every_table(root: Root, make: type[Make]) -> None:
    root.results(
        make.scored("s3://b/1", Label("cat", 90), Label("dog", 70.1)),
        make.scored("s3://b/2", Label("dog", 69)),
        make.scored("s3://b/3"),
    )
    for thresholds in (70.1, Thresholds(default=70.1), Thresholds(default=1, labels={"dog": 70.1, "cat": 5})):
        results = open_results(str(root), thresholds=thresholds)
        assert labels_of(results) == [("s3://b/1", "cat"), ("s3://b/1", "dog")]
        assert results.images().select(pl.col("labels").list.len()).collect()["labels"].to_list() == [2, 0, 0]
        assert label_table(results).select("label", "images").rows() == [("(none)", 2), ("cat", 1), ("dog", 1)]
        assert confidence_histogram(results, bins=1)["detections"].to_list() == [2]
        assert query(results, "SELECT COUNT(*) FROM detections").item() == 2


def test_a_threshold_below_that_of_the_scoring_is_refused(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("cat", 90)), run_id="low", min_confidence=10)
    root.results(make.scored("s3://b/2", Label("cat", 90)), run_id="high", min_confidence=70.1)
    open_results(str(root), thresholds=70.1)
    with pytest.raises(UsageError, match=r"--min-confidence: the threshold 70 of all labels is below 70\.1,"):
        open_results(str(root), thresholds=70)
    open_results(str(root), run_id="low", thresholds=70)
    chosen = Thresholds(labels={"cat": 80, "dog": 60}, origin="thresholds.toml")
    with pytest.raises(UsageError, match=r"thresholds\.toml: the threshold 60 of 'dog' is below 70\.1"):
        open_results(str(root), thresholds=chosen)


def test_the_thresholds_of_replaced_rows_do_not_matter(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("cat", 90)), run_id="high", min_confidence=50)
    root.results(make.scored("s3://b/1", Label("cat", 90), at=at(1)), run_id="low", min_confidence=5)
    assert not open_results(str(root), thresholds=10).notes()
    with pytest.raises(UsageError, match="is below 50"):
        open_results(str(root), thresholds=10, all_runs=True)


def test_notes_tell_of_models_and_thresholds(root: Root, make: type[Make]) -> None:
    def notes(**selection: object) -> str:
        return "; ".join(open_results(str(root), **selection).notes())  # type: ignore[arg-type]

    root.results(make.scored("s3://b/1"), run_id="a", model="m@1", min_confidence=0)
    assert notes().startswith("the images were scored with --min-confidence 0")
    assert not notes(thresholds=1)
    root.results(make.scored("s3://b/2"), run_id="b", model="m@1", min_confidence=50)
    assert "different thresholds, 0 and 50" in notes()
    assert not notes(thresholds=50)
    assert not notes(run_id="b")
    root.results(make.scored("s3://b/3"), run_id="c", model="m@2")
    assert notes().startswith("the rows are of 2 models, m@1, m@2; choose one with --model")
    assert "the model's own thresholds" in notes()
    assert not notes(model="m@2")
    assert "the model's own thresholds" in notes(model="m@2", thresholds=60)
    assert "was made for arn:x" in notes(model="m@2", thresholds=Thresholds(default=60, model="arn:x"))


def test_thresholds_are_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_text('default = 50\nmodel = "arn:x"\n[labels]\n"a \\"b]\\n" = 71.25\ncat = 0\n', encoding="utf-8")
    assert Thresholds.read(file) == Thresholds(50, {'a "b]\n': 71.25, "cat": 0}, "arn:x", str(file))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no threshold"),
        (b"default = 101", r"the threshold 101 is not a number from 0 to 100"),
        (b"default = nan", r"the threshold nan is not"),
        (b"[labels]\ncat = true", r"the threshold True of the label 'cat' is not"),
        (b"labels = 3", r"labels must be a table \[labels\], not 3"),
        (b"model = 3\ndefault = 1", "model must be the text of an ARN"),
        (b"cat = 50", "has the unknown key 'cat'; its keys are default, model, and a table"),
        (b"default = ", "is not valid TOML"),
        (b"\xff", "is not valid TOML"),
    ],
)
def test_a_bad_file_of_thresholds_is_refused_in_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "thresholds.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=reason) as refused:
        Thresholds.read(file)
    assert str(file) in str(refused.value)
    with pytest.raises(UsageError, match="failed: No such file"):
        Thresholds.read(tmp_path / "missing")
