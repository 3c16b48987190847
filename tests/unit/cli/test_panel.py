"""The live panel as text: what it shows at each width, and that it always fits."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from batchcl.cli.panel import render
from batchcl.events import Snapshot
from observers import snapshot

STARTING = snapshot(
    scored=0, failed=0, skipped=0, calls=0, throttled=0, eta_s=None, model_status="STARTING", dollars=0.0
)
LISTING = snapshot(
    listed=False, planned=1_234_567, scored=0, failed=0, skipped=0, calls=0, eta_s=None, model_status=None, dollars=None
)


def lines(now: Snapshot, **options: Any) -> list[str]:
    return render(now, **options).plain.split("\n")


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (20, ["41%  27.4/s"]),
        (30, ["41%  27.4/s  ETA 0:35:43"]),
        (40, ["41%  27.4/s  ETA 0:35:43  12 failed"]),
        (59, ["41%  41,206/100,000  27.4/s  ETA 0:35:43  12 failed  $3.34"]),
        (
            60,
            [
                "━━━━━━━───────────  41%  41,206/100,000 images  ETA 0:35:43",
                "27.4/s  capacity 28.1/s  1.3% throttled  12 failed",
                "model RUNNING  2 units  $3.34  0:25:03 elapsed",
            ],
        ),
        (
            80,
            [
                "━━━━━━━━━━━━━━━───────────────────────  41%  41,206/100,000 images  ETA 0:35:43",
                "27.4/s  capacity 28.1/s  1.3% throttled  12 failed  3 skipped  9 in flight",
                "model RUNNING  2 units  $3.34  0:25:03 elapsed",
            ],
        ),
        (
            200,
            [
                "━━━━━━━━━━━━━━━━━━━━━━━━───────────────────────────────────  41%  41,206/100,000 images  ETA 0:35:43",
                "27.4/s  capacity 28.1/s  1.3% throttled  12 failed  3 skipped  9 in flight",
                "model RUNNING  2 units  $3.34  0:25:03 elapsed",
            ],
        ),
    ],
)
def test_a_run_at_each_width(width, expected):
    assert lines(snapshot(), width=width - 1) == expected


def test_a_terminal_with_few_rows_gets_one_line():
    assert lines(snapshot(), width=79, rows=7) == lines(snapshot(), width=79, rows=7)[:1]
    assert len(lines(snapshot(), width=79, rows=8)) == 3


def test_a_model_that_is_starting():
    assert lines(STARTING, width=79, status_for_s=720) == [
        "─" * 49 + "   0%  0/100,000 images  ETA ?",
        "model STARTING for 0:12:00  2 units  $0.00  usually a few minutes, up to 30",
    ]
    assert lines(STARTING, width=19, status_for_s=720) == ["STARTING 0:12:00"]


def test_a_list_that_grows():
    assert lines(LISTING, width=79) == ["listing: 1,234,567 images so far  0:25:03"]
    assert lines(LISTING, width=19) == ["listing 1,234,567"]
    assert lines(snapshot(listed=False, eta_s=None), width=79)[0] == "41,206/100,000+ images  listing  ETA ?"


def test_cost_and_capacity_that_are_not_known():
    text = render(snapshot(dollars=None, capacity_tps=None), width=79).plain
    assert "capacity unknown" in text
    assert "cost not counted" in text
    assert "$" not in text


def test_slow_and_long_runs():
    text = render(snapshot(images_per_second=0.03, eta_s=200_000.0, planned=12_345_678), width=79).plain
    assert "1.8/min" in text
    assert "/12,345,678 images  ETA 2 d 07:33" in text


def test_only_a_complete_run_has_100_percent():
    assert " 99%" in render(snapshot(scored=99_984), width=79).plain
    assert "100%" in render(snapshot(scored=99_985), width=79).plain


def test_a_note_is_the_last_line_and_replaces_a_single_one():
    assert lines(snapshot(), width=79, note="calls paused")[3:] == ["calls paused"]
    assert lines(snapshot(), width=29, note="ended by SIGTERM: no more calls") == ["41%  ended by SIGTERM: no mo…"]


def test_ascii_output():
    text = render(snapshot(), width=79, note="x" * 200, ascii_only=True).plain
    assert text.isascii()
    assert text.startswith("#####")


@pytest.mark.parametrize("hostile", ["\x1b]0;title\x07", "a\nb", "\r", "\u202eevil", "\x9b2J", "[red]x[/red]"])
def test_notes_and_statuses_are_escaped(hostile):
    text = render(snapshot(model_status=hostile), width=79, note=hostile).plain
    assert len(text.splitlines()) == 4
    assert all(line.isprintable() for line in text.split("\n"))
    if hostile.startswith("[red]"):
        assert text.count(hostile) == 2


_VALUES = {
    "int": st.integers(),
    "bool": st.booleans(),
    "float": st.floats(),
    "float | None": st.none() | st.floats(),
    "int | None": st.none() | st.integers(),
    "str | None": st.none() | st.text(),
}


@given(
    now=st.builds(Snapshot, **{each.name: _VALUES[str(each.type)] for each in fields(Snapshot)}),
    width=st.integers(-1, 250),
    rows=st.integers(0, 60),
    note=st.text(),
    status_for_s=st.none() | st.floats(),
    ascii_only=st.booleans(),
)
def test_any_snapshot_fits_any_terminal(now, width, rows, note, status_for_s, ascii_only):
    text = render(now, width=width, rows=rows, note=note, status_for_s=status_for_s, ascii_only=ascii_only)
    assert isinstance(text, Text)
    drawn = text.plain.split("\n")
    assert max(map(cell_len, drawn)) <= max(1, width)
    assert len(drawn) <= 4
