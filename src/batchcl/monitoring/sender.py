"""Runs a back end in a thread of its own, so that nothing that it does can delay or end a run."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio

from batchcl.monitoring.report import BackEnd, Report

__all__ = ["FLUSH_S", "Sender", "flush"]

FLUSH_S: Final = 2.0
"""Longest time for what is left to send at the end of a run, for all back ends together."""

_MAX_QUEUED: Final = 50


class Sender:
    """Passes reports to a back end, in order. Created and used in an event loop; only the back end runs in the thread.

    The thread is a daemon, because a back end may hang, for example in a name lookup that can't be cancelled: then
    neither the run nor the process waits for it. If the back end is slow, the oldest reports are dropped.

    Attributes:
        back_end: sends the reports.
        failure: why it failed for the first time; None if it has not.
    """

    def __init__(self, back_end: BackEnd) -> None:
        self.back_end = back_end
        self.failure: str | None = None
        self._failed = anyio.Event()
        self._queue: deque[Report] = deque(maxlen=_MAX_QUEUED)
        self._changed = threading.Condition()
        self._is_closing = False
        self._loop = asyncio.get_running_loop()
        self._ended = anyio.Event()
        threading.Thread(target=self._work, name=f"batchcl: {back_end.name}", daemon=True).start()

    def put(self, report: Report) -> None:
        """Queue a report. Does not block."""
        with self._changed:
            if self._queue and self._queue[-1].stage == report.stage == "sample":
                self._queue.pop()
            self._queue.append(report)
            self._changed.notify()

    async def close(self) -> None:
        """Wait until everything that was queued is sent; nothing may be put afterwards."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await self._ended.wait()

    async def wait_failed(self) -> str:
        """Wait until the back end fails; returns the reason."""
        await self._failed.wait()
        return self.failure or ""

    @property
    def has_ended(self) -> bool:
        """Whether `close` has completed."""
        return self._ended.is_set()

    def _work(self) -> None:
        while (report := self._next()) is not None:
            try:
                self.back_end.send(report)
            except BaseException as error:  # noqa: BLE001 - an exporter may raise anything, also SystemExit
                self.failure = self.failure or _reason(error)
                self._call(self._failed.set)
        self._call(self._ended.set)

    def _next(self) -> Report | None:
        with self._changed:
            while not self._queue:
                if self._is_closing:
                    return None
                self._changed.wait()
            return self._queue.popleft()

    def _call(self, act: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the run has ended
            self._loop.call_soon_threadsafe(act)


async def flush(senders: Sequence[Sender], *, max_s: float) -> dict[Sender, str]:
    """Close all senders, for at most `max_s` seconds, shielded from cancellation.

    Returns:
        The senders that have failed at any time or did not finish in time, with the reason.
    """
    with anyio.move_on_after(max_s, shield=True):
        async with anyio.create_task_group() as group:
            for sender in senders:
                group.start_soon(sender.close)
    failures = {}
    for sender in senders:
        if sender.failure is not None:
            failures[sender] = sender.failure
        elif not sender.has_ended:
            failures[sender] = f"not finished within {max_s:.1f} s at the end"
    return failures


def _reason(error: BaseException) -> str:
    """Describe an exception of a back end; only the message of a `SendError` is sure to contain no URL."""
    return str(error) if isinstance(error, SendError) else type(error).__name__


class SendError(Exception):
    """A back end could not send a report; the message contains no secret."""
