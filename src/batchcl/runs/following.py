"""Follows the process that holds a run, from the output root: whether it is alive, and its counters."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Final

import anyio

from batchcl.errors import OutputError, StoppedError
from batchcl.events import Notice, Observer, Progress, Snapshot
from batchcl.runs.heartbeat import snapshot_of
from batchcl.runs.lease import EXPIRES_S, HEARTBEAT_S, RunLease, read_lease, read_session, session_path
from batchcl.runs.store import Store

__all__ = ["OVER", "RECORDS_S", "FollowedProgress", "HolderReporter", "HolderState", "LeaseFollower"]

_FOLLOW_EVERY_S: Final = HEARTBEAT_S
_SILENT_S: Final = 2 * HEARTBEAT_S
_CHECK_PROCESS_EVERY_S: Final = 1.0
_OUTAGE_S: Final = 300.0
"""The same time for which credentials may fail."""

RECORDS_S: Final = 15.0
"""How long after its end a session may write its summary."""


class HolderState(Enum):
    """What successive reads of a session say about its process.

                        a heartbeat
             ┌──────────────────────────────┐
             ▼         none for 20 s        │    none for 45 s, or
           ALIVE ───────────────────────▶ SILENT ─────────────────▶ DEAD ──▶ ALIVE: it was suspended,
             │                              │    its process is gone          or another session follows
             └────────▶ ENDED ◀─────────────┘

    A process that this one can see is never DEAD while it runs. Time in which the store can't be read doesn't count.
    """

    ALIVE = "alive"
    SILENT = "silent"
    DEAD = "dead"
    ENDED = "ended"


class LeaseFollower:
    """Follows the newest session below a folder, at one small read each time. Never writes.

    Args:
        store: the output root.
        folder: of the sessions.
        every_s: seconds between two reads.

    Attributes:
        lease: the session as last read; None before the first read, or if there is none.
        state: of its process.
        failure: why the last read failed; None if it didn't.
    """

    def __init__(self, store: Store, folder: str, *, every_s: float = _FOLLOW_EVERY_S) -> None:
        self._store = store
        self._folder = folder
        self._every_s = every_s
        self.lease: RunLease | None = None
        self.state: HolderState | None = None
        self.failure: OutputError | None = None
        self._unchanged_since = 0.0
        self._failing_since: float | None = None

    def silent_s(self) -> float:
        """Seconds since the counter of heartbeats was first seen to have its value, by this process's clock."""
        return anyio.current_time() - self._unchanged_since

    async def read(self) -> HolderState | None:
        """Read the session, or a newer one if it is over; None if there is none.

        Raises:
            OutputError: the first read failed.
            StoppedError: reads have failed for five minutes.
        """
        requested_at = anyio.current_time()  # before the read, as this process may be suspended during it
        try:
            await self._read(requested_at)
        except OutputError as error:
            self._failing_since = requested_at if self._failing_since is None else self._failing_since
            if self.lease is None:
                raise
            if requested_at - self._failing_since >= _OUTAGE_S:
                text = f"following process {self.lease.process_name} failed: {error}; repeat the command"
                raise StoppedError(text) from error
            self.failure = error
            self._unchanged_since = anyio.current_time()  # the holder can't write either
            self.state = HolderState.SILENT
        else:
            self.failure = self._failing_since = None
        return self.state

    async def wait(self) -> None:
        """Wait until the next read is due. A process that this one can see is checked each second meanwhile."""
        until = anyio.current_time() + self._every_s
        is_over = self.state in {HolderState.DEAD, HolderState.ENDED}
        while (left_s := until - anyio.current_time()) > 0:
            await anyio.sleep(min(left_s, _CHECK_PROCESS_EVERY_S))
            if not is_over and self.lease is not None and self.lease.process_is_alive is False:
                return

    async def _read(self, requested_at: float) -> None:
        if self.lease is not None:
            self._update(await read_session(self._store, session_path(self._folder, self.lease.number)), requested_at)
            if self.state not in {HolderState.DEAD, HolderState.ENDED}:
                return
        newest = await read_lease(self._store, self._folder)
        if newest is not None and (self.lease is None or newest.number > self.lease.number):
            self._update(newest, requested_at)

    def _update(self, lease: RunLease, requested_at: float) -> None:
        last, self.lease = self.lease, lease
        if last is None or (last.number, last.heartbeats) != (lease.number, lease.heartbeats):
            self._unchanged_since = anyio.current_time()
        silent_s, is_alive = requested_at - self._unchanged_since, lease.process_is_alive
        if lease.ended:
            self.state = HolderState.ENDED
        elif is_alive is False or (is_alive is None and silent_s >= EXPIRES_S):
            self.state = HolderState.DEAD
        else:
            self.state = HolderState.SILENT if silent_s >= _SILENT_S else HolderState.ALIVE


class FollowedProgress(Progress):
    """The counters of a run that another process scores, as of its last heartbeat."""

    def __init__(self, last: Snapshot) -> None:
        super().__init__()
        self.update(last)

    def update(self, last: Snapshot) -> None:
        """Replace the counters."""
        self._last = last
        for name, value in asdict(last).items():
            if name in vars(self):
                setattr(self, name, value)

    @property
    def dollars(self) -> float | None:
        """Minimum cost of the model so far; None if that session did not start it."""
        return self._last.dollars

    def snapshot(self, now: float) -> Snapshot:
        """The counters at the last heartbeat."""
        return self._last


OVER: Final = frozenset({HolderState.DEAD, HolderState.ENDED})


class HolderReporter:
    """Reports the counters of the process that is followed, and each change of its state, to an observer.

    Args:
        observer: receives them.
        alive: what the process is doing, such as `is working on the run`.
        dead: what to report when it has died, such as `is dead`.
        has_progress: whether its counters are reported.

    Attributes:
        progress: its counters; None before the first ones.
    """

    def __init__(self, observer: Observer, *, alive: str, dead: str = "is dead", has_progress: bool = True) -> None:
        self._observer = observer
        self._alive = alive
        self._dead = dead
        self._has_progress = has_progress
        self._last: tuple[str, bool, HolderState | None] | None = None
        self.progress: FollowedProgress | None = None

    @property
    def has_reported(self) -> bool:
        """Whether there was something to report."""
        return self._last is not None

    def report(self, follower: LeaseFollower) -> None:
        """Report what the last read of `follower` has changed."""
        assert follower.lease is not None
        self._show(snapshot_of(follower.lease.progress))
        now = (follower.lease.holder, follower.failure is not None, follower.state)
        if now != self._last:
            is_new = self._last is None or self._last[0] != follower.lease.holder
            self._last = now
            self._observer.notice(self._notice(follower, follower.lease, is_new=is_new))

    def _show(self, counters: Snapshot | None) -> None:
        if counters is None or not self._has_progress:
            return
        if self.progress is None:
            self.progress = FollowedProgress(counters)
            self._observer.started(self.progress)
        else:
            self.progress.update(counters)

    def _notice(self, follower: LeaseFollower, lease: RunLease, *, is_new: bool) -> Notice:
        who = f"process {lease.process_name}"
        if follower.failure is not None:
            text = f"the state of {who} is unknown: {follower.failure}; retrying"
            return Notice("holder-unknown", text, level="warning")
        match follower.state:
            case HolderState.SILENT:
                text = f"no heartbeat from {who} for {follower.silent_s():.0f} s"
                if lease.process_is_alive is None:
                    text += f"; after {EXPIRES_S:.0f} s it is considered dead"
                return Notice("holder-silent", text, level="warning")
            case HolderState.DEAD:
                return Notice("holder-dead", f"{who} {self._dead}", level="warning")
            case HolderState.ENDED:
                return Notice("holder-ended", f"{who} has ended")
            case _ if is_new:
                return Notice("holder", f"{who} {self._alive}")
        return Notice("holder-alive", f"heartbeats have resumed: {who} {self._alive}")
