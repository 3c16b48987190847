"""`batchcl status` and `batchcl runs`: the runs in an output root."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from batchcl.cli.output import Csv, Json, Profile, Region, Root
from batchcl.cli.streams import write_line
from batchcl.errors import ErrorCode, ExitCode, command

if TYPE_CHECKING:
    from batchcl.runs.status import RunState
    from batchcl.runs.store import Store
    from batchcl.runs.watch import WatchedRun

__all__ = ["runs", "status", "with_store"]

_T = TypeVar("_T")
_OVERVIEW = (
    "run_id",
    "model",
    "started_at",
    "state",
    "planned",
    "scored",
    "failed",
    "skipped",
    "left",
    "min_confidence",
    "calls",
    "seconds",
    "images_per_second",
    "cost_usd",
    "held_by",
)


def runs(root: Root, *, json: Json = False, csv: Csv = False, profile: Profile = None, region: Region = None) -> None:
    """List the runs of an output root, oldest first, with their cost so far.

    --json and --csv include all fields of `batchcl status`, such as the ARN of the model.

    Examples:

      batchcl runs out

      batchcl runs s3://tables/labels --csv > runs.csv
    """
    from batchcl.analysis.results import run_table
    from batchcl.cli.output import check_format, emit
    from batchcl.runs.status import list_runs

    check_format(json=json, csv=csv)

    async def work(store: Store) -> list[RunState]:
        states = await list_runs(store, now=dt.datetime.now(dt.UTC))
        if not states:
            await _check_root(store)
        return states

    states = with_store(work, root, profile=profile, region=region)
    frame = run_table(states)
    emit(frame if json or csv else frame.select(_OVERVIEW), json=json, csv=csv, title=f"Runs in {root}")
    for state in states:
        if state.state == "damaged":
            write_line(f"reading run {state.run_id} failed: {state.reason}")


def status(
    root: Root,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Run id (default: the newest run).")] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show the progress until the run ends.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            "--interval", metavar="SECONDS", min=1, max=3600, help="With --watch: time between two reads (default: 10)."
        ),
    ] = None,
    json: Json = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Show the state of a run. Reads the output root only, so it works during a run and on any machine.

    With --watch, it shows the progress like the run itself, and then the state: exit code 0 for a run that is done, 3
    if more images failed than it tolerated, 4 if it ended early or its process died. --json writes one object per line.

    Examples:

      batchcl status out

      batchcl status s3://tables/labels 2026-11-21 --json

      batchcl status s3://tables/labels --watch
    """
    from batchcl.cli.output import emit_object
    from batchcl.errors import UsageError
    from batchcl.runs.layout import valid_run_id
    from batchcl.runs.lease import HEARTBEAT_S
    from batchcl.runs.status import newest_run, read_run_state

    if interval is not None and not watch:
        raise UsageError("--interval needs --watch; add it", code=ErrorCode.CONFLICTING_OPTIONS)

    async def find(store: Store) -> RunState | None:
        name = await newest_run(store) if run is None else valid_run_id(run)
        state = None if name is None else await read_run_state(store, name, now=dt.datetime.now(dt.UTC))
        if state is None:
            await _check_root(store)
        return state

    if watch:
        watched = with_store(
            lambda store: _watch(store, run, every_s=interval or HEARTBEAT_S, json=json),
            root,
            profile=profile,
            region=region,
        )
        if json:
            raise typer.Exit(_exit_code(watched))
        run = watched.run_id
    state = with_store(find, root, profile=profile, region=region)
    if state is None:
        if run is None:
            raise UsageError(f"there is no run in {root} yet", code=ErrorCode.NO_SUCH_RUN)
        raise UsageError(
            f"there is no run {run!r} in {root}; {command('runs', root)} lists them", code=ErrorCode.NO_SUCH_RUN
        )
    emit_object(state.as_dict(), json=json)
    if watch:
        raise typer.Exit(_exit_code(watched))


async def _watch(store: Store, run: str | None, *, every_s: float, json: bool) -> WatchedRun:
    """Show the run until it ends; returns its last state."""
    import orjson

    from batchcl.cli.reporter import reporting
    from batchcl.cli.signals import run_until_first_signal
    from batchcl.events import Observer, SilentObserver
    from batchcl.runs.watch import watch_store

    async def follow(observer: Observer) -> WatchedRun:
        async for watched in watch_store(store, run, every_s=every_s, observer=observer):
            if json:
                line = orjson.dumps({"time": dt.datetime.now(dt.UTC)} | watched.as_dict(), option=orjson.OPT_UTC_Z)
                sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()
        return watched

    async def work() -> WatchedRun:
        if run is not None:
            await _check_root(store)
        if json:
            return await follow(SilentObserver())
        async with reporting(None) as observer:
            return await follow(observer)

    return await run_until_first_signal(work)


def _exit_code(watched: WatchedRun) -> ExitCode:
    if watched.state != "done":
        return ExitCode.STOPPED
    assert watched.summary is not None
    return ExitCode.DONE if watched.summary.tolerated else ExitCode.FAILURES


async def _check_root(store: Store) -> None:
    """Raise `OutputError` if `store` is not an output root, as with a mistyped name."""
    import anyio.to_thread

    from batchcl.runs.published import check_root

    await anyio.to_thread.run_sync(check_root, store)


def with_store(work: Callable[[Store], Awaitable[_T]], root: str, *, profile: str | None, region: str | None) -> _T:
    """Do `work` with the existing output root `root`."""
    import anyio

    from batchcl.runs.store import open_root

    return anyio.run(work, open_root(root, profile=profile, region=region))
