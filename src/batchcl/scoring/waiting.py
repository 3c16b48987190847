"""`--if-held wait`: wait while another process works on the run, follow its progress, and take over if necessary.

    waiting ── the holder completes the run ───────────────────────▶ its summary
       │ ▲
       │ └─── another process was faster (HeldError) ─────────┐
       │                                                      │
       ├───── the holder dies, or ends early ───────────▶ attempt ──▶ the run's own end
       │
       ├───── the holder ended at a limit that this job has, too ──▶ TooManyFailuresError, StoppedError
       └───── --deadline, a signal, five minutes without the store ▶ StoppedError

A waiting process only reads, at one small file every ten seconds. It holds nothing, so several may wait for the same
run, and for each other's runs: of those that see the same death, the one that creates the next session takes over.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final, Literal

import anyio

from batchcl.choices import IfHeld
from batchcl.errors import HeldError, OutputError, StoppedError
from batchcl.events import Notice, Observer, Progress, Snapshot
from batchcl.job import Job
from batchcl.runs.heartbeat import snapshot_of
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import EXPIRES_S, HolderState, LeaseFollower, RunLease
from batchcl.runs.record import read_summary
from batchcl.runs.store import Store
from batchcl.scoring.bounds import exceeded_bound
from batchcl.scoring.run_lease import OWNS_MODEL
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

__all__ = ["FollowedProgress", "Waiter", "summary_of_session"]

_RECORDS_S: Final = 15.0
"""How long after its end a session may write its summary."""

_CHECK_RECORDS_EVERY_S: Final = 1.0


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


async def summary_of_session(store: Store, run_id: str, lease: RunLease) -> Summary | None:
    """Return the summary of the run if the session has written it, or a later one; None if not."""
    summary = await read_summary(store, run_id)
    is_included = summary is not None and any(each.number == lease.number for each in summary.sessions)
    return summary if is_included else None


async def _never() -> bool:
    return False


@dataclass(kw_only=True)
class Waiter:
    """Attempts a run once no other process works on it; without `--if-held wait`, at once.

    Attributes:
        job: `if_held` and the limits.
        store: the output root.
        run_id: of the run; None while it has none.
        observer: receives the progress of the process that holds the run, and notices.
        stop_signal: ends the waiting.
        begun_at: start of the command on the loop's clock; the deadline is counted from here.
        read_end: returns the summary that an ended session of the run has written; None before that.
        is_done: whether the attempt needs no lease, although another process may hold it.
        dead: the run's last session, which was found dead just now; None if there is none.
        followed: the last session of the run that was waited for; None if there was none.
    """

    job: Job
    store: Store
    run_id: str | None
    observer: Observer
    stop_signal: StopSignal
    begun_at: float
    read_end: Callable[[RunLease], Awaitable[Summary | None]]
    is_done: Callable[[], Awaitable[bool]] = _never
    dead: RunLease | None = None
    followed: RunLease | None = None

    async def run(self, attempt: Callable[[], Awaitable[Summary]]) -> Summary:
        """Await `attempt`, as soon and as often as no other process holds the run, and return its result.

        Raises:
            HeldError: another process holds the run, and the job doesn't wait for it.
            StoppedError: a limit of the job was reached while it waited, or by the process that it waited for.
        """
        if self.job.if_held is IfHeld.FAIL:
            return await attempt()
        if self.run_id is not None:
            with self.stop_signal.interruptible():
                is_done = await self.is_done()
            if not is_done:
                await self._wait(RunPaths(self.run_id).sessions)
        while True:
            try:
                return await attempt()
            except HeldError as held:
                sessions = held.sessions
            await self._wait(sessions)

    async def _wait(self, sessions: str) -> None:
        """Wait until the session in the folder `sessions` has ended or its process is dead."""
        self.dead = None
        follower = LeaseFollower(self.store, sessions)
        ends_at = math.inf if self.job.deadline_s is None else self.begun_at + self.job.deadline_s
        with self.stop_signal.interruptible(), anyio.CancelScope(deadline=ends_at) as scope:
            await self._follow(follower, is_own=self.run_id is not None and sessions == RunPaths(self.run_id).sessions)
        if scope.cancelled_caught:
            holder = "" if follower.lease is None else f" for process {follower.lease.process_name}"
            raise StoppedError(f"the deadline of {self.job.deadline} has passed while waiting{holder}")

    async def _follow(self, follower: LeaseFollower, *, is_own: bool) -> None:
        progress: FollowedProgress | None = None
        reporter = _HolderReporter(self.observer, self.store, is_own=is_own)
        while True:
            try:
                state = await follower.read()
            except OutputError as error:
                if follower.lease is None:
                    raise
                text = f"waiting for process {follower.lease.process_name} failed: {error}; repeat the command"
                raise StoppedError(text) from error
            lease = follower.lease
            if lease is None:
                return
            if is_own and (last := snapshot_of(lease.progress)) is not None:
                if progress is not None:
                    progress.update(last)
                elif state not in _OVER:
                    progress = FollowedProgress(last)
                    self.observer.started(progress)
            if state in _OVER and not reporter.has_reported:  # at the first read
                self.dead = lease if is_own and state is HolderState.DEAD else None
                return
            reporter.report(follower)
            if state in _OVER:
                break
            await follower.wait()
        if not is_own:
            return
        self.followed = lease
        if state is HolderState.DEAD:
            self.dead = lease
        else:
            self._check_limits(lease, progress, await self._read_end(lease))

    async def _read_end(self, lease: RunLease) -> Summary | None:
        """The summary of an ended session, which is written after its end; None if it doesn't come."""
        give_up_at = anyio.current_time() + _RECORDS_S
        while True:
            with suppress(OutputError):
                if (summary := await self.read_end(lease)) is not None:
                    return summary
            if anyio.current_time() >= give_up_at:
                return None
            await anyio.sleep(_CHECK_RECORDS_EVERY_S)

    def _check_limits(self, lease: RunLease, progress: FollowedProgress | None, summary: Summary | None) -> None:
        """Raise the error of a limit that the ended session has reached: another session would end at it, too.

        Not if that session left the model running: then this process takes over and stops the model.
        """
        if progress is None or lease.progress.get(OWNS_MODEL) or (summary is not None and summary.status == "done"):
            return
        counts = summary if summary is not None and lease.progress.get("round") else progress
        elapsed_s = anyio.current_time() - self.begun_at
        reached = exceeded_bound(self.job, progress, elapsed_s=elapsed_s, called=counts.scored + counts.failed)
        if reached is not None:
            reached.summary = summary
            raise reached


_OVER: Final = frozenset({HolderState.DEAD, HolderState.ENDED})


class _HolderReporter:
    """Reports each change of the process that is waited for.

    Attributes:
        has_reported: whether there was something to report.
    """

    def __init__(self, observer: Observer, store: Store, *, is_own: bool) -> None:
        self._observer = observer
        self._store = store
        self._is_own = is_own
        self._last: tuple[str, bool, HolderState | None] | None = None

    @property
    def has_reported(self) -> bool:
        return self._last is not None

    def report(self, follower: LeaseFollower) -> None:
        lease = follower.lease
        assert lease is not None
        now = (lease.holder, follower.failure is not None, follower.state)
        if now == self._last:
            return
        last, self._last = self._last, now
        who = f"process {lease.process_name}"
        if follower.failure is not None:
            self._notice("holder-unknown", f"the state of {who} is unknown: {follower.failure}; retrying", "warning")
        elif follower.state is HolderState.SILENT:
            text = f"no heartbeat of {who} for {follower.silent_s():.0f} s; after {EXPIRES_S:.0f} s it counts as dead"
            self._notice("holder-silent", text, "warning")
        elif follower.state is HolderState.DEAD:
            action = "; taking over its run" if self._is_own else ""
            self._notice("holder-dead", f"{who} is dead{action}", "warning")
        elif follower.state is HolderState.ENDED:
            self._notice("holder-ended", f"{who} has ended")
        elif last is None or last[0] != lease.holder:
            what = "is working on the run; following it" if self._is_own else "may score the same images; waiting"
            self._notice("waiting", f"{who} {what}")
        else:
            self._notice("holder-alive", f"{who} is alive")

    def _notice(self, kind: str, text: str, level: Literal["info", "warning"] = "info") -> None:
        self._observer.notice(Notice(kind, text, level=level))
