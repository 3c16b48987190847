"""The budgets of a run: `--max-cost` for all its sessions, and `--monthly-budget` for all runs of the output root.

Each session that pays for a model leaves an empty file per UTC month in the output root, named after the run and the
number of the session. So one listing finds all sessions of a month, also those that run at the same time; their
heartbeats contain their costs. A session that has ended is read once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from batchcl.concurrency import gather
from batchcl.errors import OutputError, RefusedError, StoppedError
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.runs.layout import RunPaths, billed_folder, billed_path, session_of_billed
from batchcl.runs.lease import RunLease, read_session
from batchcl.runs.record import read_sessions
from batchcl.runs.store import Store

__all__ = ["Budget", "usd"]

_READ_EVERY_S: Final = 15.0
_READS_AT_ONCE: Final = 32


class Budget:
    """Compares the cost of a run's model with `job.max_cost` and `job.monthly_budget`.

    Args:
        job: the job.
        store: the output root.
        run_id: the run.
        number: returns the number of this session.
        model_manager: of this session.
        month: returns the current UTC month, such as `2026-11`.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        run_id: str,
        *,
        number: Callable[[], int],
        model_manager: ModelManager,
        month: Callable[[], str],
    ) -> None:
        self._job = job
        self._store = store
        self._run_id = run_id
        self._number = number
        self._model_manager = model_manager
        self._month = month
        self._ended: dict[str, RunLease] = {}
        self._months_recorded: set[str] = set()
        self._earlier_usd = 0.0
        self._others_usd: dict[str, float] = {}

    async def read(self) -> None:
        """Read the costs of the other sessions of the run, and of all sessions of this month. Raises `OutputError`."""
        if self._job.max_cost is not None:
            sessions = await read_sessions(self._store, self._run_id)
            self._earlier_usd = sum(each.cost_usd or 0.0 for each in sessions if each.number != self._number())
        await self._read_month()

    async def keep_current(self) -> None:
        """Record each month in which this session pays for a model, and read the costs of others, until cancelled.

        A store that fails is ignored here: the ledger's writes report it, and the last costs that were read count.
        """
        read_at = anyio.current_time()
        while True:
            await anyio.sleep(1.0)
            with suppress(OutputError):
                await self._record_month()
                if anyio.current_time() - read_at >= _READ_EVERY_S:
                    read_at = anyio.current_time()
                    await self._read_month()

    async def check_start(self) -> None:
        """Check the budgets before the model is started. Raises `RefusedError` if one is used up."""
        await self.read()
        if (reason := self._reason()) is not None:
            raise RefusedError(f"the model was not started: {reason}")

    def exceeded(self) -> StoppedError | None:
        """The error for the budget that is used up; None if none is, or this run does not pay for its model."""
        reason = None if self._model_manager.dollars() is None else self._reason()
        return None if reason is None else StoppedError(reason)

    def _reason(self) -> str | None:
        bill = self._model_manager.meter.read()
        spent, budget = self._earlier_usd + bill.dollars, self._job.max_cost
        if budget is not None and spent >= budget:
            return f"the model has cost {usd(spent)} in this run, and --max-cost is {usd(budget)}; raise --max-cost"
        month, budget = self._month(), self._job.monthly_budget
        spent = self._others_usd.get(month, 0.0) + bill.dollars_by_month.get(month, 0.0)
        if budget is not None and spent >= budget:
            return (
                f"the runs of {self._store.root} have cost {usd(spent)} in {month} (UTC), and --monthly-budget is "
                f"{usd(budget)}; raise --monthly-budget, or wait for the next month"
            )
        return None

    async def _record_month(self) -> None:
        month = self._month()
        if self._model_manager.meter.is_open and month not in self._months_recorded:
            await self._store.put_new(billed_path(month, self._run_id, self._number()), b"")
            self._months_recorded.add(month)

    async def _read_month(self) -> None:
        if self._job.monthly_budget is None:
            return
        month = self._month()
        own = billed_path(month, self._run_id, self._number())
        paths = [file.path for file in await self._store.list_all(billed_folder(month)) if file.path != own]
        sessions = await gather(self._read_session, paths, at_once=_READS_AT_ONCE)
        self._others_usd[month] = sum((each.progress.get("cost_by_month") or {}).get(month, 0.0) for each in sessions)

    async def _read_session(self, billed: str) -> RunLease:
        if billed in self._ended:
            return self._ended[billed]
        run, number = session_of_billed(billed)
        session = await read_session(self._store, RunPaths(run).session(number))
        if session.ended:
            self._ended[billed] = session
        return session


def usd(amount: float) -> str:
    """`$5.00`, and `$0.0012` for less than a cent."""
    return f"${amount:,.2f}" if amount >= 0.01 or not amount else f"${amount:.2g}"  # noqa: PLR2004 - a cent
