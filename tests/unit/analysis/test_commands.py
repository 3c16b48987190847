"""Output of the reading commands for people and programs."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import polars as pl
import pytest
import typer
from typer.testing import CliRunner, Result

from batchcl.cli import confidence, evaluate, failures, labels, output, query
from batchcl.errors import SourceError, UsageError
from batchcl.outcomes import Label
from commands import Terminal
from servers import CommandResult, aws_env, client, make_bucket
from unit.analysis.test_evaluate import boxes, carrying, line

if TYPE_CHECKING:
    from unit.analysis.conftest import Make, Root

URI = "s3://bucket/" + "long/" * 40 + "łódź.jpg"
HOSTILE = "\x1b[31mcat\n[red]"

app = typer.Typer()
app.command("labels")(labels.labels)
app.command("confidence")(confidence.confidence)
app.command("failures")(failures.failures)
app.command("evaluate")(evaluate.evaluate)
app.command("query")(query.query)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exception is None, result.exception
    return result.stdout


@pytest.fixture
def full(root: Root, make: type[Make]) -> Root:
    root.results(make.scored(URI, Label("dog", 80), Label(HOSTILE, 60)), make.scored("s3://bucket/2", Label("dog", 90)))
    root.failures([make.failed(URI + "x")])
    return root


def test_output_to_a_pipe_is_aligned_and_not_truncated(full: Root) -> None:
    lines = good("query", full, "SELECT label, uri FROM detections ORDER BY confidence").splitlines()
    assert lines[0].split() == ["label", "uri"]
    assert lines[1].endswith(f"  {URI}")
    assert len({line.index("s3://") for line in lines[1:]}) == 1


@pytest.mark.parametrize("column", ["bucket", "nosuch(uri)"])
def test_an_invalid_query_reports_reason_and_columns(full: Root, column: str) -> None:
    refused = run("query", full, f"SELECT uri, {column} FROM detections").exception
    assert isinstance(refused, UsageError)
    reason, _, tables = str(refused).partition(". The tables are ")
    assert reason.startswith("the query failed: un")
    assert [table.partition(" (")[0] for table in tables.split("; ")] == ["results", "detections", "failures", "runs"]
    assert str(refused).isprintable(), "the terminal shows other characters as escapes"


def test_control_characters_of_labels_never_reach_the_terminal(full: Root) -> None:
    shown = good("labels", full)
    assert r"\x1b[31mcat\n[red]" in shown
    assert "\x1b" not in shown


def test_control_characters_of_keys_in_an_error_are_escaped(
    root: Root, make: type[Make], tmp_path: Path, cli: Callable[..., CommandResult]
) -> None:
    root.results(make.scored("s3://b/\x1b[31m\u202e.png", Label("cat", 90)))
    truth = tmp_path / "truth.manifest"
    truth.write_bytes(orjson.dumps(line("s3://b/other.png", "cat")))
    refused = cli("evaluate", root, "--truth", truth)
    assert refused.code == 2
    assert r"the 1 results have s3://b/\x1b[31m\u202e.png; the URIs must be equal" in refused.err
    assert refused.sentence.count("\n") == 1


def test_a_root_without_a_scored_image_is_not_evaluated(
    root: Root, make: type[Make], tmp_path: Path, cli: Callable[..., CommandResult]
) -> None:
    root.failures([make.failed("s3://b/a.png")])
    truth = tmp_path / "truth.manifest"
    truth.write_bytes(orjson.dumps(line("s3://b/a.png", "cat")))
    refused = cli("evaluate", root, "--truth", truth)
    assert (refused.code, refused.sentence) == (
        2,
        "batchcl: the results have no scored image; `batchcl failures` lists the reasons\n",
    )


def test_several_models_are_refused_in_one_line(
    root: Root, make: type[Make], tmp_path: Path, cli: Callable[..., CommandResult]
) -> None:
    for model in ("cats@v1", "cats@v2"):
        root.results(make.scored("s3://b/a.png", Label("cat", 90)), model=model)
    truth = tmp_path / "truth.manifest"
    truth.write_bytes(orjson.dumps(line("s3://b/a.png", "cat")))
    for command in (["evaluate", root, "--truth", truth], ["export", "coco", root, "--out", tmp_path / "coco"]):
        refused = cli(*command)
        assert refused.code == 2
        assert refused.sentence.count("\n") == 1
        assert "the results are from 2 models" in refused.err


def test_json_is_one_array_of_objects_with_iso_times(full: Root) -> None:
    rows = orjson.loads(good("query", full, "SELECT * FROM results", "--json"))
    by_uri = {row["uri"]: row for row in rows}
    assert by_uri[URI]["scored_at"] == "2026-11-21T12:00:00+00:00"
    assert by_uri[URI]["date"] == "2026-11-21"
    assert by_uri[URI]["labels"][1]["name"] == HOSTILE
    assert orjson.loads(good("labels", full, "--json"))[0]["label"] == "dog"
    assert orjson.loads(good("failures", full, "--json"))[0]["examples"] == [URI + "x"]


def test_an_empty_result_is_an_empty_array_or_a_header(full: Root) -> None:
    empty = full.path.parent / "empty"
    (empty / "runs").mkdir(parents=True)
    assert orjson.loads(good("labels", empty, "--json")) == []
    assert good("labels", empty, "--csv").startswith("model,label,images")
    assert good("labels", empty).splitlines()[1].startswith("model")


def test_csv_has_the_same_values_with_lists_as_json(full: Root) -> None:
    rows = list(csv.DictReader(io.StringIO(good("query", full, "SELECT * FROM results", "--csv"))))
    row = next(row for row in rows if row["uri"] == URI)
    assert row["scored_at"] == "2026-11-21T12:00:00.000000+00:00"
    assert orjson.loads(row["labels"])[1]["name"] == HOSTILE


def test_two_output_formats_are_refused_before_reading(tmp_path: Path) -> None:
    for name, more in (("labels", ()), ("confidence", ()), ("failures", ()), ("query", ("SELECT 1",))):
        result = run(name, tmp_path / "nowhere", *more, "--json", "--csv")
        assert isinstance(result.exception, UsageError), name


def test_the_histogram_has_bars_in_text_and_numbers_in_json(full: Root) -> None:
    lines = good("confidence", full, "--bins", 10).splitlines()
    assert "3 detections" in lines[0]
    assert sum("█" * 40 in line for line in lines) == 3
    rows = orjson.loads(good("confidence", full, "--bins", 10, "--label", "dog", "--json"))
    assert [row["detections"] for row in rows] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert len(orjson.loads(good("confidence", full, "--per-label", "--json"))) == 40


def test_a_bar_of_a_positive_count_is_never_empty() -> None:
    assert confidence._bar(0, 10) == ""
    assert confidence._bar(1, 1_000_000) == "▏"
    assert confidence._bar(5, 10) == "█" * 20


def write_truth(path: Path, *labels: str) -> Path:
    kind = "groundtruth/image-classification"
    entries = [
        {"source-ref": f"s3://bucket/{at}", "A": 0, "A-metadata": {"class-name": label, "type": kind}}
        for at, label in enumerate(labels)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, entries)) + b"\nbroken\n")
    return path


def test_evaluate_shows_summary_labels_and_confusion(root: Root, make: type[Make], tmp_path: Path) -> None:
    root.results(*(make.scored(f"s3://bucket/{at}", Label("dog", 90)) for at in range(2)))
    truth = write_truth(tmp_path / "t.manifest", "dog", "cat", "gone")
    assert "broken" not in good("evaluate", root, "--truth", truth, "--skip-bad-lines")
    assert run("evaluate", root, "--truth", truth).exception is not None
    shown = good("evaluate", root, "--truth", truth, "--skip-bad-lines")
    assert [line.split() for line in shown.splitlines() if line.startswith(("missing ", "bad_lines", "macro"))] == [
        ["missing", "1"],
        ["bad_lines", "1"],
        ["macro_f1", "0.3333"],
    ]
    assert shown.splitlines()[-2:] == ["cat                 1", "dog                 1"]
    answer = orjson.loads(good("evaluate", root, "--truth", truth, "--skip-bad-lines", "--json"))
    assert answer["summary"]["images"] == 2
    assert answer["confusion"] == [
        {"truth": "cat", "predicted": "dog", "images": 1},
        {"truth": "dog", "predicted": "dog", "images": 1},
    ]
    assert good("evaluate", root, "--truth", truth, "--skip-bad-lines", "--csv").startswith("label,support")


def test_many_labels_show_the_most_frequent_mistakes(root: Root, make: type[Make], tmp_path: Path) -> None:
    root.results(*(make.scored(f"s3://bucket/{at}", Label(f"found{at}", 90)) for at in range(20)))
    truth = write_truth(tmp_path / "t.manifest", *(f"true{at}" for at in range(20)))
    assert "Most frequent mistakes" in good("evaluate", root, "--truth", truth, "--skip-bad-lines")


def test_a_confusion_with_a_label_called_truth_is_shown(root: Root, make: type[Make], tmp_path: Path) -> None:
    root.results(make.scored("s3://bucket/0", Label("truth", 90)))
    truth = write_truth(tmp_path / "t.manifest", "truth")
    assert "most confident label" in good("evaluate", root, "--truth", truth, "--skip-bad-lines")


def at_a_terminal(frame: pl.DataFrame, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    output.emit(frame, title="[bold]T")
    return terminal.getvalue()


def test_a_terminal_shows_the_same_table_if_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "[bold]T\nlabel               n\n\\x1b[31mcat\\n[red]  5\n"
    assert at_a_terminal(pl.DataFrame({"label": [HOSTILE], "n": [5]}), 21, monkeypatch) == table


def test_a_narrow_terminal_shows_one_block_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    scored_at = dt.datetime(2026, 11, 21, 17, 58, 38, 269488, tzinfo=dt.UTC)
    frame = pl.DataFrame({"uri": [URI, "s3://b/2"], "n": [5, 1200], "scored_at": [scored_at, None]})
    assert at_a_terminal(frame, 80, monkeypatch).splitlines() == [
        "[bold]T",
        "-- 1 of 2",
        f"uri        {URI}",
        "n          5",
        "scored_at  2026-11-21T17:58:38Z",
        "-- 2 of 2",
        "uri        s3://b/2",
        "n          1,200",
        "scored_at  -",
    ]
    assert at_a_terminal(frame.clear(), 5, monkeypatch) == "[bold]T\nuri  n  scored_at\n"


def test_booleans_are_yes_or_no_in_text_and_booleans_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_object({"listed": True, "resumable": False})
    assert capsys.readouterr().out == "listed     yes\nresumable  no\n"
    output.emit_object({"listed": True}, json=True)
    assert orjson.loads(capsys.readouterr().out) == {"listed": True}


def test_wide_characters_stay_aligned() -> None:
    assert output._width("日本") == 4
    assert output._width("e\u0301") == 1
    assert output._padded("日本", 6) == "日本  "


def test_importing_the_commands_does_not_import_polars() -> None:
    code = (
        "import sys; from batchcl.cli import labels, confidence, failures, evaluate, query; "
        "sys.exit('polars' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_chained_attributes_of_results_require_a_choice(root: Root) -> None:
    truth = boxes("s3://b/1", ("cat", 10, 20, 30, 40))
    chained = truth | {"C": truth["B"], "C-metadata": truth["B-metadata"]}
    root.results(carrying("s3://b/1", chained, Label("cat", 90, (0.05, 0.2, 0.15, 0.4))))
    refused = run("evaluate", root)
    assert isinstance(refused.exception, SourceError)
    assert "select one with --attribute" in str(refused.exception)
    found = orjson.loads(good("evaluate", root, "--attribute", "C", "--json"))
    assert found["summary"]["mean_average_precision"] == 1.0


def test_the_truth_may_be_a_compressed_object_in_s3(
    root: Root, make: type[Make], moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in aws_env(s3=moto).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files_before = set(tmp_path.iterdir())
    s3 = client("s3", moto)
    make_bucket(s3, "trainings")
    truth = orjson.dumps(line("s3://b/1", "cat")) + b"\n"
    s3.put_object(Bucket="trainings", Key="a/../snapshot.manifest", Body=gzip.compress(truth))
    s3.put_object(Bucket="trainings", Key="bad.manifest", Body=truth + b"{}\n")
    root.results(make.scored("s3://b/1", Label("cat", 90)))
    found = orjson.loads(good("evaluate", root, "--truth", "s3://trainings/a/../snapshot.manifest", "--json"))
    assert (found["summary"]["images"], found["summary"]["macro_f1"]) == (1, 1.0)
    refused = run("evaluate", root, "--truth", "s3://trainings/bad.manifest")
    assert "s3://trainings/bad.manifest, line 2: " in str(refused.exception)
    assert "s3://trainings/none does not exist" in str(
        run("evaluate", root, "--truth", "s3://trainings/none").exception
    )
    assert set(tmp_path.iterdir()) == files_before
