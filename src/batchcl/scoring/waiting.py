"""`--if-held wait`: wait while another process works on the run, follow its progress, and take over if necessary.

    waiting ── the holder completes the run ───────────────────────▶ its summary
       │ ▲
       │ └─── another process was faster (HeldError) ─────────┐
       │                                                      │
       ├───── the holder dies, or ends early ───────────▶ attempt ──▶ the run's own end
       │
       ├───── the holder ended at a limit that this job has, too ──▶ TooManyFailuresError, StoppedError
       └───── --deadline, a signal, five minutes without the store ▶ StoppedError

A waiting process only reads: one small file every ten seconds. It holds no lease, so several processes may wait for the
same run, or for each other's runs. Of those that find the holder dead, the one that creates the next session takes
over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import anyio

from batchcl.choices import IfHeld
from batchcl.errors import ErrorCode, HeldError, OutputError, StoppedError
from batchcl.events import Observer, Progress
from batchcl.job import Job
from batchcl.runs.following import OVER, RECORDS_S, HolderReporter, HolderState, LeaseFollower
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLease
from batchcl.runs.store import Store
from batchcl.scoring.bounds import exceeded_bound
from batchcl.scoring.run_lease import OWNS_MODEL
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

__all__ = ["Waiter"]

_CHECK_RECORDS_EVERY_S: Final = 1.0


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
        ends_at: the deadline on the loop's clock.
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
    ends_at: float
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
        with self.stop_signal.interruptible(), anyio.CancelScope(deadline=self.ends_at) as scope:
            await self._follow(follower, is_own=self.run_id is not None and sessions == RunPaths(self.run_id).sessions)
        if scope.cancelled_caught:
            holder = "" if follower.lease is None else f" for process {follower.lease.process_name}"
            raise StoppedError(
                f"the deadline of {self.job.deadline} has passed while waiting{holder}", code=ErrorCode.DEADLINE_REACHED
            )

    async def _follow(self, follower: LeaseFollower, *, is_own: bool) -> None:
        alive = "is working on the run; following it" if is_own else "may score the same images; waiting for its end"
        dead = "is dead; taking over its run" if is_own else "is dead"
        reporter = HolderReporter(self.observer, alive=alive, dead=dead, has_progress=is_own)
        while (state := await follower.read()) not in OVER or reporter.has_reported:
            if state is None:
                return
            reporter.report(follower)
            if state in OVER:
                break
            await follower.wait()
        lease = follower.lease
        if not is_own or lease is None:
            return
        self.dead = lease if state is HolderState.DEAD else None
        if reporter.has_reported:
            self.followed = lease
            if state is HolderState.ENDED:
                self._check_limits(lease, reporter.progress, await self._read_end(lease))

    async def _read_end(self, lease: RunLease) -> Summary | None:
        """The summary of an ended session, which is written after its end; None if it isn't written in time."""
        give_up_at = anyio.current_time() + RECORDS_S
        while True:
            with suppress(OutputError):
                if (summary := await self.read_end(lease)) is not None:
                    return summary
            if anyio.current_time() >= give_up_at:
                return None
            await anyio.sleep(_CHECK_RECORDS_EVERY_S)

    def _check_limits(self, lease: RunLease, progress: Progress | None, summary: Summary | None) -> None:
        """Raise the error of a limit that the ended session has reached: another session would end at it, too.

        Not if that session left the model running: then this process takes over and stops the model.
        """
        if progress is None or lease.progress.get(OWNS_MODEL) or (summary is not None and summary.status == "done"):
            return
        counts = summary if summary is not None and lease.progress.get("round") else progress
        left_s = self.ends_at - anyio.current_time()
        reached = exceeded_bound(self.job, progress, left_s=left_s, called=counts.scored + counts.failed)
        if reached is not None:
            reached.summary = summary
            raise reached
