"""Precision, recall, F1 and confusion, compared with scikit-learn."""

from __future__ import annotations

import datetime as dt
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from batchcl.analysis.counts import NONE
from batchcl.analysis.evaluate import Evaluation, evaluate
from batchcl.analysis.results import open_results
from batchcl.analysis.truth import carried_truth, read_truth
from batchcl.errors import SourceError, UsageError
from batchcl.images import ImageRef
from batchcl.outcomes import Label, Scored
from batchcl.sources.text_lists import MAX_LINE_BYTES
from unit.analysis.conftest import arn_of

if TYPE_CHECKING:
    from unit.analysis.conftest import Make, Root

SINGLE = "groundtruth/image-classification"
NAMES = ["cat", "dog", "owl", "ñandú"]


def line(uri: str, *labels: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"source-ref": uri}
    for at, label in enumerate(labels):
        entry |= {f"A{at}": 1, f"A{at}-metadata": {"class-name": label, "type": SINGLE}}
    if not labels:
        entry |= {"M": [], "M-metadata": {"class-map": {}, "type": f"{SINGLE}-multilabel"}}
    return entry


def boxes(
    uri: str, *objects: tuple[str, int, int, int, int], size: tuple[int, int] | None = (200, 100)
) -> dict[str, Any]:
    names = sorted({each[0] for each in objects})
    keys = ("left", "top", "width", "height")
    value: dict[str, Any] = {
        "annotations": [
            {"class_id": names.index(label), **dict(zip(keys, box, strict=True))} for label, *box in objects
        ]
    }
    if size is not None:
        value["image_size"] = [{"width": size[0], "height": size[1], "depth": 3}]
    class_map = {str(at): name for at, name in enumerate(names)}
    return {
        "source-ref": uri,
        "B": value,
        "B-metadata": {"class-map": class_map, "type": "groundtruth/object-detection"},
    }


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "truth" / "test.manifest"


def write(manifest: Path, *lines: dict[str, Any] | bytes) -> Path:
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_bytes(b"\n".join(each if isinstance(each, bytes) else orjson.dumps(each) for each in lines))
    return manifest


def evaluated(root: Root, manifest: Path, min_confidence: float | None = None) -> Evaluation:
    results = open_results(str(root))
    return evaluate(results, read_truth(manifest), min_confidence=min_confidence, failures=results.failures())


@pytest.mark.parametrize("threshold", [None, 70.0])
def test_multi_label_metrics_equal_those_of_scikit_learn(
    root: Root, manifest: Path, make: type[Make], threshold: float | None
) -> None:
    rnd = random.Random(7)
    truth, answers, lines, rows = [], [], [], []
    for at in range(300):
        true = rnd.sample(NAMES, rnd.randint(0, 3))
        detected = [
            Label(name, rnd.uniform(40, 100)) for name in NAMES if rnd.random() < (0.8 if name in true else 0.2)
        ]
        rows.append(make.scored(f"s3://b/{at}", *detected, *detected[:1]))
        lines.append(line(f"s3://b/{at}", *true))
        truth.append(true)
        answers.append([each.name for each in detected if each.confidence >= (threshold or 0)])
    root.results(*rows)
    got = evaluated(root, write(manifest, *lines), threshold)
    from sklearn.metrics import f1_score, precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(classes=NAMES).fit(truth)
    y_true, y_pred = binarizer.transform(truth), binarizer.transform(answers)
    precision, recall, f1, support = precision_recall_fscore_support(y_true, y_pred)
    assert got.labels["label"].to_list() == NAMES
    assert got.labels["precision"].to_list() == pytest.approx(precision)
    assert got.labels["recall"].to_list() == pytest.approx(recall)
    assert got.labels["f1"].to_list() == pytest.approx(f1)
    assert got.labels["support"].to_list() == support.tolist()
    assert got.summary["macro_f1"] == pytest.approx(f1_score(y_true, y_pred, average="macro"))
    assert got.summary["micro_f1"] == pytest.approx(f1_score(y_true, y_pred, average="micro"))
    assert got.confusion is None


def test_single_label_metrics_equal_those_of_scikit_learn(root: Root, manifest: Path, make: type[Make]) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix

    rnd = random.Random(3)
    truth, tops, lines, rows = [], [], [], []
    for at in range(200):
        true = rnd.choice([*NAMES, NONE])
        detected = [Label(name, rnd.uniform(0, 100)) for name in rnd.sample(NAMES, rnd.randint(0, 3))]
        rows.append(make.scored(f"s3://b/{at}", *detected))
        lines.append(line(f"s3://b/{at}", *([] if true == NONE else [true])))
        truth.append(true)
        tops.append(max(detected, key=lambda each: each.confidence).name if detected else NONE)
    root.results(*rows)
    got = evaluated(root, write(manifest, *lines))
    assert got.summary["top_label_accuracy"] == pytest.approx(accuracy_score(truth, tops))
    names = sorted([*NAMES, NONE])
    matrix = confusion_matrix(truth, tops, labels=names)
    assert got.confusion is not None
    cells = {(a, b): n for a, b, n in got.confusion.iter_rows()}
    expected = {(a, b): int(matrix[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if matrix[i, j]}
    assert cells == expected


def test_undefined_metrics_are_null_and_not_zero(root: Root, manifest: Path, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("dog", 90)))
    table = evaluated(root, write(manifest, line("s3://b/1", "cat"))).labels
    columns = ("label", "support", "predicted", "true_positives", "precision", "recall", "f1")
    assert table.select(columns).rows() == [("cat", 1, 0, 0, None, 0.0, 0.0), ("dog", 0, 1, 0, 0.0, None, 0.0)]


def test_missing_and_extra_images_are_counted_with_examples(root: Root, manifest: Path, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", Label("cat", 90)), make.scored("s3://b/extra"))
    root.failures([make.failed("s3://b/failed")])
    lines = [line(f"s3://b/{name}", "cat") for name in ("1", "failed", "gone")]
    summary = evaluated(root, write(manifest, *lines, {"source-ref": "s3://b/bare"})).summary
    assert (summary["images"], summary["missing"], summary["missing_failed"], summary["extra"]) == (1, 2, 1, 1)
    assert summary["missing_examples"] == ["s3://b/failed", "s3://b/gone"]
    assert summary["extra_examples"] == ["s3://b/extra"]
    assert summary["unlabelled"] == 1
    assert summary["macro_f1"] == 1.0


def test_no_common_image_is_an_error_with_an_example_of_both(root: Root, manifest: Path, make: type[Make]) -> None:
    root.results(make.scored("s3://b/images/1.jpg"))
    with pytest.raises(UsageError, match=r"s3://B/images/1.jpg.*s3://b/images/1.jpg"):
        evaluated(root, write(manifest, line("s3://B/images/1.jpg", "cat")))


def test_models_are_never_mixed(root: Root, manifest: Path, make: type[Make]) -> None:
    for model in ("m@1", "m@2"):
        root.results(make.scored("s3://b/1", Label("cat", 90)), model=model)
    write(manifest, line("s3://b/1", "cat"))
    with pytest.raises(UsageError, match=r"m@1, m@2.*--model"):
        evaluated(root, manifest)
    results = open_results(str(root), model="m@2")
    assert evaluate(results, read_truth(manifest)).summary["model"] == "m@2"


def test_a_retrained_model_of_the_same_name_is_another_model(root: Root, manifest: Path, make: type[Make]) -> None:
    older, newer = (arn_of("m@1").replace("1700000000000", stamp) for stamp in ("1700000000000", "1800000000000"))
    for run_id, arn in (("a", older), ("b", newer)):
        root.results(make.scored("s3://b/1", Label("cat", 90)), model="m@1", model_arn=arn, run_id=run_id)
    write(manifest, line("s3://b/1", "cat"))
    with pytest.raises(UsageError, match=rf"{older}, {newer}; choose one with --model"):
        evaluate(open_results(str(root), model="m@1"), read_truth(manifest))
    summary = evaluate(open_results(str(root), model=newer), read_truth(manifest)).summary
    assert (summary["model"], summary["model_arn"]) == ("m@1", newer)


def test_the_latest_result_of_an_image_is_used(root: Root, manifest: Path, make: type[Make]) -> None:
    noon = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
    for hours, label, run in ((0, "dog", "z"), (2, "cat", "m"), (1, "dog", "a")):
        later = noon + dt.timedelta(hours=hours)
        root.results(make.scored("s3://b/1", Label(label, 90), at=later), run_id=run)
    summary = evaluated(root, write(manifest, line("s3://b/1", "cat"))).summary
    assert (summary["top_label_accuracy"], summary["images"]) == (1.0, 1)


def test_local_images_are_joined_by_their_absolute_path(root: Root, manifest: Path, make: type[Make]) -> None:
    write(manifest, line("images/../images/é 1.jpg", "cat"), line("/abs/2.jpg", "cat"))
    local = os.path.abspath(manifest.parent / "images" / "é 1.jpg")
    root.results(make.scored(local, Label("cat", 90)), make.scored("/abs/2.jpg", Label("cat", 90)))
    assert evaluated(root, manifest).summary["missing"] == 0


def test_boxes_in_pixels_are_compared_with_boxes_in_ratios(root: Root, manifest: Path, make: type[Make]) -> None:
    root.results(
        make.scored("s3://b/1", Label("cat", 90, (0.1, 0.2, 0.5, 0.4)), Label("dog", 80, (0.0, 0.0, 0.1, 0.1))),
        make.scored("s3://b/2", Label("cat", 70, (0.0, 0.0, 0.2, 0.2))),
        make.scored("s3://b/nosize", Label("cat", 99, (0.0, 0.0, 1.0, 1.0))),
    )
    lines = [
        boxes("s3://b/1", ("cat", 20, 20, 100, 40), ("dog", 100, 50, 20, 20)),
        boxes("s3://b/2", ("cat", 100, 50, 100, 50)),
        boxes("s3://b/nosize", ("cat", 0, 0, 10, 10), size=None),
    ]
    got = evaluated(root, write(manifest, *lines))
    columns = ("label", "truth_boxes", "found_boxes", "matched_boxes", "average_precision")
    assert got.labels.select(columns).rows() == [("cat", 2, 2, 1, 0.5), ("dog", 1, 1, 0, 0.0)]
    assert got.summary["mean_average_precision"] == 0.25
    assert (got.summary["located_images"], got.summary["images_without_size"]) == (2, 1)
    assert got.labels["recall"].to_list() == [1.0, 1.0]


def test_a_box_on_an_image_without_objects_is_a_false_positive(root: Root, manifest: Path, make: type[Make]) -> None:
    cat = (0.0, 0.0, 1.0, 1.0)
    root.results(make.scored("s3://b/1", Label("cat", 90, cat)), make.scored("s3://b/2", Label("cat", 95, cat)))
    got = evaluated(root, write(manifest, boxes("s3://b/1", ("cat", 0, 0, 200, 100)), boxes("s3://b/2")))
    assert got.summary["mean_average_precision"] == 0.5


def test_lines_about_one_image_are_merged(manifest: Path) -> None:
    truth = read_truth(write(manifest, line("s3://b/1", "cat"), line("s3://b/1", "dog"), line("s3://b/1", "cat")))
    assert truth.images["labels"].to_list() == [["cat", "dog"]]
    assert truth.repeated == 2
    twice = boxes("s3://b/1", ("cat", 0, 0, 20, 10))
    assert read_truth(write(manifest, twice, twice)).boxes.height == 1


def test_identical_boxes_of_a_line_are_several_objects(root: Root, manifest: Path, make: type[Make]) -> None:
    box = ("cat", 0, 0, 20, 10)
    root.results(make.scored("s3://b/1", Label("cat", 90, (0.0, 0.0, 0.1, 0.1))))
    write(manifest, boxes("s3://b/1", box, box), boxes("s3://b/1", box, ("cat", 50, 50, 9, 9)))
    assert read_truth(manifest).boxes.height == 3
    got = evaluated(root, write(manifest, boxes("s3://b/1", box, box))).labels
    assert got.select("truth_boxes", "matched_boxes", "average_precision").rows() == [(2, 1, 0.5)]


@pytest.mark.parametrize("threshold", [70.1, 33.3, 99.9])
def test_a_confidence_that_equals_the_threshold_is_kept(
    root: Root, manifest: Path, make: type[Make], threshold: float
) -> None:
    """The tables store 32-bit numbers; as such, 70.1 is less than the 64-bit number."""
    root.results(make.scored("s3://b/1", Label("cat", threshold), Label("dog", threshold - 0.01)))
    got = evaluated(root, write(manifest, line("s3://b/1", "cat")), threshold)
    assert got.labels.select("label", "predicted").rows() == [("cat", 1)]


def test_among_equal_confidences_the_first_name_is_the_top_label(root: Root, manifest: Path, make: type[Make]) -> None:
    """`model evaluate` has the same rule: see test_evaluation.py."""
    for names in (("dog", "cat"), ("cat", "dog")):
        root.results(make.scored(f"s3://b/{names[0]}", *(Label(name, 50) for name in names)), run_id=names[0])
    got = evaluated(root, write(manifest, line("s3://b/dog", "dog"), line("s3://b/cat", "cat")))
    assert got.confusion is not None
    assert got.confusion.rows() == [("cat", "cat", 1), ("dog", "cat", 1)]


def test_a_bad_line_is_an_error_unless_skipped(manifest: Path) -> None:
    write(manifest, line("s3://b/1", "cat"), b"", b"{nonsense", line("s3://b/2", "dog"))
    with pytest.raises(SourceError, match=r"test.manifest, line 3: .*not JSON.*--skip-bad-lines"):
        read_truth(manifest)
    truth = read_truth(manifest, skip_bad_lines=True)
    assert truth.images.height == 2
    assert len(truth.bad) == 1
    assert truth.bad[0].startswith("line 3: ")


def test_an_overlong_line_of_the_truth_is_a_bad_line(manifest: Path) -> None:
    write(manifest, line("s3://b/1", "cat"), b"x" * (MAX_LINE_BYTES + 1), line("s3://b/2", "dog"))
    truth = read_truth(manifest, skip_bad_lines=True)
    assert (truth.images.height, truth.bad) == (2, ("line 2: longer than 4,194,304 bytes",))


def test_a_missing_or_unlabelled_truth_is_refused(manifest: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        read_truth(manifest)
    with pytest.raises(SourceError, match="1 line without labels"):
        read_truth(write(manifest, {"source-ref": "s3://b/1"}))


def carrying(uri: str, truth: dict[str, Any] | None, *labels: Label, hour: int = 12) -> Scored:
    """A result whose manifest line was `truth`."""
    entry = {name: value for name, value in (truth or {}).items() if name != "source-ref"}
    image = ImageRef(uri=uri, bucket="b", key=uri, extra=orjson.dumps(entry).decode() if truth else None)
    moment = dt.datetime(2026, 11, 21, hour, tzinfo=dt.UTC)
    return Scored(image=image, labels=labels, attempts=1, latency_ms=80, request_id="r", scored_at=moment)


def test_the_truth_may_come_from_the_results_themselves(root: Root, manifest: Path) -> None:
    truths = [line("s3://b/1", "cat"), line("s3://b/2", "dog", "owl"), line("s3://b/3"), {"source-ref": "s3://b/4"}]
    answers = [(Label("cat", 90),), (Label("dog", 80),), (Label("owl", 70),), (Label("cat", 60),)]
    root.results(
        carrying("s3://b/1", line("s3://b/1", "dog"), Label("dog", 90), hour=1),
        *(carrying(each["source-ref"], each, *labels) for each, labels in zip(truths, answers, strict=True)),
        carrying("s3://b/5", None, Label("cat", 60)),
    )
    results = open_results(str(root))
    detected = evaluate(results, carried_truth(results.images()))
    assert detected.summary["unlabelled"] == 2
    by_file = evaluate(results, read_truth(write(manifest, *truths)))
    assert detected.labels.equals(by_file.labels)
    assert detected.summary["macro_f1"] == by_file.summary["macro_f1"]


def test_boxes_from_results_with_chained_attributes(root: Root) -> None:
    truth = boxes("s3://b/1", ("cat", 10, 20, 30, 40))
    chained = truth | {"C": truth["B"], "C-metadata": truth["B-metadata"]}
    root.results(carrying("s3://b/1", chained, Label("cat", 90, (0.05, 0.2, 0.15, 0.4))))
    images = open_results(str(root)).images()
    with pytest.raises(SourceError, match="'B', 'C'; select one with --attribute"):
        carried_truth(images)
    assert carried_truth(images, attribute="C").boxes.height == 1
    with pytest.raises(SourceError, match="none of the 1 results has usable labels"):
        carried_truth(images, skip_bad_lines=True)


def snapshot(uri: str, true: str, *predicted: str) -> dict[str, Any]:
    """A line of the testing snapshot that a training writes, with the truth and the model's predictions."""
    entry = line(uri)
    del entry["M"], entry["M-metadata"]
    name = "rekognition-custom-labels-training-0"
    entry |= {name: 1, f"{name}-metadata": {"class-name": true, "type": SINGLE, "job-name": name}}
    for at, label in enumerate(predicted):
        details = {
            "version": 1,
            "is-true-positive": label == true,
            "is-true-negative": False,
            "is-false-positive": label != true,
            "is-false-negative": False,
            "is-present-in-ground-truth": label == true,
            "ground-truth-labelling-jobs": ["rekognition-custom-labels-training-job"],
        }
        name = f"rekognition-custom-labels-evaluation-{at}"
        metadata = {"class-name": label, "confidence": 0.6, "type": SINGLE, "job-name": "evaluation"}
        entry |= {name: 1, f"{name}-metadata": metadata | {"rekognition-custom-labels-evaluation-details": details}}
    return entry


def test_predictions_in_a_testing_snapshot_are_not_truth(root: Root, manifest: Path) -> None:
    truths = [
        snapshot("s3://b/1", "cat", "dog", "owl"),
        snapshot("s3://b/2", "dog", "dog"),
        snapshot("s3://b/3", "owl"),
    ]
    root.results(*(carrying(each["source-ref"], each, Label("cat", 90)) for each in truths))
    results = open_results(str(root))
    for truth in (read_truth(write(manifest, *truths)), carried_truth(results.images())):
        assert sorted(truth.images.select("uri", "labels").rows()) == [
            ("s3://b/1", ["cat"]),
            ("s3://b/2", ["dog"]),
            ("s3://b/3", ["owl"]),
        ]
        assert evaluate(results, truth).labels.select("label", "true_positives").rows() == [
            ("cat", 1),
            ("dog", 0),
            ("owl", 0),
        ]


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_the_adjusted_attribute_of_a_chain_is_used(root: Root, manifest: Path, task: str) -> None:
    def attribute(name: str, label: str, *, adjusted: bool) -> dict[str, Any]:
        made = boxes("x", (label, 0, 0, 10, 10)) if task == "detection" else line("x", label)
        old = "B" if task == "detection" else "A0"
        metadata = made[f"{old}-metadata"] | ({"adjustment-status": "adjusted"} if adjusted else {})
        return {name: made[old], f"{name}-metadata": metadata}

    chain = {"source-ref": "s3://b/1"} | attribute("first", "cat", adjusted=False)
    chain |= attribute("second", "dog", adjusted=True)
    write(manifest, chain)
    root.results(carrying("s3://b/1", chain, Label("dog", 90)))
    images = open_results(str(root)).images()
    for read in (lambda **named: read_truth(manifest, **named), lambda **named: carried_truth(images, **named)):
        assert read().images["labels"].to_list() == [["dog"]]
        assert read(attribute="first").images["labels"].to_list() == [["cat"]]
    write(manifest, chain | attribute("third", "owl", adjusted=True))
    with pytest.raises(SourceError, match="'second', 'third'; select one with --attribute"):
        read_truth(manifest)
    assert read_truth(manifest, attribute="third").images["labels"].to_list() == [["owl"]]
