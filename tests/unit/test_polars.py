"""The package never collects with polars' default engine, whose native threads have rare races."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchcl

SOURCES = sorted(Path(batchcl.__file__).parent.rglob("*.py"))
COLLECTING = {"collect", "collect_async", "collect_all", "collect_batches", "profile", "fetch"}


def calls_on_the_default_engine(code: str) -> Iterator[int]:
    """The lines of calls that collect a lazy frame without `engine="in-memory"`."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
        name = node.func.attr
        collects = name in COLLECTING and ast.unparse(node.func) != "gc.collect" and not node.args
        if (collects and given.get("engine") != "'in-memory'") or name.startswith("sink_") or "eager" in given:
            yield node.lineno


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("frame.collect()", [1]),
        ("frame.collect(engine='streaming')", [1]),
        ("x = 1\ncontext.execute(sql, eager=True)", [2]),
        ("frame.sink_parquet(path)", [1]),
        ("frame.collect(engine='in-memory')", []),
        ("gc.collect()", []),
    ],
)
def test_what_is_looked_for_is_found(code: str, lines: list[int]) -> None:
    assert list(calls_on_the_default_engine(code)) == lines


def test_frames_are_collected_in_memory() -> None:
    found = {path.name: list(calls_on_the_default_engine(path.read_text())) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}
