"""What a run says at its end."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

from batchcl.cli.local_emulator import emulator_options
from batchcl.cli.run import finish
from batchcl.errors import ExitCode
from batchcl.summary import Summary

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def said(
    capsys: pytest.CaptureFixture[str],
    *,
    scored: int,
    failed: int,
    tolerated: bool = True,
    retryable: int | None = 0,
    fittable: int | None = 0,
    options: Sequence[str] = (),
) -> tuple[int, str]:
    """The exit code, and the lines on stderr behind the first one."""
    summary = Summary(
        run_id="r",
        status="done",
        planned=scored + failed,
        scored=scored,
        failed=failed,
        skipped=0,
        calls=scored + failed,
        throttled=0,
        seconds=1.0,
        images_per_second=1.0,
        out="/out",
        model="cats@v1",
        started_at=NOON,
        ended_at=NOON,
        tolerated=tolerated,
        retryable=retryable,
        fittable=fittable,
    )
    code = 0
    try:
        finish(lambda: summary, json=False, log_format=None, options=options)
    except typer.Exit as end:
        code = end.exit_code
    return code, capsys.readouterr().err.partition("\n")[2]


def test_the_table_is_named_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, end = said(capsys, scored=1, failed=0)
    assert (code, end) == (0, "batchcl: results are in /out/results; query them with `batchcl labels /out`\n")


def test_without_a_scored_image_the_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, end = said(capsys, scored=0, failed=1, tolerated=False)
    assert code == ExitCode.FAILURES
    assert end.startswith(
        "batchcl: no image was scored; list the reasons with `batchcl failures /out --run r`\nbatchcl: 1 image fa"
    )


def test_a_run_without_images_names_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, scored=0, failed=0) == (0, "")


@pytest.mark.parametrize(
    ("retryable", "fittable", "advice"),
    [
        (0, 0, "; a retry would fail again"),
        (2, 0, "; run `batchcl retry /out r` to retry 2 images"),
        (0, 3, "; run `batchcl retry /out r --fit` to retry 3 images"),
        (2, 3, "; run `batchcl retry /out r` to retry 2 images or `batchcl retry /out r --fit` to retry 3 images"),
        (None, None, ""),
    ],
)
def test_a_retry_is_recommended_only_where_images_may_succeed(
    capsys: pytest.CaptureFixture[str], retryable: int | None, fittable: int | None, advice: str
) -> None:
    code, end = said(capsys, scored=1, failed=5, tolerated=False, retryable=retryable, fittable=fittable)
    assert code == ExitCode.FAILURES
    assert end.endswith(f"5 images failed, more than tolerated; list them with `batchcl failures /out`{advice}\n")


def test_the_command_that_retries_uses_the_same_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    options = emulator_options(emulator=True, state=Path("state"))
    _, end = said(capsys, scored=1, failed=1, tolerated=False, retryable=0, fittable=1, options=options)
    assert "run `batchcl retry /out r --fit --emulator --emulator-state state` to retry 1 image" in end
    assert emulator_options(emulator=True, state=None) == ["--emulator"]
    assert emulator_options(emulator=False, state=Path("state")) == []
