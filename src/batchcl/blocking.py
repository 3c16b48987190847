"""The synchronous forms of batchcl's functions: the same arguments, results and errors.

Each runs its asynchronous twin on an event loop of its own in another thread, so that it also works where this thread's
loop is running, as in a Jupyter notebook.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import start_blocking_portal

from batchcl.choices import CostsBy
from batchcl.diagnosis import CheckTarget, Diagnosis, Finding, doctor
from batchcl.job import Job
from batchcl.lifetime.running import RunningModels, running_models
from batchcl.report.show import show
from batchcl.report.write import Report, write_report
from batchcl.runs.lease import HEARTBEAT_S
from batchcl.runs.watch import WatchedRun, watch_run
from batchcl.scoring.detect import DetectResult, ImageInput, detect
from batchcl.scoring.pilot import PILOT_IMAGES, Pilot, pilot
from batchcl.scoring.plan import Plan, plan
from batchcl.scoring.retry import retry
from batchcl.scoring.run import run
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

if TYPE_CHECKING:
    import polars as pl

    from batchcl.analysis.export_annotations import AnnotationExport, ExportFormat
    from batchcl.analysis.reconcile import Reconciliation
    from batchcl.analysis.results import Results
    from batchcl.aws.session import Aws
    from batchcl.choices import Order
    from batchcl.events import Observer
    from batchcl.thresholds import Thresholds

__all__ = [
    "costs_sync",
    "detect_sync",
    "doctor_sync",
    "export_annotations_sync",
    "pilot_sync",
    "plan_sync",
    "reconcile_costs_sync",
    "retry_sync",
    "run_sync",
    "running_models_sync",
    "show_sync",
    "watch_run_sync",
    "write_report_sync",
]

_Result = TypeVar("_Result")


def run_sync(
    job: Job, *, observer: Observer | None = None, stop_signal: StopSignal | None = None, aws: Aws | None = None
) -> Summary:
    """`run`, blocking. An interrupt (^C, or a notebook's stop button) drains the run and stops its model.

    A second interrupt ends the drain; the model is then stopped within seconds. Raises as `run` does.
    """
    stop_signal = stop_signal or StopSignal()
    return _wait(partial(run, job, observer=observer, stop_signal=stop_signal, aws=aws), stop_signal)


def pilot_sync(
    job: Job,
    *,
    images: int = PILOT_IMAGES,
    observer: Observer | None = None,
    stop_signal: StopSignal | None = None,
    aws: Aws | None = None,
) -> Pilot:
    """`pilot`, blocking; an interrupt is handled as by `run_sync`."""
    stop_signal = stop_signal or StopSignal()
    return _wait(partial(pilot, job, images=images, observer=observer, stop_signal=stop_signal, aws=aws), stop_signal)


def retry_sync(
    root: str,
    run_id: str,
    *,
    codes: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    stop_signal: StopSignal | None = None,
    aws: Aws | None = None,
) -> Summary:
    """`retry`, blocking; an interrupt is handled as by `run_sync`."""
    stop_signal = stop_signal or StopSignal()
    work = partial(
        retry, root, run_id, codes=codes, changes=changes, observer=observer, stop_signal=stop_signal, aws=aws
    )
    return _wait(work, stop_signal)


def plan_sync(job: Job, *, observer: Observer | None = None, aws: Aws | None = None) -> Plan:
    """`plan`, blocking."""
    return _wait(partial(plan, job, observer=observer, aws=aws))


def doctor_sync(
    job: Job | CheckTarget,
    *,
    aws: Aws | None = None,
    on_finding: Callable[[Finding], None] = lambda _: None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Diagnosis:
    """`doctor`, blocking. `on_finding` is called in another thread."""
    return _wait(partial(doctor, job, aws=aws, on_finding=on_finding, utcnow=utcnow))


def detect_sync(
    images: Sequence[ImageInput | str | PathLike[str] | bytes],
    *,
    model: str,
    aws: Aws | None = None,
    min_confidence: float | None = None,
    max_results: int | None = None,
    fit: bool = False,
    on_read: Callable[[ImageInput, bytes], None] | None = None,
) -> list[DetectResult]:
    """`detect`, blocking. `on_read` is called in another thread."""
    return _wait(
        partial(
            detect,
            images,
            model=model,
            aws=aws,
            min_confidence=min_confidence,
            max_results=max_results,
            fit=fit,
            on_read=on_read,
        )
    )


def running_models_sync(
    *, all_regions: bool = False, project: str | None = None, aws: Aws | None = None
) -> RunningModels:
    """`running_models`, blocking."""
    return _wait(partial(running_models, all_regions=all_regions, project=project, aws=aws))


def costs_sync(root: str, *, by: CostsBy | str = CostsBy.MONTH, aws: Aws | None = None) -> pl.DataFrame:
    """`costs`, blocking."""
    from batchcl.analysis.costs import costs

    return _wait(partial(costs, root, by=by, aws=aws))


def reconcile_costs_sync(
    root: str, *, aws: Aws | None = None, utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
) -> Reconciliation:
    """`reconcile_costs`, blocking."""
    from batchcl.analysis.reconcile import reconcile_costs

    return _wait(partial(reconcile_costs, root, aws=aws, utcnow=utcnow))


def write_report_sync(
    root: str,
    out: str | PathLike[str],
    *,
    model: str | None = None,
    run_id: str | None = None,
    date: dt.date | str | None = None,
    thresholds: Thresholds | float | None = None,
    baseline: str | None = None,
    truth: str | PathLike[str] | None = None,
    gallery: int = 60,
    max_mb: float = 5.0,
    aws: Aws | None = None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Report:
    """`write_report`, blocking."""
    return _wait(
        partial(
            write_report,
            root,
            out,
            model=model,
            run_id=run_id,
            date=date,
            thresholds=thresholds,
            baseline=baseline,
            truth=truth,
            gallery=gallery,
            max_mb=max_mb,
            aws=aws,
            utcnow=utcnow,
        )
    )


def export_annotations_sync(
    results: Results,
    form: ExportFormat,
    out: str | PathLike[str],
    *,
    aws: Aws | None = None,
    uris: Collection[str] | None = None,
    where: str | None = None,
    relative_to: str | None = None,
    image_size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> AnnotationExport:
    """`export_annotations`, blocking."""
    from batchcl.analysis.export_annotations import export_annotations

    return _wait(
        partial(
            export_annotations,
            results,
            form,
            out,
            aws=aws,
            uris=uris,
            where=where,
            relative_to=relative_to,
            image_size=image_size,
            overwrite=overwrite,
        )
    )


def show_sync(
    root: str,
    uris: Sequence[str | PathLike[str]] = (),
    *,
    out: str | PathLike[str],
    where: str | None = None,
    sort: Order | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    truth: str | PathLike[str] | None = None,
    max_px: int | None = None,
    model: str | None = None,
    run_id: str | None = None,
    date: dt.date | str | None = None,
    all_runs: bool = False,
    thresholds: Thresholds | float | None = None,
    aws: Aws | None = None,
) -> pl.DataFrame:
    """`show`, blocking."""
    return _wait(
        partial(
            show,
            root,
            uris,
            out=out,
            where=where,
            sort=sort,
            limit=limit,
            seed=seed,
            truth=truth,
            max_px=max_px,
            model=model,
            run_id=run_id,
            date=date,
            all_runs=all_runs,
            thresholds=thresholds,
            aws=aws,
        )
    )


def watch_run_sync(
    root: str,
    run_id: str | None = None,
    *,
    every_s: float = HEARTBEAT_S,
    observer: Observer | None = None,
    aws: Aws | None = None,
) -> Iterator[WatchedRun]:
    """`watch_run`, blocking."""

    async def next_state(states: AsyncIterator[WatchedRun]) -> WatchedRun | None:
        return await anext(states, None)

    with start_blocking_portal() as portal:
        states = watch_run(root, run_id, every_s=every_s, observer=observer, aws=aws)
        while (state := portal.call(next_state, states)) is not None:
            yield state


def _wait(work: Callable[[], Awaitable[_Result]], stop_signal: StopSignal | None = None) -> _Result:
    """The result of `work`, which runs in another thread. The first interrupt requests its end, the second cancels."""
    with start_blocking_portal() as portal:
        future = portal.start_task_soon(work)
        interrupts = 0
        while True:
            try:
                if interrupts == 1 and stop_signal is not None:
                    stop_signal.request("interrupted", by_user=True)
                elif interrupts:
                    if stop_signal is not None:
                        stop_signal.hurry()
                    future.cancel()
                return future.result()
            except KeyboardInterrupt:
                interrupts += 1
            except CancelledError:
                raise KeyboardInterrupt from None
