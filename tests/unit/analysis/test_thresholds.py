"""Thresholds chosen from results and truth, and the file that they are written to."""

from __future__ import annotations

import csv
import datetime as dt
import io
import os
import random
import sys
import tomllib
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import typer
from typer.testing import CliRunner, Result

from batchcl.analysis.average_precision import average_precision
from batchcl.analysis.evaluate import evaluate
from batchcl.analysis.results import open_results
from batchcl.analysis.thresholds import ThresholdChoice, ThresholdStatus, choose_thresholds, write_thresholds
from batchcl.analysis.truth import read_truth
from batchcl.cli import thresholds
from batchcl.errors import OutputError, UsageError
from batchcl.outcomes import Label
from batchcl.thresholds import Thresholds
from unit.analysis.conftest import Root, arn_of, failed, scored
from unit.analysis.test_evaluate import boxes, carrying, line, write

NAMES = ["cat", "dog", "owl"]
HOSTILE = ['say "hi"', "two\nlines", "]\n[labels]\nx = 1 #", "\\", "\u202eevil", "\x7f\x00", "", "ñandú 🦩", "a.b"]
WHOLE = (0.0, 0.0, 1.0, 1.0)

app = typer.Typer()
app.command("thresholds")(thresholds.thresholds)
app.command("other")(lambda: None)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "out")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "truth" / "test.manifest"


def chosen(root: Root, manifest: Path, **options: Any) -> ThresholdChoice:
    return choose_thresholds(open_results(str(root)), read_truth(manifest), resamples=50, **options)


def by_label(choice: ThresholdChoice) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in choice.labels.iter_rows(named=True)}


def simple(root: Root, manifest: Path, *, min_confidence: float | None = 0, **options: Any) -> dict[str, Any]:
    """Cats at 90, 80 (no cat), 70 and 60, and one that was not found."""
    images = [(90, True), (80, False), (70, True), (60, True)]
    root.results(
        *(scored(f"s3://b/{at}", Label("cat", at)) for at, _ in images),
        scored("s3://b/0"),
        min_confidence=min_confidence,
    )
    write(manifest, *(line(f"s3://b/{at}", *["cat"] * is_cat) for at, is_cat in images), line("s3://b/0", "cat"))
    return by_label(chosen(root, manifest, **options))["cat"]


@pytest.mark.parametrize(
    ("options", "threshold", "status", "metrics"),
    [
        ({}, 60, "reached", (3 / 4, 3 / 4, 3 / 4)),
        ({"precision": 0.9}, 90, "reached", (1, 1 / 4, 2 / 5)),
        ({"precision": 0.75}, 60, "reached", (3 / 4, 3 / 4, 3 / 4)),
        ({"recall": 0.5}, 70, "reached", (2 / 3, 2 / 4, 4 / 7)),
        ({"recall": 0.9}, 60, "not_reached", (3 / 4, 3 / 4, 3 / 4)),
    ],
    ids=str,
)
def test_threshold_meets_the_criterion(
    root: Root, manifest: Path, options: Any, threshold: float, status: str, metrics: Any
) -> None:
    row = simple(root, manifest, **options)
    assert (row["threshold"], row["status"]) == (threshold, status)
    assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(metrics)
    assert (row["positives"], row["scored"]) == (4, 4)
    assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in ("precision", "recall", "f1"))
    assert row["few_images"]


def random_root(root: Root, manifest: Path, *, located: bool = False) -> None:
    rnd = random.Random(7)
    rows, lines = [], []
    for at in range(200):
        true = rnd.sample(NAMES, rnd.randint(0, 2))
        found = [
            name for name in NAMES for _ in range(rnd.randint(0, 2)) if rnd.random() < (0.8 if name in true else 0.3)
        ]
        spots = [(rnd.choice([0.0, 0.5]), rnd.choice([0.0, 0.5]), 0.4, 0.4) for _ in found]
        confidences = [round(rnd.gauss(70 if name in true else 50, 15), 1) for name in found]
        labels = [
            Label(name, min(confidence, 100), spot if located else None)
            for name, confidence, spot in zip(found, confidences, spots, strict=True)
        ]
        rows.append(scored(f"s3://b/{at}", *labels))
        objects = [(name, rnd.choice([0, 100]), rnd.choice([0, 50]), 80, 40) for name in true]
        lines.append(boxes(f"s3://b/{at}", *objects) if located else line(f"s3://b/{at}", *true))
    root.results(*rows, min_confidence=0)
    write(manifest, *lines)


@pytest.mark.parametrize("options", [{}, {"precision": 0.6}, {"recall": 0.7}], ids=str)
def test_evaluate_finds_the_same_metrics_at_the_threshold(root: Root, manifest: Path, options: Any) -> None:
    random_root(root, manifest)
    choice = chosen(root, manifest, **options)
    for label, row in by_label(choice).items():
        evaluation = evaluate(open_results(str(root)), read_truth(manifest), min_confidence=row["threshold"])
        at_threshold = evaluation.labels.row(by_predicate=pl.col("label") == label, named=True)
        for ours, theirs in (("positives", "support"), ("predicted", "predicted")):
            assert row[ours] == at_threshold[theirs]
        for name in ("precision", "recall", "f1"):
            assert row[name] == pytest.approx(at_threshold[name])


def test_boxes_are_judged_as_by_average_precision(root: Root, manifest: Path) -> None:
    random_root(root, manifest, located=True)
    choice = chosen(root, manifest)
    assert choice.summary["unit"] == "box"
    truth = read_truth(manifest)
    detected = (
        open_results(str(root)).detections().collect(engine="in-memory").with_columns(pl.col(pl.Float32).cast(float))
    )
    expected = average_precision(detected, truth.boxes)
    for label, counted, found, matched, average in expected.iter_rows():
        curve = choice.curves.filter(pl.col("label") == label)
        best_from_here = curve["precision"].reverse().cum_max().reverse()
        area = (curve["recall"].diff().fill_null(curve["recall"][0]) * best_from_here).sum()
        assert area == pytest.approx(average)
        assert curve["true_positives"][-1] == matched
        row = by_label(choice)[label]
        assert (row["positives"], row["scored"]) == (counted, found)


def test_image_level_judges_images_although_there_are_boxes(root: Root, manifest: Path) -> None:
    elsewhere = (0.9, 0.9, 0.1, 0.1)
    root.results(scored("s3://b/1", Label("cat", 90, elsewhere), Label("cat", 60, elsewhere)), min_confidence=0)
    write(manifest, boxes("s3://b/1", ("cat", 0, 0, 20, 20)))
    assert by_label(chosen(root, manifest))["cat"]["status"] == ThresholdStatus.NONE_CORRECT
    choice = chosen(root, manifest, image_level=True)
    assert (choice.summary["unit"], by_label(choice)["cat"]["threshold"]) == ("image", 90)


def test_results_without_boxes_are_judged_by_image(root: Root, manifest: Path) -> None:
    root.results(scored("s3://b/1", Label("cat", 90)), min_confidence=0)
    choice = chosen(root, write(manifest, boxes("s3://b/1", ("cat", 0, 0, 20, 20))))
    assert (choice.summary["unit"], by_label(choice)["cat"]["threshold"]) == ("image", 90)


def test_images_without_size_are_left_out_of_boxes(root: Root, manifest: Path) -> None:
    root.results(*(scored(f"s3://b/{at}", Label("cat", 90, WHOLE)) for at in range(3)), min_confidence=0)
    true = ("cat", 0, 0, 200, 100)
    lines = [boxes("s3://b/0", true), boxes("s3://b/1", true, size=None), line("s3://b/2", "cat")]
    choice = chosen(root, write(manifest, *lines))
    assert (choice.summary["images"], by_label(choice)["cat"]["positives"]) == (1, 1)


@pytest.mark.parametrize(("min_confidence", "judged_from", "at_cut"), [(0, 0, False), (50, 50, True), (None, 60, True)])
def test_lowest_threshold_that_can_be_judged(
    root: Root, manifest: Path, min_confidence: float | None, judged_from: float, at_cut: bool
) -> None:
    row = simple(root, manifest, min_confidence=min_confidence)
    assert (row["judged_from"], row["at_cut"]) == (judged_from, at_cut)


def test_scores_below_the_highest_cut_are_not_judged(root: Root, manifest: Path) -> None:
    """An image scored with --min-confidence 65 may have a cat of 60 that nobody sees."""
    simple(root, manifest)
    root.results(scored("s3://b/new", Label("cat", 70.1)), min_confidence=65, run_id="r2")
    with manifest.open("ab") as file:
        file.write(b"\n" + orjson.dumps(line("s3://b/new", "cat")))
    choice = chosen(root, manifest)
    row = by_label(choice)["cat"]
    assert (row["judged_from"], row["threshold"], row["scored"], row["positives"]) == (65, 70, 4, 5)
    assert choice.summary["min_confidence"] == [0, 65]
    assert choice.curves["threshold"].to_list() == [90, 80, 70.1, 70]
    assert choice.calibration["detections"].sum() == 4


def test_a_cut_that_nothing_shows_gives_no_threshold(root: Root, manifest: Path) -> None:
    simple(root, manifest)
    root.results(scored("s3://b/new", Label("dog", 70)), run_id="r2")
    with manifest.open("ab") as file:
        file.write(b"\n" + orjson.dumps(line("s3://b/new", "cat", "dog")))
    rows = by_label(chosen(root, manifest))
    assert rows["cat"]["status"] == ThresholdStatus.UNKNOWN_CUT
    assert (rows["dog"]["threshold"], rows["dog"]["judged_from"]) == (70, 70)


def test_labels_without_a_threshold_have_a_reason(root: Root, manifest: Path) -> None:
    root.results(scored("s3://b/1", Label("extra", 90), Label("wrong", 80), Label("cat", 70)), min_confidence=0)
    write(manifest, line("s3://b/1", "cat", "unseen"), line("s3://b/2", "wrong"), line("s3://b/3", "wrong"))
    root.results(scored("s3://b/2"), min_confidence=0, run_id="r2")
    rows = by_label(chosen(root, manifest))
    assert {label: row["status"] for label, row in rows.items() if row["threshold"] is None} == {
        "extra": ThresholdStatus.NO_TRUE_LABEL,
        "unseen": ThresholdStatus.NO_SCORE,
        "wrong": ThresholdStatus.NONE_CORRECT,
    }


def test_images_at_the_maximum_of_labels_are_counted(root: Root, manifest: Path) -> None:
    root.results(scored("s3://b/1", Label("cat", 90)), scored("s3://b/2"), min_confidence=0, max_results=1)
    choice = chosen(root, write(manifest, line("s3://b/1", "cat"), line("s3://b/2", "cat")))
    assert choice.summary["max_results_reached"] == 1


@pytest.mark.parametrize(("cats", "others", "few"), [(30, 30, False), (29, 30, True), (30, 29, True)])
def test_fewer_than_30_images_are_marked(root: Root, manifest: Path, cats: int, others: int, *, few: bool) -> None:
    root.results(*(scored(f"s3://b/{at}", Label("cat", 90)) for at in range(60)), min_confidence=0)
    lines = [line(f"s3://b/{at}", *["cat"] * (at < cats)) for at in range(cats + others)]
    row = by_label(chosen(root, write(manifest, *lines)))["cat"]
    assert (row["few_images"], row["negatives"]) == (few, others)


def test_a_confidence_that_is_no_number_does_not_count(root: Root, manifest: Path) -> None:
    root.results(scored("s3://b/1", Label("dog", float("nan")), Label("cat", 90)), min_confidence=0)
    rows = by_label(chosen(root, write(manifest, line("s3://b/1", "cat", "dog"))))
    assert (rows["cat"]["threshold"], rows["dog"]["status"]) == (90, ThresholdStatus.NO_SCORE)


def test_a_truth_of_one_label_is_reported(root: Root, manifest: Path) -> None:
    root.results(*(scored(f"s3://b/{at}", Label("cat", 90)) for at in range(60)), min_confidence=0)
    write(manifest, *(line(f"s3://b/{at}", "cat") for at in range(60)))
    shown = good(root, "--truth", manifest)
    assert "every image has it: precision can't be judged, few images" in shown


def test_a_long_curve_is_thinned_and_keeps_the_chosen_point(root: Root, manifest: Path) -> None:
    root.results(*(scored(f"s3://b/{at}", Label("cat", at / 10)) for at in range(1000)), min_confidence=0)
    write(manifest, *(line(f"s3://b/{at}", *["cat"] * (at > 333)) for at in range(1000)))
    choice = chosen(root, manifest, curve_points=50)
    threshold = by_label(choice)["cat"]["threshold"]
    assert threshold == 33.4
    points = choice.curves["threshold"].to_list()
    assert threshold in points
    assert (points[0], points[-1]) == (99.9, 0)
    assert 50 <= len(points) <= 51


def test_the_latest_version_of_an_image_is_judged(root: Root, manifest: Path) -> None:
    noon = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
    for hours, confidence in ((0, 50), (2, 70), (1, 60)):
        at = noon + dt.timedelta(hours=hours)
        version = scored("s3://b/1", Label("cat", confidence), at=at, version_id=str(confidence))
        root.results(version, scored("s3://b/2"), min_confidence=confidence - 40, run_id=f"r{hours}")
    choice = chosen(root, write(manifest, line("s3://b/1", "cat"), line("s3://b/2")))
    row = by_label(choice)["cat"]
    assert (row["threshold"], row["positives"], row["scored"], choice.summary["images"]) == (70, 1, 1, 2)
    assert choice.summary["min_confidence"] == [30], "of the rows that count"


def test_images_in_truth_or_results_only_are_counted(root: Root, manifest: Path) -> None:
    root.results(scored("s3://b/1", Label("cat", 90)), scored("s3://b/x"), min_confidence=0)
    choice = chosen(root, write(manifest, line("s3://b/1", "cat"), line("s3://b/gone", "cat")))
    summary = choice.summary
    assert by_label(choice)["cat"]["positives"] == 1
    assert (summary["images"], summary["missing"], summary["extra"]) == (1, 1, 1)
    assert (summary["missing_examples"], summary["extra_examples"]) == (["s3://b/gone"], ["s3://b/x"])


def test_no_common_image_is_an_error_with_an_example_of_both(root: Root, manifest: Path) -> None:
    root.results(scored("s3://b/images/1.jpg"))
    with pytest.raises(UsageError, match=r"s3://B/images/1.jpg.*s3://b/images/1.jpg"):
        chosen(root, write(manifest, line("s3://B/images/1.jpg", "cat")))


def test_a_root_without_results_is_refused(root: Root, manifest: Path) -> None:
    root.failures([failed("s3://b/1")])
    with pytest.raises(UsageError, match="the results have no scored image"):
        chosen(root, write(manifest, line("s3://b/1", "cat")))


def test_thresholds_of_the_results_are_ignored(root: Root, manifest: Path) -> None:
    simple(root, manifest)
    results = open_results(str(root), thresholds=75.0)
    assert by_label(choose_thresholds(results, read_truth(manifest)))["cat"]["threshold"] == 60


def test_models_are_never_mixed(root: Root, manifest: Path) -> None:
    for model in ("m@1", "m@2"):
        root.results(scored("s3://b/1", Label("cat", 90)), model=model)
    with pytest.raises(UsageError, match=r"m@1, m@2.*--model"):
        chosen(root, write(manifest, line("s3://b/1", "cat")))


# the file


def test_readers_apply_the_file(root: Root, manifest: Path, tmp_path: Path) -> None:
    random_root(root, manifest)
    choice = chosen(root, manifest, precision=0.6)
    file = tmp_path / "t.toml"
    write_thresholds(choice, file, root=str(root))
    read = Thresholds.read(file)
    assert read.model == choice.summary["model_arn"]
    with_them = evaluate(open_results(str(root), thresholds=read), read_truth(manifest)).labels
    expected = choice.labels.select("label", "predicted", "precision", "recall", "f1")
    assert with_them.select(expected.columns).equals(expected)


@pytest.fixture
def choice(root: Root, manifest: Path) -> ThresholdChoice:
    """Thresholds of hostile labels, one of which was never detected."""
    found = [label for label in HOSTILE if label]
    root.results(scored("s3://b/1", *(Label(label, 70.1) for label in found)), min_confidence=0)
    return chosen(root, write(manifest, line("s3://b/1", *found, "never\n= 5")))


def test_hostile_labels_survive_the_file(choice: ThresholdChoice, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    write_thresholds(choice, file, root='out"\n[labels]', truth="a\nb = 1")
    written = tomllib.loads(file.read_text(encoding="utf-8"))
    assert Thresholds.read(file).labels == written["labels"]
    assert written == {"model": arn_of("cats@v1"), "labels": {label: 70.1 for label in HOSTILE if label}}
    assert "\u202e" not in file.read_text(encoding="utf-8"), "visible text only"


def test_the_file_says_where_it_comes_from(root: Root, manifest: Path, tmp_path: Path) -> None:
    simple(root, manifest)
    file = tmp_path / "t.toml"
    noon = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
    write_thresholds(chosen(root, manifest, recall=0.9), file, root=str(root), truth="test.manifest", now=noon)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(", 2026-11-21T12:00:00Z")
    assert lines[1:4] == [
        "# criterion: recall of at least 0.9",
        f'# results: "{root}", 5 images with true labels',
        '# truth: "test.manifest"',
    ]
    assert "# NOT REACHED: recall of at least 0.9; this is the nearest threshold" in lines
    assert lines[-2].startswith("# FEW IMAGES: precision 0.7500 (")
    assert lines[-2].endswith("; 4 true, 4 scored")
    assert lines[-1] == '"cat" = 60.0'


@pytest.mark.parametrize("name", ["out/t.toml", "out/../out/results/t.toml", "link/t.toml", "elsewhere.toml"])
def test_a_path_in_the_output_root_is_refused(choice: ThresholdChoice, root: Root, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(root.path)
    (tmp_path / "elsewhere.toml").symlink_to(root.path / "new.toml")
    files = sorted(root.path.rglob("*"))
    with pytest.raises(UsageError, match="is in the output root"):
        write_thresholds(choice, tmp_path / name, root=str(root), overwrite=True)
    assert sorted(root.path.rglob("*")) == files


def test_an_existing_file_is_replaced_only_on_request(choice: ThresholdChoice, root: Root, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text("mine")
    with pytest.raises(UsageError, match=r"t.toml exists; replace it with --overwrite"):
        write_thresholds(choice, file, root=str(root))
    assert file.read_text() == "mine"
    write_thresholds(choice, file, root=str(root), overwrite=True)
    assert tomllib.loads(file.read_text(encoding="utf-8"))["model"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("s3://b/t.toml", "is in S3"),
        ("folder", "is a directory"),
        ("none/t.toml", "is in a directory that does not exist; create it first"),
    ],
)
def test_what_is_not_a_local_file_is_refused(
    choice: ThresholdChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UsageError, match=why):
        write_thresholds(choice, name, root="s3://b/out", overwrite=True)


def test_a_failed_write_leaves_nothing_behind(
    choice: ThresholdChoice, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.toml").write_text("mine")
    before = sorted(tmp_path.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"t.toml failed: No space left on device"):
        write_thresholds(choice, tmp_path / "t.toml", root=str(root), overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "t.toml").read_text() == "mine"


# the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["thresholds", *map(str, arguments)])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exception is None, result.exception
    return result.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--precision", 95), r"--precision 95 is not above 0 and at most 1; did you mean 0.95\?"),
        (("--recall", 0), "--recall 0 is not above 0 and at most 1; use a share such as 0.95"),
        (("--recall", "nan"), "--recall nan is not above 0 and at most 1; use a share such as 0.95"),
        (("--precision", 0.9, "--recall", 0.9), "--precision and --recall exclude each other; choose one"),
        (("--json", "--csv"), "--json and --csv exclude each other; choose one"),
        (("--out", "s3://b/t.toml"), "--out s3://b/t.toml is in S3"),
    ],
)
def test_bad_arguments_are_refused_before_reading(tmp_path: Path, options: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        raise run(tmp_path / "nowhere", *options).exception or AssertionError


def test_numpy_is_an_extra(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UsageError, match=r"needs numpy; install it with: pip install 'batchcl\[analysis\]'"):
        raise run(root).exception or AssertionError


def test_output_for_people_names_what_limits_the_choice(root: Root, manifest: Path) -> None:
    simple(root, manifest, min_confidence=50)
    result = run(root, "--truth", manifest, "--recall", 0.9)
    assert "criterion       recall of at least 0.9" in result.stdout.splitlines()
    cat = next(line for line in result.stdout.splitlines() if line.startswith("cat"))
    assert cat.split()[1] == "60"
    assert cat.endswith("recall of at least 0.9 not reached, lower scores are cut off, few images")
    assert "the low scores of 1 label are missing" in result.stderr
    assert "the figures of 1 label are based on fewer than 30 images:" in result.stderr


def test_json_has_curves_and_calibration_and_csv_the_labels(root: Root, manifest: Path, tmp_path: Path) -> None:
    simple(root, manifest)
    file = tmp_path / "t.toml"
    found = orjson.loads(good(root, "--truth", manifest, "--json", "--bins", 5, "--out", file))
    assert list(found) == ["summary", "labels", "curves", "calibration"]
    assert [point["threshold"] for point in found["curves"]] == [90, 80, 70, 60]
    assert [each["detections"] for each in found["calibration"]] == [0, 0, 0, 2, 2]
    (row,) = csv.DictReader(io.StringIO(good(root, "--truth", manifest, "--csv")))
    assert float(row["threshold"]) == found["labels"][0]["threshold"] == 60
    assert tomllib.loads(file.read_text())["labels"] == {"cat": 60}


def test_labels_in_the_results_are_the_default_truth(root: Root) -> None:
    entry = line("s3://b/1", "cat")
    root.results(carrying("s3://b/1", entry, Label("cat", 90)))
    assert orjson.loads(good(root, "--json"))["labels"][0]["threshold"] == 90
