"""Polars' streaming engine has native threads with known, rare races: nothing of the package runs on it.

It runs what is collected without another engine, and whatever polars itself reads from a file or writes in a format.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchcl
from batchcl.outcomes import Label
from unit.analysis.conftest import Root, failed, scored

SOURCES = sorted(Path(batchcl.__file__).parent.rglob("*.py"))
COLLECTING = {"collect", "collect_async", "collect_all", "collect_batches", "profile", "fetch"}
FORMATS = re.compile(r"(scan|sink)_.+|(read|write)_(avro|clipboard|csv|database|delta|excel|ipc|json|ndjson|parquet).*")


def calls_of_the_streaming_engine(code: str) -> Iterator[int]:
    """The lines of calls that collect a lazy frame without saying `engine="in-memory"`, or read or write a format."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {each.arg: each.value for each in node.keywords}
        name = node.func.attr
        collects = name in COLLECTING and not node.args and ast.unparse(node.func) != "gc.collect"
        in_memory = "engine" in given and ast.unparse(given["engine"]) == "'in-memory'"
        if (collects and not in_memory) or FORMATS.fullmatch(name) or "eager" in given:
            yield node.lineno


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("frame.collect()", [1]),
        ("frame.collect(engine='streaming')", [1]),
        ("x = 1\ncontext.execute(sql, eager=True)", [2]),
        ("frame.sink_parquet(path)", [1]),
        ("frame.write_csv()", [1]),
        ("pl.read_parquet(path)", [1]),
        ("pl.scan_pyarrow_dataset(files)", [1]),
        ("pq.read_table(path)\npq.write_table(table, path)", []),
        ("frame.collect(engine='in-memory')", []),
        ("gc.collect()", []),
    ],
)
def test_what_is_looked_for_is_found(code: str, lines: list[int]) -> None:
    assert list(calls_of_the_streaming_engine(code)) == lines


def test_nothing_calls_the_streaming_engine() -> None:
    found = {str(path): list(calls_of_the_streaming_engine(path.read_text())) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}


READING = """
import sys
from pathlib import Path

import polars as pl

from batchcl import open_results
from batchcl.analysis.query import query
from batchcl.cli.app import app


def is_streaming():
    return any("async-executor" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


root, truth = sys.argv[1:]
results = open_results(root)
for frame in (results.images(), results.detections(), results.failures(), results.runs()):
    frame.collect(engine="in-memory")
query(results, "SELECT label, COUNT(*), AVG(confidence) FROM detections d JOIN results r ON r.uri = d.uri GROUP BY 1")
query(results, "SELECT label, COUNT(*) AS detections FROM detections GROUP BY label")
query(results, "SELECT * FROM failures WHERE date = '2026-11-21'")
sides = ["compare", root, "date:2026-11-20", "date:2026-11-21"]
for command in (
    ["labels", root],
    ["confidence", root],
    ["confidence", root, "--per-label"],
    ["failures", root, "--csv"],
    ["runs", root, "--json"],
    ["evaluate", root, "--truth", truth],
    ["thresholds", root, "--truth", truth],
    [*sides, "--images", "common"],
    [*sides, "--images", "all"],
):
    app(command, standalone_mode=False)
    print(command, is_streaming(), file=sys.stderr)
before = is_streaming()
pl.DataFrame({"a": [1]}).write_csv()
sys.exit(f"before: {before}, after: {is_streaming()}")
"""
"""What reads an output root, and then a call that does start the engine's threads."""

IMAGES = 5000
"""polars aggregates fewer than 1,000 rows without these threads."""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
def test_reading_a_root_starts_no_thread_of_that_engine(tmp_path: Path) -> None:
    root = Root(tmp_path / "out")
    for date in ("2026-11-20", "2026-11-21"):
        rows = (
            scored(f"s3://b/{number}", Label(f"l{number % 5}", number % 100 + 0.5), Label("x", number % 90 + 0.5))
            for number in range(IMAGES)
        )
        root.results(*rows, date=date, run_id=date, min_confidence=0)
    root.failures([failed(f"s3://b/-{number}") for number in range(IMAGES)], first=1)
    truth = tmp_path / "truth.manifest"
    about = {"class-name": "x", "type": "groundtruth/image-classification", "confidence": 1}
    lines = [{"source-ref": f"s3://b/{number}", "label": 0, "label-metadata": about} for number in range(IMAGES)]
    truth.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-c", READING, root.path, truth], capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("before: False, after: True\n")
