"""`batchcl compare`: which rows are compared, the table of labels, conditions, and what people and programs see."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from shutil import copytree
from typing import Any

import anyio
import orjson
import polars as pl
import pytest
import typer
from typer.testing import CliRunner, Result

import batchcl
from batchcl.analysis.compare import LABEL_COLUMNS, _setting_notes, fail_condition
from batchcl.analysis.image_pairs import Origin
from batchcl.analysis.shares import difference_of_pairs, difference_of_samples
from batchcl.cli import compare as command
from batchcl.errors import UsageError
from batchcl.outcomes import Label
from batchcl.runs.record import RunRecord
from batchcl.runs.store import Store
from unit.analysis.conftest import Make, Root, arn_of
from unit.analysis.test_runs import AT, finished

HOSTILE = "\x1b[31mcat\n[red]<script>"
Labels = Mapping[int, Iterable[str]]

app = typer.Typer()
app.command("compare")(command.compare)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "out").mkdir()
    return Root(tmp_path / "out")


def night(
    root: Root,
    run_id: str,
    labels: Labels,
    *,
    days: int = 0,
    model: str = "cats@v1",
    min_confidence: float | None = 50.0,
    confidence: float = 80.0,
    recorded: bool = True,
    etags: str | None = None,
) -> None:
    """A run with images of these numbers and their labels."""
    date = (AT + dt.timedelta(days=days)).date().isoformat()
    rows = [
        Make.scored(
            f"s3://b/{number}",
            *(Label(name, confidence) for name in names),
            at=AT + dt.timedelta(days=days, seconds=number),
        )
        for number, names in labels.items()
    ]
    if etags is not None:
        rows = [replace(row, image=replace(row.image, etag=etags)) for row in rows]
    if rows:
        root.results(*rows, run_id=run_id, date=date, model=model, min_confidence=min_confidence)
    if recorded:
        anyio.run(record, root, run_id, days, model, min_confidence, len(rows))


async def record(root: Root, run_id: str, days: int, model: str, min_confidence: float | None, scored: int) -> None:
    store = Store.open(str(root), create=True)
    await finished(store, run_id, days=days, model=model, threshold=min_confidence, scored=scored)


def numbered(count: int, *, cats: int, dogs: int = 0, first: int = 0) -> dict[int, list[str]]:
    """So many images, of which the first `cats` are cats, and the next `dogs` dogs."""
    names = [["cat"]] * cats + [["dog"]] * dogs + [[]] * (count - cats - dogs)
    return {first + number: each for number, each in enumerate(names)}


def row_of(comparison: batchcl.Comparison, label: str) -> dict[str, Any]:
    return comparison.labels.row(by_predicate=pl.col("label") == label, named=True)


def sides(comparison: batchcl.Comparison) -> tuple[str, str]:
    return comparison.a.name, comparison.b.name


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(*arguments: object) -> str:
    error = run(*arguments).exception
    assert isinstance(error, UsageError), error
    return str(error)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Four nights of a project, the last one by another version, and one of another project."""
    root = Root(tmp_path_factory.mktemp("nights"))
    night(root, "n1", numbered(20, cats=4))
    night(root, "n2", numbered(20, cats=5, first=20), days=1)
    night(root, "n3", numbered(20, cats=6, first=40), days=5)
    night(root, "n4", numbered(20, cats=7, first=60), days=6, model="cats@v2")
    night(root, "birds", numbered(9, cats=9), days=6, model="birds@v1")
    return root


@pytest.fixture
def nights(written: Root, tmp_path: Path) -> Root:
    """A copy of these nights."""
    return Root(copytree(written.path, tmp_path / "nights"))


def test_the_newest_run_is_compared_with_the_one_before_it(nights: Root) -> None:
    night(nights, "n5", numbered(20, cats=8, first=80), days=7)
    comparison = batchcl.compare(str(nights))
    assert sides(comparison) == ("run n4", "run n5")
    assert (comparison.a.models, comparison.b.models) == (("cats@v2",), ("cats@v1",))
    assert (row_of(comparison, "cat")["images_a"], row_of(comparison, "cat")["images_b"]) == (7, 8)


def test_one_side_is_compared_with_the_run_before_it(nights: Root) -> None:
    assert sides(batchcl.compare(str(nights), "n3")) == ("run n2", "run n3")
    assert sides(batchcl.compare(str(nights), b="cats@v2")) == ("run n3", "model cats@v2")


def test_a_baseline_has_all_runs_in_the_time_before(nights: Root) -> None:
    comparison = batchcl.compare(str(nights), "n4", baseline="5d")
    assert sides(comparison) == ("2 runs of the 5d before the run n4", "run n4")
    assert comparison.a.runs == ("n2", "n3")
    assert (comparison.a.images, row_of(comparison, "cat")["images_a"]) == (40, 11)
    assert comparison.a.cost_usd == pytest.approx(1.0)
    assert comparison.a.images_per_second == pytest.approx(22 / 40)
    assert batchcl.compare(str(nights), "n4", baseline="7d").a.runs == ("n1", "n2", "n3")


def test_an_image_counts_once_in_a_baseline_with_its_newest_row(root: Root) -> None:
    for days in range(3):
        night(root, f"n{days}", numbered(10, cats=2 * days), days=days)
    night(root, "n3", numbered(10, cats=5), days=3)
    comparison = batchcl.compare(str(root), baseline="7d")
    assert (comparison.a.images, comparison.images.both) == (10, 10)
    assert (row_of(comparison, "cat")["images_a"], row_of(comparison, "cat")["gained"]) == (4, 1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("n1", "n2", ("run n1", "run n2")),
        ("2026-11-20", "2026-11-21", ("date 2026-11-20", "date 2026-11-21")),
        ("cats@v1", "cats@v2", ("model cats@v1", "model cats@v2")),
        (arn_of("cats@v1"), "model:cats@v2", (f"model {arn_of('cats@v1')}", "model cats@v2")),
        ("run:n1", "date:2026-11-25", ("run n1", "date 2026-11-25")),
    ],
)
def test_a_side_is_a_run_a_date_or_a_model(nights: Root, a: str, b: str, expected: tuple[str, str]) -> None:
    assert sides(batchcl.compare(str(nights), a, b)) == expected


def test_a_run_with_a_date_as_its_id_is_a_run(root: Root) -> None:
    night(root, "2026-11-20", numbered(4, cats=1))
    night(root, "again", numbered(4, cats=2, first=4))
    night(root, "2026-11-21", numbered(4, cats=3), days=1)
    assert batchcl.compare(str(root), "2026-11-20", "2026-11-21").a.images == 4
    assert batchcl.compare(str(root), "date:2026-11-20", "2026-11-21").a.images == 8


def test_side_b_may_be_in_another_root(nights: Root, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Root(tmp_path / "other")
    night(other, "n1", numbered(20, cats=4, dogs=2))
    comparison = batchcl.compare(str(nights), "n1", "n1", root2=str(other))
    assert (comparison.a.root, comparison.b.root) == (str(nights), str(other))
    assert (comparison.images.both, row_of(comparison, "dog")["gained"]) == (20, 2)
    assert sides(batchcl.compare(str(nights), root2=str(other), model="cats")) == ("run n4", "run n1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["n1", "n9"], ["'n9'", "cats@v1, cats@v2", "2026-11-25, 2026-11-21, 2026-11-20", "n3, n2, n1"]),
        (["date:2026-13-01", "n1"], ["'2026-13-01' is not a day"]),
        (["2020-01-01", "n1"], ["2020-01-01", "n3, n2, n1"]),
        (["n1"], ["has no run of cats before the run n1", "n4 (cats@v2)", "name both sides"]),
        (["n4", "--baseline", "2h"], ["has no run of cats in the 2h before the run n4"]),
        (["n1", "n1"], ["both sides are the run n1"]),
        (["n1", "none"], ["'none' is not a run or a date, and ", "has no rows of the model 'none'"]),
        (["n1", "n2", "--baseline", "7d"], ["--baseline 7d takes the place of A"]),
        (["n4", "--baseline", "week"], ["'week' is not a duration"]),
        (["--images", "common"], ["no image is in both sides (20 in A, 20 in B)", "--images all"]),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_exists(
    nights: Root, arguments: list[str], expected: list[str]
) -> None:
    nights_of_cats = [*arguments, "--model", "cats"] if "--images" in arguments else arguments
    sentence = refused(nights, *nights_of_cats)
    assert [part for part in expected if part not in sentence] == [], sentence


def test_a_root_without_records_needs_two_names(root: Root) -> None:
    night(root, "n1", numbered(4, cats=1), recorded=False)
    night(root, "n2", numbered(4, cats=2), days=1, recorded=False)
    assert "no record of a run" in refused(root)
    assert "no record of a run" in refused(root, "2026-11-21")
    comparison = batchcl.compare(str(root), "2026-11-20", "2026-11-21")
    assert (comparison.b.images, comparison.b.runs, comparison.b.cost_usd) == (4, (), None)


def test_images_in_both_sides_are_compared_in_pairs(root: Root) -> None:
    """Of 100 images, 12 lose the cat, 2 gain one, and 3 change from cat to dog; 8 are cats in both."""
    from scipy.stats import binomtest, false_discovery_control  # takes a second

    before = {number: ["cat"] if number < 23 else [] for number in range(100)}
    after = before | {number: [] for number in range(12)} | {number: ["cat"] for number in (30, 31)}
    night(root, "n1", before)
    night(root, "n2", after | {number: ["dog"] for number in (12, 13, 14)}, days=1)
    comparison = batchcl.compare(str(root))
    assert (comparison.images.both, comparison.images.compared, comparison.images.test) == (
        100,
        "common",
        "McNemar's exact test",
    )
    p_values = {
        "cat": binomtest(2, 17).pvalue,
        "dog": binomtest(3, 3).pvalue,
        "(none)": binomtest(12, 14).pvalue,
    }
    counts = {"cat": (23, 10, 15, 2), "dog": (0, 3, 0, 3), "(none)": (77, 87, 2, 12)}
    q_values = false_discovery_control(list(p_values.values()))
    for (label, p_value), q_value in zip(p_values.items(), q_values, strict=True):
        row = row_of(comparison, label)
        assert (row["images_a"], row["images_b"], row["lost"], row["gained"]) == counts[label]
        assert (row["p_value"], row["q_value"]) == pytest.approx((p_value, q_value))
        assert row["significant"] == (q_value <= 0.05)
        low, high = difference_of_pairs([row["lost"]], [row["gained"]], 100)
        assert (row["change_low"], row["change_high"]) == pytest.approx((low[0], high[0]))
    cat = row_of(comparison, "cat")
    wilson = binomtest(23, 100).proportion_ci(method="wilson")
    assert (cat["share_a"], cat["low_a"], cat["high_a"]) == pytest.approx((0.23, wilson.low, wilson.high))
    assert cat["change"] == pytest.approx(-0.13)
    assert [row_of(comparison, label)["presence"] for label in p_values] == [None, "appeared", None]
    assert comparison.labels["label"].to_list() == ["cat", "(none)", "dog"]
    assert comparison.top_labels.select("top_a", "top_b", "images").rows() == [
        ("(none)", "(none)", 75),
        ("cat", "(none)", 12),
        ("cat", "cat", 8),
        ("cat", "dog", 3),
        ("(none)", "cat", 2),
    ]
    assert comparison.top_labels["examples"].to_list()[2:4] == [[], ["s3://b/12", "s3://b/13", "s3://b/14"]]
    assert comparison.images.top_changed == 17


def test_other_images_are_compared_as_two_samples(root: Root) -> None:
    from scipy.stats import false_discovery_control, fisher_exact

    night(root, "n1", numbered(80, cats=8, dogs=5))
    night(root, "n2", numbered(60, cats=21, first=80), days=1)
    comparison = batchcl.compare(str(root))
    assert (comparison.images.both, comparison.images.compared, comparison.images.test) == (
        0,
        "all",
        "Fisher's exact test",
    )
    counts = {"cat": (8, 21), "dog": (5, 0), "(none)": (67, 39)}
    p_values = [fisher_exact([[a, 80 - a], [b, 60 - b]]).pvalue for a, b in counts.values()]
    for label, p_value, q_value in zip(counts, p_values, false_discovery_control(p_values), strict=True):
        row = row_of(comparison, label)
        assert (row["images_a"], row["images_b"], row["lost"], row["gained"]) == (*counts[label], None, None)
        assert (row["p_value"], row["q_value"]) == pytest.approx((p_value, q_value))
        low, high = difference_of_samples([row["images_a"]], 80, [row["images_b"]], 60)
        assert (row["change_low"], row["change_high"]) == pytest.approx((low[0], high[0]))
    assert row_of(comparison, "dog")["presence"] == "disappeared"
    assert row_of(comparison, "cat")["significant"]


@pytest.mark.parametrize(("shared", "compared"), [(20, "common"), (18, "common"), (17, "all"), (0, "all")])
def test_most_images_decide_whether_pairs_are_compared(root: Root, shared: int, compared: str) -> None:
    night(root, "n1", numbered(20, cats=5))
    night(root, "n2", numbered(20, cats=5, first=20 - shared), days=1)
    comparison = batchcl.compare(str(root))
    assert comparison.images.compared == compared
    assert (comparison.images.only_a, comparison.images.only_b) == (20 - shared, 20 - shared)
    assert comparison.images.compared_a == (shared if compared == "common" else 20)
    notes = " ".join(comparison.notes)
    assert ("one side only" in notes) == (shared == 18)
    assert ("independent samples" in notes) == (shared == 17)
    if shared:
        other = batchcl.compare(str(root), images="all" if compared == "common" else "common")
        assert other.images.compared != compared


def test_a_part_of_a_side_is_compared_with_the_same_images(root: Root) -> None:
    night(root, "n1", numbered(60, cats=5))
    night(root, "n2", numbered(20, cats=5, first=2), days=1)
    comparison = batchcl.compare(str(root))
    assert (comparison.images.compared, comparison.images.compared_a, comparison.images.only_a) == ("common", 20, 40)


def test_distances_of_confidences_are_in_points(root: Root) -> None:
    night(root, "n1", numbered(10, cats=4), confidence=62.5)
    night(root, "n2", numbered(10, cats=5), days=1, confidence=70.0)
    row = row_of(batchcl.compare(str(root)), "cat")
    assert (row["confidence_a"], row["confidence_b"]) == (62.5, 70.0)
    assert row["confidence_distance"] == pytest.approx(7.5, abs=0.1)


def test_different_thresholds_are_compared_at_the_higher_one(root: Root) -> None:
    night(root, "n1", numbered(10, cats=4), min_confidence=30.0, confidence=45.0)
    night(root, "n2", numbered(10, cats=4), days=1, min_confidence=50.0)
    comparison = batchcl.compare(str(root))
    assert row_of(comparison, "cat")["images_a"] == 0
    assert (comparison.a.min_confidence, comparison.b.min_confidence) == ((30.0,), (50.0,))
    assert "--min-confidence 30 and --min-confidence 50; labels below 50" in comparison.notes[0]
    assert row_of(batchcl.compare(str(root), thresholds=85.0), "(none)")["images_b"] == 10
    assert "below 50" in refused(root, "--min-confidence", 40)


def test_thresholds_of_the_model_and_a_number_are_not_comparable(root: Root) -> None:
    night(root, "n1", numbered(10, cats=4), min_confidence=None)
    night(root, "n2", numbered(10, cats=4), days=1, min_confidence=0.0)
    assert "the model's own thresholds and --min-confidence 0" in refused(root)
    comparison = batchcl.compare(str(root), thresholds=60.0)
    assert "the model's own thresholds" in comparison.notes[0]
    assert comparison.labels["significant"].sum() == 0


def test_a_side_with_several_models_says_so(nights: Root) -> None:
    notes = " ".join(batchcl.compare(str(nights), "n3", "date:2026-11-26").notes)
    assert "side B has results of 2 models, birds@v1 (9 images) and cats@v2 (20 images); choose one" in notes
    comparison = batchcl.compare(str(nights), "n3", "date:2026-11-26", model="cats")
    assert comparison.b.models == ("cats@v2",)
    assert "models" not in " ".join(comparison.notes)


def test_failures_pace_and_cost_are_those_of_the_records(nights: Root) -> None:
    side = batchcl.compare(str(nights), "n1", "n2").b
    assert (side.planned, side.failed, side.skipped, side.calls, side.throttled) == (22, 2, 0, 30, 8)
    assert (side.seconds, side.images_per_second, side.cost_usd) == (40.0, 0.55, 0.5)


def test_a_run_that_is_not_done_is_reported(root: Root) -> None:
    async def begin() -> None:
        record = RunRecord(
            run_id="n2",
            model=arn_of("cats@v1"),
            fingerprint="f",
            scored_as={"min_confidence": 50.0, "max_results": None},
            settings={},
            started_at=AT + dt.timedelta(days=1),
            version="1",
        )
        await record.create(Store.open(str(root), create=True))

    night(root, "n1", numbered(6, cats=2))
    night(root, "n2", numbered(6, cats=2), days=1, recorded=False)
    anyio.run(begin)
    comparison = batchcl.compare(str(root))
    assert comparison.notes[0] == "side B: run n2 is interrupted; images without a result or failure so far: 0"
    (root.path / "runs" / "n2" / "run.json").write_text("{")
    assert any("reading the record of run n2 failed" in note for note in batchcl.compare(str(root), "n1", "n2").notes)


def test_different_limits_of_labels_are_reported() -> None:
    origins = [Origin("cats@v1", "arn:1", 50.0, limit) for limit in (None, 3)]
    (note,) = _setting_notes(origins, None, None)
    assert "(without --max-results and with 3)" in note


def test_replaced_images_are_counted(root: Root) -> None:
    night(root, "n1", numbered(6, cats=2), etags="x")
    night(root, "n2", numbered(6, cats=2), days=1, etags="y")
    comparison = batchcl.compare(str(root))
    assert comparison.images.replaced == 6
    assert any("another ETag" in note for note in comparison.notes)


def test_a_night_without_images_is_not_an_error(root: Root) -> None:
    night(root, "n1", numbered(6, cats=2))
    night(root, "n2", {}, days=1)
    comparison = batchcl.compare(str(root))
    assert "side B has no image with a result" in comparison.notes
    assert row_of(comparison, "cat") | {"share_b": None, "change": None, "significant": False} == row_of(
        comparison, "cat"
    )
    assert run(root, "--fail-if", "significant").exit_code == 0
    assert "-" in run(root).stdout


def test_two_empty_sides_have_an_empty_table(root: Root) -> None:
    night(root, "n1", {})
    night(root, "n2", {}, days=1)
    comparison = batchcl.compare(str(root))
    assert comparison.labels.is_empty()
    assert dict(comparison.labels.schema) == dict(LABEL_COLUMNS)
    assert run(root).exit_code == 0


def test_a_condition_that_holds_exits_with_3_after_the_output(root: Root) -> None:
    night(root, "n1", numbered(200, cats=20))
    night(root, "n2", numbered(200, cats=60), days=1)
    condition = "label = 'cat' AND abs(change) > 0.05 AND significant"
    result = run(root, "--fail-if", condition, "--json")
    assert result.exit_code == 3
    assert orjson.loads(result.stdout)["failing"] == ["cat"]
    sentence = result.stderr.splitlines()[-1]
    assert sentence == (f"batchcl: --fail-if {condition!r} holds for 1 label: 'cat' (+20.0 points)")
    quiet = run(root, "--fail-if", "label = 'dog' AND significant", "--json")
    assert (quiet.exit_code, orjson.loads(quiet.stdout)["failing"]) == (0, [])


def test_a_matrix_of_top_labels_is_shown_if_it_fits(root: Root) -> None:
    night(root, "n1", {number: ["dog"] for number in range(20)})
    night(root, "n2", {number: [("cat", "dog", "A ╲ B")[number % 3]] for number in range(20)}, days=1)
    night(root, "n3", {number: [f"dog {number}"] for number in range(20)}, days=2)
    night(root, "n4", {number: ["dog"] for number in range(20)}, days=3)
    assert "(rows)" not in run(root, "n1", "n2").stdout
    assert "(rows)" not in run(root, "n1", "n3").stdout
    lines = run(root, "n3", "n4").stdout.splitlines()
    title = lines.index("Images by top label in A (rows) and B (columns)")
    assert [line.split() for line in lines[title + 1 : title + 3]] == [["A", "╲", "B", "dog"], ["dog", "0", "1"]]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("chance > 0.05", ", ".join(LABEL_COLUMNS)),
        ("change", "write a comparison such as significant AND abs(change) > 0.05"),
        (" ", "--fail-if is empty"),
        ("label IN (SELECT * FROM read_csv('/etc/passwd'))", "SELECT is not allowed"),
        ("read_csv('/etc/passwd')", "the function read_csv is not allowed"),
        ("change > 0.05; DROP TABLE labels", "not allowed"),
    ],
)
def test_a_bad_condition_is_refused_before_anything_is_read(tmp_path: Path, condition: str, expected: str) -> None:
    sentence = refused(tmp_path / "nowhere", "--fail-if", condition)
    assert sentence.startswith("--fail-if ")
    assert expected in sentence


def test_conditions_see_every_column_of_the_table(nights: Root) -> None:
    labels = batchcl.compare(str(nights), "n1", "n2").labels
    assert dict(labels.schema) == dict(LABEL_COLUMNS)
    for name in labels.columns:
        assert len(fail_condition(f"{name} IS NOT NULL").matches(labels)) == labels.height


def test_programs_get_numbers_and_people_a_table(root: Root) -> None:
    night(root, "n1", {number: [HOSTILE, "dog"] for number in range(10)})
    night(root, "n2", {number: ["dog"] for number in range(10)}, days=1)
    answer = orjson.loads(run(root, "--json").stdout)
    assert list(answer) == ["a", "b", "images", "labels", "top_labels", "notes"]
    assert answer["labels"][0] | {"label": HOSTILE, "images_b": 0, "presence": "disappeared"} == answer["labels"][0]
    rows = list(csv.DictReader(io.StringIO(run(root, "--csv").stdout)))
    assert [rows[0]["label"], rows[0]["significant"], list(rows[0])] == [HOSTILE, "true", list(LABEL_COLUMNS)]
    shown = run(root, "--fail-if", "significant")
    assert "\x1b" not in shown.stdout + shown.stderr
    assert r"\x1b[31mcat\n[red]<script>" in shown.stdout
    assert r"\x1b[31mcat\n[red]<script>" in shown.stderr
    assert "The top label of 10 of 10 images (100.0%) differs" in shown.stdout
    assert "--json and --csv" in refused(root, "--json", "--csv")


def test_without_scipy_one_sentence_says_what_to_install(nights: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert refused(nights) == "compare needs scipy; install it with: pip install 'batchcl[analysis]'"


PAGE = Path(__file__).parents[3] / "docs" / "compare.md"
_BLOCK = re.compile(r"^```\n\$ batchcl (?P<command>[^\n]+)\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def documented_root(path: Path) -> None:
    """The root of docs/compare.md: four nights of new images, and the last one scored again with a retrained model."""
    (path / "out").mkdir()
    root, chance = Root(path / "out"), Random(20261127)
    names = ("scratch", "dent", "defect", "stain")
    chances = [{name: chance.random() for name in names} for _ in range(4000)]

    def labels(first: int, *shares: float) -> dict[int, list[str]]:
        limits = dict(zip(names, shares, strict=False))
        return {
            number: [name for name, limit in limits.items() if chances[number][name] < limit]
            for number in range(first, first + 1000)
        }

    for days in range(4):
        date = (AT + dt.timedelta(days=days)).date().isoformat()
        found = labels(1000 * days, 0.3, 0.2, 0.16 if days == 3 else 0.1)
        night(root, date, found, days=days, model="parts@v1", confidence=72.0)
    night(root, "v2", labels(3000, 0.28, 0.2, 0.155, 0.02), days=4, model="parts@v2", confidence=75.5)


def test_the_page_shows_real_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = list(_BLOCK.finditer(PAGE.read_text()))
    assert len(blocks) == 2
    for block in blocks:
        result = run(*shlex.split(block["command"])[1:])
        expected = block["output"] + ("[exit code: 3]\n" if result.exit_code else "")
        shown = result.stdout + result.stderr + ("[exit code: 3]\n" if result.exit_code else "")
        assert _NUMBER.sub("0", shown) == _NUMBER.sub("0", expected)
        numbers, documented = (
            [float(each.replace(",", "")) for each in _NUMBER.findall(text)] for text in (shown, expected)
        )
        assert numbers == pytest.approx(documented, abs=0.1)
