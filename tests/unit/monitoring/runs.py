"""A run for tests of back ends: its notices and counters, without a service."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from unittest import mock

import anyio

from batchcl.aws.session import Aws
from batchcl.errors import BatchclError, RefusedError, UsageError
from batchcl.events import ModelUse, Notice, Pace, Progress
from batchcl.monitoring import RunNames, Targets, monitored
from batchcl.outcomes import Counts
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from observers import RecordingObserver

ROOT = "s3://tables/labels"
MODEL = "arn:aws:rekognition:eu-west-1:123456789012:project/birds/version/v1/1700000000000"
STARTED = Notice("started", f"run night into {ROOT}", {"run_id": "night", "root": ROOT, "model": MODEL})
PATIENCE_S = 60.0
AT = dt.datetime(2026, 11, 28, 1, tzinfo=dt.UTC)


def progress() -> Progress:
    """Counters in the middle of a run."""
    made = Progress(model=lambda: ModelUse(status="RUNNING", units=2, dollars=1.25))
    made.add_earlier(Counts(90, 6, 4))
    made.planned, made.listed, made.calls, made.throttled, made.in_flight = 120, True, 110, 10, 7
    made.pace = lambda: Pace(9.5, 10.25)
    for seconds in (0.04, 0.4, 0.4, 70.0):
        made.latencies.add(seconds)
    return made


def summary(*, tolerated: bool = True) -> Summary:
    return Summary(
        run_id="night",
        status="done",
        planned=120,
        scored=110,
        failed=6,
        skipped=4,
        calls=130,
        throttled=10,
        seconds=60.0,
        images_per_second=1.9,
        cost_usd=1.5,
        out=ROOT,
        model=MODEL,
        started_at=AT,
        ended_at=AT,
        tolerated=tolerated,
    )


def run(
    targets: Targets,
    notices: Sequence[Notice] = (STARTED,),
    end: Summary | Exception | None = None,
    *,
    stop_signal: StopSignal | None = None,
    flush_s: float = PATIENCE_S,
    run_loop: Callable[[Callable[[], Awaitable[None]]], None] = anyio.run,
) -> RecordingObserver:
    """A run with these notices and this end; returns what its own observer received.

    `flush_s` replaces the two seconds at the end, which a busy machine may exceed.
    """
    observer = RecordingObserver()

    async def main() -> None:
        names = RunNames(root=ROOT, run_id="night")
        async with monitored(targets, observer, stop_signal or StopSignal(), names, session=Aws) as monitor:
            if isinstance(end, RefusedError | UsageError):
                raise end
            monitor.started(progress())
            for notice in notices:
                monitor.notice(notice)
            if isinstance(end, Exception):
                raise end
            monitor.summary = end or summary()

    try:
        with mock.patch("batchcl.monitoring.monitor.FLUSH_S", flush_s):
            run_loop(main)
    except BatchclError as error:
        if error is not end:
            raise
    return observer
