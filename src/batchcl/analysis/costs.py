"""What the models of an output root's runs have cost, by month, model or run: the implementation of `batchcl costs`."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio.to_thread
import polars as pl

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.choices import CostsBy
from batchcl.quantities import Units
from batchcl.runs.published import check_root
from batchcl.runs.spending import RunSpending, read_spending
from batchcl.runs.store import Store
from batchcl.summary import BILLED_USES, SessionRecord

__all__ = ["Usage", "cost_table", "costs", "read_checked_spending", "usage_by_month"]

_HOUR_S = 3600


async def costs(root: str, *, by: CostsBy | str = CostsBy.MONTH, aws: Aws | None = None) -> pl.DataFrame:
    """The cost of the model in all runs of an output root.

    Args:
        root: what `--out` was.
        by: one row per UTC month, model or run.
        aws: for an S3 root; as the AWS CLI would by default.

    Returns:
        as `cost_table`.

    Raises:
        OutputError: there is no output root there, or it can't be read.
        UsageError: `by` is not one of the choices.
        CredentialsError: there are none for an S3 root.
    """
    by = CostsBy.parse(by)
    return cost_table(await read_checked_spending(await Store.open_async(root, aws=aws or Aws())), by=by)


async def read_checked_spending(store: Store) -> list[RunSpending]:
    """The sessions of all runs of `store`. Raises `OutputError` if it is not an output root."""
    runs = await read_spending(store)
    if not runs:
        await anyio.to_thread.run_sync(check_root, store)
    return runs


@dataclass(slots=True)
class Usage:
    """Sums over sessions, or their shares in a month.

    Attributes:
        runs: whose sessions they are.
        images: images with an outcome that were called for.
        not_counted: sessions that made calls to a model whose cost is not part of their run.
        seconds: in which a model was billed.
        unit_seconds: multiplied by the minimum number of inference units.
        dollars: by use.
        scales: sessions with auto-scaling, of which only the minimum number of units is counted.
    """

    runs: set[str] = field(default_factory=set)
    images: float = 0.0
    not_counted: int = 0
    seconds: float = 0.0
    unit_seconds: float = 0.0
    dollars: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    scales: int = 0

    def add(self, run_id: str, session: SessionRecord, *, share: float, dollars: float) -> None:
        """Add the `share` of a session that cost `dollars`."""
        self.runs.add(run_id)
        self.images += session.images * share
        if session.cost_usd is None:
            self.not_counted += session.calls > 0
            return
        seconds = sum(session.billed_s.values())
        units = None if session.units is None else Units.parse(session.units)
        self.seconds += seconds * share
        self.unit_seconds += seconds * share * (0 if units is None else units.minimum)
        self.scales += units is not None and units.maximum not in {None, units.minimum}
        for use, spent in (session.billed_s if seconds else {"idle": 0.0}).items():
            self.dollars[use] += dollars * (spent / seconds if seconds else 1.0)


def cost_table(runs: Sequence[RunSpending], *, by: CostsBy = CostsBy.MONTH) -> pl.DataFrame:
    """The cost of the model in `runs`. A session that ran over the end of a month counts in both, by its dollars.

    Returns:
        `month` (UTC), `model` and `model_arn`, or `run_id`, `model`, `started_at`; `runs`, except by run; `images` that
        were called for; `hours` in which the model was billed; `unit_hours` and `cost_usd`, with the minimum number of
        units (null if no session paid for its model); `start_usd`, `scoring_usd`, `throttled_usd`, `idle_usd`,
        `tail_usd` and `stop_usd`, which add up to `cost_usd`; and `not_counted`, the sessions that made calls to a
        model whose cost belongs to others. Sorted by month, model or start.
    """
    found: dict[tuple[object, ...], Usage] = defaultdict(Usage)
    for run in runs:
        model = ModelArn.parse(run.model_arn).name
        for session in run.sessions:
            if session.cost_usd is None and not session.calls:
                continue
            for month, share, dollars in _months(run, session):
                key: dict[CostsBy, tuple[object, ...]] = {
                    CostsBy.MONTH: (month,),
                    CostsBy.MODEL: (model, run.model_arn),
                    CostsBy.RUN: (run.run_id, model, run.started_at),
                }
                found[key[by]].add(run.run_id, session, share=share, dollars=dollars)
    columns: dict[CostsBy, dict[str, pl.DataType]] = {
        CostsBy.MONTH: {"month": pl.String()},
        CostsBy.MODEL: {"model": pl.String(), "model_arn": pl.String()},
        CostsBy.RUN: {"run_id": pl.String(), "model": pl.String(), "started_at": pl.Datetime("us", "UTC")},
    }
    schema = columns[by] | {
        "runs": pl.Int64(),
        "images": pl.Int64(),
        "hours": pl.Float64(),
        "unit_hours": pl.Float64(),
        "cost_usd": pl.Float64(),
        **{f"{use}_usd": pl.Float64() for use in BILLED_USES},
        "not_counted": pl.Int64(),
    }
    table = pl.DataFrame([[*key, *_row(usage)] for key, usage in found.items()], schema=schema, orient="row")
    if by is CostsBy.RUN:
        return table.sort("started_at", "run_id").drop("runs")
    return table.sort(*columns[by])


def usage_by_month(runs: Iterable[RunSpending]) -> dict[tuple[str, str], Usage]:
    """(ARN of the model, month) → what its sessions used."""
    found: dict[tuple[str, str], Usage] = defaultdict(Usage)
    for run in runs:
        for session in run.sessions:
            if session.cost_usd is not None or session.calls:
                for month, share, dollars in _months(run, session):
                    found[run.model_arn, month].add(run.run_id, session, share=share, dollars=dollars)
    return dict(found)


def _months(run: RunSpending, session: SessionRecord) -> Iterator[tuple[str, float, float]]:
    """The months of a session, with its share in each and the dollars."""
    by_month = {month: dollars for month, dollars in session.cost_by_month.items() if dollars > 0}
    total = sum(by_month.values())
    if not total:
        yield f"{run.started_at.astimezone(dt.UTC):%Y-%m}", 1.0, session.cost_usd or 0.0
    for month, dollars in by_month.items():
        yield month, dollars / total, dollars


def _row(usage: Usage) -> list[object]:
    is_counted = bool(usage.dollars)
    return [
        len(usage.runs),
        round(usage.images),
        round(usage.seconds / _HOUR_S, 6),
        round(usage.unit_seconds / _HOUR_S, 6),
        round(sum(usage.dollars.values()), 6) if is_counted else None,
        *(round(usage.dollars.get(use, 0.0), 6) if is_counted else None for use in BILLED_USES),
        usage.not_counted,
    ]
