"""Progress of a run on stderr: one live line on a terminal, else a log line every ten seconds."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import anyio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchcl.cli.options import LogFormat
from batchcl.cli.streams import log
from batchcl.events import Notice, Observer, Progress, Snapshot

__all__ = ["reporting"]

_LOG_EVERY_S = 10.0
_DRAW_EVERY_S = 0.25


@asynccontextmanager
async def reporting(log_format: LogFormat | None) -> AsyncIterator[Observer]:
    """An observer that reports to stderr during the block."""
    reporter: _Reporter = _LiveLine() if log_format is None and sys.stderr.isatty() else _Log()

    async def tick_regularly() -> None:
        while True:
            await anyio.sleep(reporter.every_s)
            with suppress(Exception):  # a stream that fails never ends a run
                reporter.tick(anyio.current_time())

    error: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(tick_regularly)
        try:
            yield reporter
        except Exception as raised:  # noqa: BLE001 - raised again below, outside the group that would wrap it
            error = raised
        with suppress(Exception):
            reporter.close()
        group.cancel_scope.cancel()
    if error is not None:
        raise error


class _Reporter(Observer, Protocol):
    every_s: float

    def tick(self, now: float) -> None: ...

    def close(self) -> None: ...


class _LiveLine:
    """One line at the bottom of the terminal; notices scroll above it."""

    every_s = _DRAW_EVERY_S

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(Text(""), console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        self._progress = progress

    def notice(self, notice: Notice) -> None:
        self._console.print(Text(notice.text))

    def tick(self, now: float) -> None:
        if self._progress is not None:
            self._live.update(
                Text(_line(self._progress.snapshot(now)), no_wrap=True, overflow="ellipsis"), refresh=True
            )

    def close(self) -> None:
        self._live.stop()


class _Log:
    """One line per notice, and one with the counters every ten seconds."""

    every_s = _LOG_EVERY_S

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        self._progress = progress

    def notice(self, notice: Notice) -> None:
        log(notice.kind, notice.text, level=notice.level, fields=notice.fields)

    def tick(self, now: float) -> None:
        if self._progress is not None:
            snapshot = self._progress.snapshot(now)
            log("progress", _line(snapshot), fields=_fields(snapshot))

    def close(self) -> None:
        """Nothing to restore."""


def _line(now: Snapshot) -> str:
    """One line: done/total, images/s, throttled, failed, remaining time, dollars."""
    total = f"{now.planned:,}" if now.listed else f"{now.planned:,}+"
    parts = [f"{now.done:,}/{total} images", f"{now.images_per_second:.1f}/s", f"{now.throttled_share:.1%} throttled"]
    parts.append(f"{now.failed:,} failed")
    if now.skipped:
        parts.append(f"{now.skipped:,} skipped")
    parts.append("ETA ?" if now.eta_s is None else f"ETA {dt.timedelta(seconds=round(now.eta_s))}")
    if now.dollars is not None:
        parts.append(f"${now.dollars:.2f}")
    return "  ".join(parts)


def _fields(now: Snapshot) -> dict[str, Any]:
    names = ("planned", "listed", "scored", "failed", "skipped", "calls", "throttled", "in_flight")
    return {name: getattr(now, name) for name in names} | {
        "images_per_second": round(now.images_per_second, 2),
        "rate_tps": round(now.rate_tps, 2),
        "eta_s": None if now.eta_s is None else round(now.eta_s, 1),
        "dollars": None if now.dollars is None else round(now.dollars, 4),
    }
