"""What the sessions of a root's runs have cost, and how fast their models were."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from batchcl.concurrency import gather
from batchcl.errors import OutputError
from batchcl.runs.layout import RUNS, STARTS, RunPaths, run_of_start
from batchcl.runs.lease import session_numbers
from batchcl.runs.record import read_record, read_sessions, read_summary
from batchcl.runs.store import Store
from batchcl.summary import SessionRecord

__all__ = ["RunSpending", "read_spending"]

_RUNS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpending:
    """The sessions of a run, in order; those that are running or were killed as of their last heartbeat.

    Attributes:
        model_arn: the model.
    """

    run_id: str
    model_arn: str
    started_at: dt.datetime
    sessions: tuple[SessionRecord, ...]


async def read_spending(store: Store, *, newest: int | None = None) -> list[RunSpending]:
    """Read the sessions of all runs, or of the `newest` ones that were started, the oldest run first.

    Runs whose record is corrupt are left out; `batchcl runs` reports them. A run needs two requests, and one more per
    session while it is incomplete.
    """
    names = await store.children(RUNS)
    if newest is not None:
        started = [run_of_start(file.path) for file in await store.list_all(STARTS)]
        kept = {*started[-newest:], *(set(names) - {*started})}
        names = [name for name in names if name in kept]
    runs = await gather(lambda name: _read_run(store, name), names, at_once=_RUNS_AT_ONCE)
    return sorted((run for run in runs if run is not None), key=lambda run: (run.started_at, run.run_id))


async def _read_run(store: Store, name: str) -> RunSpending | None:
    try:
        summary = await read_summary(store, name)
        numbers = await session_numbers(store, RunPaths(name).sessions)
        if summary is not None and summary.status == "done" and [each.number for each in summary.sessions] == numbers:
            run_id, model, started_at, sessions = summary.run_id, summary.model, summary.started_at, summary.sessions
        else:
            record = await read_record(store, name)
            if record is None:
                return None
            run_id, model, started_at = record.run_id, record.model, record.started_at
            sessions = tuple(await read_sessions(store, name))
    except OutputError:
        return None
    return RunSpending(run_id=run_id, model_arn=model, started_at=started_at, sessions=sessions)
