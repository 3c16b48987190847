"""Progress of a run on stderr: a live panel on a terminal, else log lines."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

import anyio

from batchcl.cli import streams
from batchcl.cli.options import LogFormat
from batchcl.cli.streams import log, printable
from batchcl.events import Notice, Observer, Progress, SilentObserver, Snapshot
from batchcl.quantities import clock_text, rate_text

__all__ = ["reporting"]

_DRAW_EVERY_S: Final = 0.25
_LOG_EVERY_S: Final = 10.0
_LOG_LESS_AFTER_S: Final = 600.0
_LOG_LESS_EVERY_S: Final = 60.0
"""A night of eight hours then has 530 lines, which people can read; JSON lines are for programs and stay regular."""

_DECIMALS: Final = {"elapsed_s": 1, "eta_s": 1, "images_per_second": 2, "rate_tps": 2, "capacity_tps": 2, "dollars": 4}

_NOTES: Final = frozenset(
    {"drain", "paused", "holder", "holder-alive", "holder-silent", "holder-unknown", "holder-dead", "holder-ended"}
)
"""Kinds of notices whose text stays in the panel: they explain what the run waits for."""

_MINOR: Final = frozenset({"holder", "holder-alive"})
"""Notes during which the counters change as usual."""


@asynccontextmanager
async def reporting(log_format: LogFormat | None) -> AsyncIterator[Observer]:
    """An observer that reports to stderr during the block."""
    is_live = log_format is None and streams.can_redraw()
    reporter: _Reporter = _Live() if is_live else _Log(is_regular=log_format is LogFormat.JSON)

    async def tick_regularly() -> None:
        while True:
            await anyio.sleep(reporter.every_s)
            with suppress(Exception):  # a stream that fails never ends a run
                reporter.tick(anyio.current_time())

    error: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(tick_regularly)
        group.start_soon(reporter.handle_suspension)
        try:
            yield reporter
        except Exception as raised:  # noqa: BLE001 - raised again below, outside the group that would wrap it
            error = raised
        finally:
            with suppress(Exception):
                reporter.close()
        group.cancel_scope.cancel()
    if error is not None:
        raise error


class _Reporter(Observer, Protocol):
    every_s: float

    def tick(self, now: float) -> None: ...

    async def handle_suspension(self) -> None: ...

    def close(self) -> None: ...


class _Live(SilentObserver):
    """The panel at the bottom of the terminal; notices scroll above it."""

    every_s = _DRAW_EVERY_S

    def __init__(self) -> None:
        from batchcl.cli.panel import LivePanel

        self._panel = LivePanel()
        self._progress: Progress | None = None
        self._is_draining = False
        self._note = ""
        self._is_minor = False
        self._status: str | None = None
        self._status_since = 0.0

    def started(self, progress: Progress) -> None:
        self._progress = progress
        if not self._is_draining:
            self._note = ""

    def notice(self, notice: Notice) -> None:
        sys.stderr.write(f"{printable(notice.text)}\n")
        if self._is_draining:
            return
        if notice.kind in _NOTES:
            self._note, self._is_minor = notice.text, notice.kind in _MINOR
        elif notice.kind == "resumed":
            self._note = ""
        self._is_draining = notice.kind == "drain"

    def tick(self, now: float) -> None:
        if self._progress is None:
            return
        snapshot = self._progress.snapshot(now)
        if snapshot.model_status != self._status:
            self._status, self._status_since = snapshot.model_status, now
        if self._is_draining:
            snapshot = replace(snapshot, eta_s=None)  # the images that are left are not scored
        self._panel.show(snapshot, note=self._note, is_minor=self._is_minor, status_for_s=now - self._status_since)

    async def handle_suspension(self) -> None:
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
            return  # a shell without job control ignores it
        with anyio.open_signal_receiver(signal.SIGTSTP) as signals:
            async for _ in signals:
                self._panel.suspend()

    def close(self) -> None:
        self._panel.close()


class _Log(SilentObserver):
    """One line per notice, and one with the counters every ten seconds; text is less frequent in a long run.

    Args:
        is_regular: every ten seconds also after ten minutes.
    """

    every_s = _LOG_EVERY_S

    def __init__(self, *, is_regular: bool) -> None:
        self._is_regular = is_regular
        self._progress: Progress | None = None
        self._begun_at: float | None = None
        self._due_at = 0.0

    def started(self, progress: Progress) -> None:
        self._progress = progress

    def notice(self, notice: Notice) -> None:
        log(notice.kind, notice.text, level=notice.level, fields=notice.fields)

    def tick(self, now: float) -> None:
        if self._progress is None:
            return
        if self._begun_at is None:
            self._begun_at = now
        if not self._is_regular and now < self._due_at:
            return
        is_long = now - self._begun_at >= _LOG_LESS_AFTER_S
        self._due_at = now + (_LOG_LESS_EVERY_S if is_long else _LOG_EVERY_S) - _LOG_EVERY_S / 2
        snapshot = self._progress.snapshot(now)
        log("progress", _line(snapshot), fields=_fields(snapshot))

    async def handle_suspension(self) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing to restore."""


def _line(now: Snapshot) -> str:
    """One line: done/total, rate and capacity, throttled, failed, remaining time, model, dollars."""
    if now.is_listing and now.model_status in {None, "RUNNING"}:
        return f"listing: {now.planned:,} images so far"
    capacity = "" if now.capacity_tps is None else f" of {rate_text(now.capacity_tps)}"
    parts = [f"{now.done:,}/{now.planned:,}{'' if now.listed else '+'} images"]
    parts += [f"{rate_text(now.images_per_second)}{capacity}", f"{now.throttled_share:.1%} throttled"]
    parts.append(f"{now.failed:,} failed")
    if now.skipped:
        parts.append(f"{now.skipped:,} skipped")
    parts.append("ETA ?" if now.eta_s is None else f"ETA {clock_text(now.eta_s)}")
    if now.model_status not in {None, "RUNNING"}:
        parts.append(f"model {now.model_status}")
    if now.dollars is not None:
        parts.append(f"${now.dollars:.2f}")
    return "  ".join(parts)


def _fields(now: Snapshot) -> dict[str, Any]:
    """Every field of the snapshot."""
    values = asdict(now)
    return values | {name: round(values[name], n) for name, n in _DECIMALS.items() if values[name] is not None}
