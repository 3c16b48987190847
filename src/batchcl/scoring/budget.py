"""The budgets of a run: `--max-cost` for all its sessions, and `--monthly-budget` for all runs of the output root.

Each session that pays for a model leaves an empty file per UTC month in the output root, named after the run and the
number of the session. So one listing finds all sessions of a month, also those that run at the same time; their
heartbeats contain their costs, to which the time since the heartbeat is added. A session that has ended is read once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from batchcl.concurrency import gather
from batchcl.errors import ErrorCode, OutputError, RefusedError, StoppedError
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.prices import unit_hour_usd
from batchcl.quantities import Units
from batchcl.runs.layout import RunPaths, billed_folder, billed_path, session_of_billed
from batchcl.runs.lease import EXPIRES_S, RunLease, read_session
from batchcl.runs.record import read_sessions
from batchcl.runs.store import Store
from batchcl.scoring.run_lease import BILLED_UNTIL

__all__ = ["Budget", "usd"]

_READ_EVERY_S: Final = 15.0
_HOUR_S: Final = 3600
_READS_AT_ONCE: Final = 32


class Budget:
    """Compares the cost of a run's model with `job.max_cost` and `job.monthly_budget`.

    Args:
        job: the job.
        store: the output root.
        run_id: the run.
        number: returns the number of this session.
        model_manager: of this session.
        utcnow: current time.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        run_id: str,
        *,
        number: Callable[[], int],
        model_manager: ModelManager,
        utcnow: Callable[[], dt.datetime],
    ) -> None:
        self._job = job
        self._store = store
        self._run_id = run_id
        self._number = number
        self._model_manager = model_manager
        self._utcnow = utcnow
        self._ended: dict[str, RunLease] = {}
        self._months_recorded: set[str] = set()
        self._earlier_usd = 0.0
        self._others_usd: dict[str, float] = {}
        self._others_usd_per_s = 0.0
        self._read_at = 0.0

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
                await self.record()
                if anyio.current_time() - read_at >= _READ_EVERY_S:
                    read_at = anyio.current_time()
                    await self._read_month()

    async def record(self) -> None:
        """Record each month in which this session has paid for a model. Raises `OutputError`."""
        for month in self._model_manager.meter.read().dollars_by_month:
            if month not in self._months_recorded:
                await self._store.put_new(billed_path(month, self._run_id, self._number()), b"")
                self._months_recorded.add(month)

    async def check_start(self) -> None:
        """Check the budgets before the model is started, or adopted. Raises `RefusedError` if one is used up."""
        await self.read()
        if (reason := self._reason()) is not None:
            is_running = self._model_manager.meter.is_open
            what = "scoring with the model that an earlier session has left" if is_running else "the start of the model"
            raise RefusedError(f"{what} is refused: {reason}", code=ErrorCode.BUDGET_USED_UP)

    def exceeded(self) -> StoppedError | None:
        """The error for the budget that is used up; None if none is, or this run does not pay for its model."""
        if self._job.max_cost is None and self._job.monthly_budget is None:
            return None
        reason = None if self._model_manager.dollars() is None else self._reason()
        return None if reason is None else StoppedError(reason, code=ErrorCode.BUDGET_USED_UP)

    def _reason(self) -> str | None:
        bill = self._model_manager.meter.read()
        spent, budget = self._earlier_usd + bill.dollars, self._job.max_cost
        if budget is not None and spent >= budget:
            return f"the model has cost {usd(spent)} in this run, and --max-cost is {usd(budget)}; raise --max-cost"
        month, budget = self._month(), self._job.monthly_budget
        since_read_usd = self._others_usd_per_s * max(0.0, anyio.current_time() - self._read_at)
        spent = self._others_usd.get(month, 0.0) + bill.dollars_by_month.get(month, 0.0) + since_read_usd
        if budget is not None and spent >= budget:
            return (
                f"the runs of {self._store.root} have cost {usd(spent)} in {month} (UTC), and --monthly-budget is "
                f"{usd(budget)}; raise --monthly-budget, or wait for the next month"
            )
        return None

    def _month(self) -> str:
        return f"{self._utcnow().astimezone(dt.UTC):%Y-%m}"

    async def _read_month(self) -> None:
        """Read what the other sessions of this month have cost, and what those that are running cost per second."""
        if self._job.monthly_budget is None:
            return
        now = self._utcnow()
        month = self._month()
        own = billed_path(month, self._run_id, self._number())
        paths = [file.path for file in await self._store.list_all(billed_folder(month)) if file.path != own]
        sessions = await gather(self._read_session, paths, at_once=_READS_AT_ONCE)
        spent_usd = per_second_usd = 0.0
        for each in sessions:
            spent_usd += (each.progress.get("cost_by_month") or {}).get(month, 0.0)
            units = each.progress.get("model_units")
            age_s = (now - each.heartbeat_at).total_seconds()
            if units is not None and not each.ended and each.progress.get(BILLED_UNTIL) and age_s < EXPIRES_S:
                usd_per_s = Units.parse(units).minimum * unit_hour_usd() / _HOUR_S
                per_second_usd += usd_per_s
                spent_usd += usd_per_s * max(0.0, age_s)
        self._others_usd[month], self._others_usd_per_s, self._read_at = spent_usd, per_second_usd, anyio.current_time()

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
