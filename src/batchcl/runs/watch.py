"""Watches a run from its output root, on any machine, until it ends.

Only the newest session file is read, once per interval; the summary and the list of sessions are read when it is over.
Clocks of different machines are never compared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anyio

from batchcl.errors import ErrorCode, UsageError
from batchcl.events import Observer, SilentObserver, Snapshot
from batchcl.runs.following import OVER, RECORDS_S, HolderReporter, HolderState, LeaseFollower
from batchcl.runs.heartbeat import snapshot_of
from batchcl.runs.layout import RunPaths, valid_run_id
from batchcl.runs.lease import HEARTBEAT_S
from batchcl.runs.record import read_summary, summary_of_session
from batchcl.runs.status import newest_run
from batchcl.runs.store import Store
from batchcl.summary import Summary

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

__all__ = ["WatchedRun", "watch_run", "watch_store"]

_CHECK_RECORDS_EVERY_S: Final = 1.0
_TAKEOVER_S: Final = 60.0
"""How long after the death of a process another one may take the run over."""

WatchedState: TypeAlias = Literal["waiting", "running", "interrupted", "stopped", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRun:
    """A run as seen at one moment.

    Attributes:
        state: `waiting`: it has not begun; `running`; `interrupted`: its process died; `stopped`: it ended early; or
            `done`.
        held_by: process and host that work on it, or worked on it last; None before it begins.
        silent_s: seconds without a heartbeat, by this machine's clock since the watch began; 0 if it is not running.
        counters: as of the last heartbeat, of the current session or retry; None before the first one.
        problem: why the output root can't be read at present; None if it can.
        summary: of the run, once it is done or stopped; None if its last process has not written one.
    """

    run_id: str
    state: WatchedState
    held_by: str | None = None
    silent_s: float = 0.0
    counters: Snapshot | None = None
    problem: str | None = None
    summary: Summary | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields, with those of `counters` beside them."""
        counters = {} if self.counters is None else asdict(self.counters)
        reason = None if self.summary is None else self.summary.reason
        return {
            "run_id": self.run_id,
            "state": self.state,
            "held_by": self.held_by,
            "silent_s": round(self.silent_s, 1),
            "problem": self.problem,
            "reason": reason,
            **counters,
        }


async def watch_run(
    root: str,
    run_id: str | None = None,
    *,
    every_s: float = HEARTBEAT_S,
    observer: Observer | None = None,
    aws: Aws | None = None,
) -> AsyncIterator[WatchedRun]:
    """Yield the state of a run at once and then every `every_s` seconds, until it has ended.

    The last state is `done`, `stopped`, or `interrupted` if no process has taken the run over within a minute.

    Args:
        root: the output root.
        run_id: the run, which may begin later; None for the newest one.
        every_s: seconds between two reads; a run writes its heartbeat every ten.
        observer: receives the counters as progress, and a notice for each change.
        aws: session for a root in S3; default: the environment's.

    Raises:
        UsageError: there is no run, and none is named.
        OutputError: the root can't be read.
        StoppedError: the root could not be read for five minutes.
    """
    if aws is None and root.startswith("s3://"):
        from batchcl.aws.session import Aws as Session

        aws = Session.from_environment()
    store = await Store.open_async(root, aws=aws)
    async for watched in watch_store(store, run_id, every_s=every_s, observer=observer):
        yield watched


async def watch_store(
    store: Store, run_id: str | None, *, every_s: float, observer: Observer | None = None
) -> AsyncIterator[WatchedRun]:
    """`watch_run` of an open root."""
    name = await newest_run(store) if run_id is None else valid_run_id(run_id)
    if name is None:
        raise UsageError(
            f"there is no run in {store.root} yet; name the run to wait for its start", code=ErrorCode.NO_SUCH_RUN
        )
    follower = LeaseFollower(store, RunPaths(name).sessions, every_s=every_s)
    reporter = HolderReporter(observer or SilentObserver(), alive=f"is working on run {name}")
    counters: Snapshot | None = None
    over_since: float | None = None
    while True:
        state = await follower.read()
        if follower.lease is None:
            yield WatchedRun(run_id=name, state="waiting")
            await follower.wait()
            continue
        lease = follower.lease
        reporter.report(follower)
        counters = snapshot_of(lease.progress) or counters
        over_since = None if state not in OVER else anyio.current_time() if over_since is None else over_since
        over_s = 0.0 if over_since is None else anyio.current_time() - over_since
        watched = WatchedRun(
            run_id=name,
            state="interrupted" if state is HolderState.DEAD else "running",
            held_by=lease.process_name,
            silent_s=0.0 if state is HolderState.ENDED else follower.silent_s(),
            counters=counters,
            problem=None if follower.failure is None else str(follower.failure),
        )
        if state is HolderState.ENDED:
            summary = await summary_of_session(store, name, lease.number)
            if summary is None and over_s < RECORDS_S and counters is not None:
                await anyio.sleep(_CHECK_RECORDS_EVERY_S)
                continue
            yield _at_end(watched, summary or await read_summary(store, name))
            return
        yield watched
        if over_s >= _TAKEOVER_S:
            return
        await follower.wait()


def _at_end(watched: WatchedRun, summary: Summary | None) -> WatchedRun:
    """The last state; without a summary, the session was that of a recovery, or could not write it."""
    if summary is None:
        return replace(watched, state="interrupted")
    return replace(watched, state="done" if summary.status == "done" else "stopped", summary=summary)
