"""`batchcl status` and `batchcl runs`: what the output root tells of its runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from batchcl.cli.output import Csv, Json, Profile, Region, Root

if TYPE_CHECKING:
    from batchcl.runs.record import RunState
    from batchcl.runs.store import Store

__all__ = ["runs", "status"]

_T = TypeVar("_T")


def runs(root: Root, *, json: Json = False, csv: Csv = False, profile: Profile = None, region: Region = None) -> None:
    """All runs of an output root, the oldest first.

    Examples:

      batchcl runs out

      batchcl runs s3://tables/labels --json
    """  # noqa: D412 - Typer shows the examples as they stand
    import polars as pl  # noqa: PLC0415 - `batchcl --help` goes without

    from batchcl.cli.output import emit  # noqa: PLC0415
    from batchcl.runs.record import list_runs  # noqa: PLC0415

    states = _with_store(list_runs, root, profile=profile, region=region)
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "run": pl.String,
        "model": pl.String,
        "started": pl.Datetime("us", "UTC"),
        "status": pl.String,
        "planned": pl.Int64,
        "scored": pl.Int64,
        "failed": pl.Int64,
        "skipped": pl.Int64,
        "seconds": pl.Float64,
    }
    emit(pl.DataFrame([_row(state) for state in states], schema=schema), json=json, csv=csv, title=f"Runs in {root}")


def status(
    root: Root,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="The newest run if left out.")] = None,
    *,
    json: Json = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """What became of one run, from the output root alone.

    Examples:

      batchcl status out

      batchcl status s3://tables/labels 2026-11-21 --json
    """  # noqa: D412
    from batchcl.cli.output import emit_object  # noqa: PLC0415
    from batchcl.errors import UsageError  # noqa: PLC0415
    from batchcl.runs.record import RunState, list_runs, read_record, read_summary  # noqa: PLC0415

    async def find(store: Store) -> RunState | None:
        if run is None:
            states = await list_runs(store)
            return states[-1] if states else None
        record = await read_record(store, run)
        return None if record is None else RunState(record, await read_summary(store, run))

    state = _with_store(find, root, profile=profile, region=region)
    if state is None:
        raise UsageError(f"there is no run {run or ''} in {root}; `batchcl runs {root}` lists them")
    emit_object(_row(state) | _details(state), json=json)


def _with_store(work: Callable[[Store], Awaitable[_T]], root: str, *, profile: str | None, region: str | None) -> _T:
    import anyio  # noqa: PLC0415

    from batchcl.aws.session import Aws  # noqa: PLC0415
    from batchcl.runs.store import Store  # noqa: PLC0415

    aws = Aws.from_environment(profile=profile, region=region) if root.startswith("s3://") else None
    store = Store.open(root, aws=aws)
    return anyio.run(work, store)


def _row(state: RunState) -> dict[str, Any]:
    summary = state.summary
    return {
        "run": state.record.run_id,
        "model": state.record.model.rpartition(":project/")[2],
        "started": state.record.started_at,
        "status": "unfinished" if summary is None else summary.status,
        "planned": None if summary is None else summary.planned,
        "scored": None if summary is None else summary.scored,
        "failed": None if summary is None else summary.failed,
        "skipped": None if summary is None else summary.skipped,
        "seconds": None if summary is None else summary.seconds,
    }


def _details(state: RunState) -> dict[str, Any]:
    details: dict[str, Any] = {"arn": state.record.model, "sources": state.record.scored_as.get("sources")}
    if (summary := state.summary) is not None:
        details |= {
            "images_per_second": summary.images_per_second,
            "calls": summary.calls,
            "throttled": summary.throttled,
            "cost_usd": summary.cost_usd,
            "reason": summary.reason,
        }
    return details
