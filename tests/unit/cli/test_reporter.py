"""Progress during a run: how often log lines are written and with which fields, and the notes of the panel."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from unittest.mock import patch

import anyio
import pytest

from batchcl.cli import streams
from batchcl.cli.options import LogFormat
from batchcl.cli.reporter import _fields, _line, _Live, reporting
from batchcl.cli.streams import _Stderr
from batchcl.events import ModelUse, Notice, Progress, Snapshot
from observers import snapshot
from terminals import TerminalScreen
from virtual import run_virtual


async def report_for(seconds: float, log_format: LogFormat | None) -> None:
    async with reporting(log_format) as observer:
        observer.started(Progress())
        await anyio.sleep(seconds)


def lines_per_hour(capsys: pytest.CaptureFixture[str], log_format: LogFormat | None) -> int:
    run_virtual(report_for, 3601, log_format)
    return len(capsys.readouterr().err.splitlines())


def test_text_is_less_frequent_after_ten_minutes(capsys):
    assert lines_per_hour(capsys, None) == 60 + 50
    run_virtual(report_for, 605, None)
    assert len(capsys.readouterr().err.splitlines()) == 60


@pytest.fixture
def json_log():
    streams._is_json = True
    yield
    streams._is_json = False


@pytest.mark.usefixtures("json_log")
def test_json_lines_are_regular_and_have_every_field(capsys):
    run_virtual(report_for, 3601, LogFormat.JSON)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 360
    names = {each.name for each in fields(Snapshot)}
    assert Counter(frozenset(line) for line in lines) == {frozenset(names | {"time", "level", "event", "message"}): 360}
    assert {line["event"] for line in lines} == {"progress"}


def test_fields_have_the_values_of_the_snapshot():
    now = snapshot(dollars=1 / 3, capacity_tps=None)
    found = _fields(now)
    assert found.pop("dollars") == 0.3333
    assert found == {name: pytest.approx(getattr(now, name)) for name in found}


def test_a_text_line():
    assert _line(snapshot()) == (
        "41,206/100,000 images  27.4/s of 28.1/s  1.3% throttled  12 failed  3 skipped  ETA 0:35:43  $3.34"
    )
    waiting = snapshot(scored=0, failed=0, skipped=0, calls=0, eta_s=None, model_status="STARTING", capacity_tps=None)
    assert "  model STARTING  " in _line(waiting)
    assert _line(replace(waiting, listed=False, model_status=None)) == "listing: 100,000 images so far"


def test_an_error_in_the_block_is_raised_unchanged(capsys):
    async def fail() -> None:
        async with reporting(None) as observer:
            observer.notice(Notice("x", "before"))
            raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        run_virtual(fail)
    assert capsys.readouterr().err.endswith("Z before\n")


@contextmanager
def live_panel(columns: int = 80) -> Iterator[tuple[_Live, Progress, Callable[..., list[str]]]]:
    """A live reporter, its progress, and a function that returns the lines of its terminal at a time."""
    screen = TerminalScreen(columns, 10)
    use = ModelUse(status="STARTING", units=1, dollars=0.0)
    progress = Progress(model=lambda: use)

    def at(now: float, status: str = "STARTING") -> list[str]:
        nonlocal use
        use = replace(use, status=status)
        live.tick(now)
        sys.stderr.flush()
        return screen.lines()

    size = patch("batchcl.cli.panel._terminal_size", return_value=(columns, 10))
    with size, patch.object(sys, "stderr", _Stderr(screen)):
        live = _Live()
        live.started(progress)
        yield live, progress, at
        live.close()
    assert columns < 80 or "model" not in screen.lines()[-1]


def test_the_panel_counts_since_when_the_model_has_its_status():
    with live_panel() as (_, progress, at):
        progress.planned, progress.listed = 10, True
        progress.begin(0.0)
        at(5.0)
        assert "model STARTING for 0:12:00" in at(725.0)[-1]
        at(800.0, "RUNNING")
        at(900.0, "STOPPING")
        assert "model STOPPING for 0:00:30" in at(930.0, "STOPPING")[-1]


def test_a_pause_is_shown_until_calls_resume():
    with live_panel() as (live, progress, at):
        progress.planned = progress.calls = 10
        at(0.0)
        live.notice(Notice("paused", "calls paused: the model is not ready"))
        assert [line for line in at(1.0) if "paused" in line] == ["calls paused: the model is not ready"] * 2
        assert at(1.0)[-1].startswith("calls paused")
        live.notice(Notice("resumed", "calls resumed"))
        assert at(2.0)[-1].startswith("model STARTING")


def test_the_other_process_is_named_until_the_run_is_taken_over():
    with live_panel() as (live, progress, at):
        live.notice(Notice("holder", "process 7 on w1 is working on run r; following it"))
        assert at(0.0)[-1] == "process 7 on w1 is working on run r; following it"
        live.notice(Notice("holder-dead", "process 7 on w1 is dead; taking over its run"))
        assert at(1.0)[-1] == "process 7 on w1 is dead; taking over its run"
        live.started(progress)
        assert at(2.0)[-1].startswith("model STARTING")


def test_one_line_keeps_the_counters_of_a_process_that_is_followed():
    with live_panel(columns=50) as (live, progress, at):
        progress.planned, progress.listed = 10, True
        live.notice(Notice("holder", "process 7 on w1 is working on run r"))
        assert "0/10" in at(0.0, "RUNNING")[-1]
        live.notice(Notice("holder-silent", "no heartbeat of process 7 on w1 for 20 s"))
        assert "no heartbeat" in at(1.0, "RUNNING")[-1]
        live.notice(Notice("holder-alive", "heartbeats again: process 7 on w1 is working on run r"))
        assert "0/10" in at(2.0, "RUNNING")[-1]


def test_a_draining_run_has_no_eta():
    with live_panel() as (live, progress, at):
        progress.planned, progress.listed, progress.calls = 10, True, 5
        progress.begin(0.0)
        progress._called = progress.scored = 5
        assert "ETA 0:00:10" in at(10.0)[0]
        live.notice(Notice("drain", "ended by SIGTERM: no more calls are sent"))
        live.notice(Notice("resumed", "calls resumed"))
        lines = at(10.5)
        assert lines[-1] == "ended by SIGTERM: no more calls are sent"
        assert lines[-4].endswith("ETA ?")
