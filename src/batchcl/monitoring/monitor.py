"""Wraps the observer of a run and passes what it observes to the back ends."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio

from batchcl.__about__ import __version__
from batchcl.arns import ModelArn
from batchcl.errors import BatchclError, ExitCode, TooManyFailuresError, UsageError, exit_code_of
from batchcl.events import LATENCY_BOUNDS_S, Notice, Observer, Progress, Snapshot
from batchcl.monitoring.back_ends import open_back_ends
from batchcl.monitoring.event import document
from batchcl.monitoring.metrics import Histogram, Sample
from batchcl.monitoring.report import BackEnd, Report
from batchcl.monitoring.sender import FLUSH_S, Sender, flush
from batchcl.monitoring.targets import Targets, redact
from batchcl.monitoring.trace import Trace, Tracer
from batchcl.monitoring.trouble import Throttling, TroubleFilter
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

__all__ = ["Monitor", "RunNames", "monitored"]

_MODEL_STATES: Final = ("STARTING", "RUNNING", "STOPPING", "STOPPED", "FAILED")
_COUNTS: Final = ("planned", "scored", "failed", "skipped", "unlabelled", "calls", "throttled")
_COUNTERS: Final = (*_COUNTS, "seconds", "images_per_second", "cost_usd")
_MAX_LINES: Final = 100
_MAX_LINE: Final = 500
_CHECK_EVERY_S: Final = 60.0
_RESERVE_S: Final = FLUSH_S + 0.5
"""Reserved from the grace period, in seconds, for flushing and for the exit of the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNames:
    """What identifies a run; the run id and the model's ARN may become known during the run."""

    root: str
    run_id: str | None = None
    model: str | None = None

    @property
    def model_name(self) -> str:
        """`project@version`, or what the job calls the model."""
        model = self.model or ""
        with suppress(UsageError):
            return ModelArn.parse(model).name
        return model

    def describe(self) -> str:
        """`run ID in ROOT`."""
        return f"run {self.run_id} in {self.root}" if self.run_id else f"a run in {self.root}"


class Monitor:
    """The observer of a run that is monitored; forwards everything to the run's own observer.

    Args:
        observer: the run's own; must not raise.
        names: of the run.
        utcnow: returns the current time.

    Attributes:
        summary: of the run, set when it has one.
    """

    def __init__(self, observer: Observer, names: RunNames, *, utcnow: Callable[[], dt.datetime]) -> None:
        self.summary: Summary | None = None
        self._observer = observer
        self._names = names
        self._utcnow = utcnow
        self._began_at = utcnow()
        self._progress: Progress | None = None
        self._senders: list[Sender] = []
        self._warned: set[Sender] = set()
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._tracer = Tracer(_nanoseconds(self._began_at))
        self._trouble = TroubleFilter()
        self._throttling = Throttling()

    # --- the observer -----------------------------------------------------------------------------------------------

    def started(self, progress: Progress) -> None:
        """See `Observer`."""
        self._progress = progress
        self._observer.started(progress)

    def notice(self, notice: Notice) -> None:
        """See `Observer`."""
        self._observer.notice(notice)
        if self._senders:
            with suppress(Exception):  # a bug in monitoring must not end the run
                self._handle(notice)

    def _handle(self, notice: Notice) -> None:
        if notice.kind == "started":
            self._names = RunNames(**{name: str(notice.fields[name]) for name in ("root", "run_id", "model")})
        text = redact(notice.text)
        now = self._utcnow()
        self._tracer.add(notice, text, _nanoseconds(now))
        self._lines.append(f"{now:%Y-%m-%dT%H:%M:%SZ} {text[:_MAX_LINE]}")
        if self._trouble.passes(notice, anyio.current_time()):
            details = document(
                notice.kind, text, "warning", at=now, **self._identity(), **self._counters(), details=notice.fields
            )
            self._put(Report(stage="trouble", document=details, text=f"batchcl: {self._names.describe()}: {text}"))

    # --- the back ends ----------------------------------------------------------------------------------------------

    def open(self, back_ends: Iterator[BackEnd]) -> None:
        """Start the back ends, and report the start."""
        self._senders = [Sender(each) for each in back_ends]
        self._put(Report(stage="start", samples=tuple(self._samples(None))))

    async def watch(self) -> None:
        """Pass samples to the back ends until cancelled, and look for long throttling."""
        async with anyio.create_task_group() as group:
            for sender in self._senders:
                group.start_soon(self._warn_when_failed, sender)
                if sender.back_end.every_s is not None:
                    group.start_soon(self._sample, sender, sender.back_end.every_s)
            while True:
                await anyio.sleep(_CHECK_EVERY_S)
                with suppress(Exception):  # as in `notice`
                    self._check_throttling()

    def _check_throttling(self) -> None:
        if self._progress is not None:
            notice = self._throttling.check(self._progress.snapshot(anyio.current_time()))
            if notice is not None:
                self.notice(notice)

    async def _warn_when_failed(self, sender: Sender) -> None:
        self._warn(sender, await sender.wait_failed())

    def _warn(self, sender: Sender, reason: str) -> None:
        self._warned.add(sender)
        text = f"{sender.back_end.name} failed: {reason}; the run is not affected"
        self._observer.notice(Notice("monitoring-failed", text, level="warning"))

    async def _sample(self, sender: Sender, every_s: float) -> None:
        while True:
            await anyio.sleep(every_s)
            if self._progress is not None:
                with suppress(Exception):  # as in `notice`
                    sender.put(Report(stage="sample", samples=tuple(self._samples(None))))

    async def end(self, error: BaseException | None, *, model_left: str, max_s: float) -> None:
        """Report the end of the run, and wait until the back ends have sent everything, for at most `max_s` seconds.

        Args:
            error: what ended the run; None if it has a summary.
            model_left: how a model that the run leaves running will be stopped; empty if it leaves none.
            max_s: for all back ends together.
        """
        summary = getattr(error, "summary", None) if error is not None else self.summary
        try:
            self._put(self._end_report(summary, error, model_left=model_left))
        finally:
            for sender, reason in (await flush(self._senders, max_s=max_s)).items():
                if sender not in self._warned:
                    self._warn(sender, reason)

    def _end_report(self, summary: Summary | None, error: BaseException | None, *, model_left: str) -> Report:
        if summary is not None:
            self._names = RunNames(root=summary.out, run_id=summary.run_id, model=summary.model)
        code = exit_code_of(summary, error)
        now = self._utcnow()
        status = _status(summary, code)
        reason = None if error is None else str(error) if isinstance(error, BatchclError) else type(error).__name__
        counters = self._counters() if summary is None else _totals(summary)
        text = redact(_sentence(self._names, status, code, reason, counters))
        severity = "info" if code is ExitCode.DONE and not model_left else "error"
        fields = {
            "status": status,
            "exit_code": int(code),
            "reason": reason,
            "model_left": model_left or None,
            "started_at": f"{self._began_at:%Y-%m-%dT%H:%M:%SZ}",
        }
        details = document("end", text, severity, at=now, **self._identity(), **fields, **counters)
        return Report(
            stage="end",
            samples=tuple(self._samples(summary, code=code, model_left=bool(model_left))),
            document=details,
            text=f"batchcl: {text}",
            lines=tuple(self._lines),
            exit_code=int(code),
            trace=self._trace(details, error, now),
        )

    def _trace(self, details: Mapping[str, Any], error: BaseException | None, now: dt.datetime) -> Trace:
        names = ("run_id", "root", "model", "status", *_COUNTERS)
        attributes = {f"batchcl.{name}": details[name] for name in names if details.get(name) is not None}
        failed = None
        if details["exit_code"]:
            kind = TooManyFailuresError if error is None else type(error)
            failed = (kind.__name__, str(details["reason"] or details["text"]))
        return self._tracer.end(_nanoseconds(now), {**attributes, "process.exit.code": details["exit_code"]}, failed)

    def _put(self, report: Report) -> None:
        for sender in self._senders:
            sender.put(report)

    # --- values -----------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, str | None]:
        return {"run_id": self._names.run_id, "root": self._names.root, "model": self._names.model}

    def _counters(self) -> dict[str, Any]:
        """The current counters, for documents."""
        if self._progress is None:
            return {}
        now = self._progress.snapshot(anyio.current_time())
        return {name: getattr(now, name) for name in _COUNTS} | {
            "seconds": round(now.elapsed_s, 1),
            "images_per_second": round(now.images_per_second, 2),
            "cost_usd": None if now.dollars is None else round(now.dollars, 4),
            "model_status": now.model_status,
        }

    def _samples(
        self, summary: Summary | None, *, code: ExitCode | None = None, model_left: bool = False
    ) -> Iterator[Sample]:
        now = self._utcnow().timestamp()
        yield Sample(
            "batchcl_run_info", 1, {"model": self._names.model_name, "root": self._names.root, "version": __version__}
        )
        yield Sample("batchcl_run_in_progress", 1 if code is None else 0)
        yield Sample("batchcl_last_start_timestamp_seconds", self._began_at.timestamp())
        yield Sample("batchcl_last_update_timestamp_seconds", now)
        if code is not None:
            yield Sample("batchcl_model_left_running", int(model_left))
            yield Sample("batchcl_last_exit_code", int(code))
        if code is ExitCode.DONE:
            yield Sample("batchcl_last_success_timestamp_seconds", now)
        if self._progress is not None:
            yield from _run_samples(self._progress.snapshot(anyio.current_time()))
            counts = tuple(self._progress.latencies.counts)
            total_s = self._progress.latencies.total_s
            yield Sample("batchcl_call_duration_seconds", Histogram(LATENCY_BOUNDS_S, counts, total_s))
        elif summary is not None:
            yield from _count_samples(summary)


@asynccontextmanager
async def monitored(
    targets: Targets,
    observer: Observer,
    stop_signal: StopSignal,
    names: RunNames,
    *,
    session: Callable[[], Aws],
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> AsyncIterator[Monitor]:
    """Monitor the run in the block, which uses the `Monitor` as its observer and sets its `summary`.

    The back ends of `targets` work in threads of their own. Nothing that they do is awaited during the run, and their
    failures are notices, one for each back end. At the end, what is left is sent within two seconds, which
    `stop_signal` reserves from the grace period. An exception of the block is reported as the end of the run, and
    raised.

    Args:
        targets: the back ends.
        observer: the run's own observer; must not raise.
        stop_signal: of the run; its exit message describes a model that is left running.
        names: of the run, as far as they are known.
        session: returns the AWS session for the SNS topic.
        utcnow: returns the current time.

    Raises:
        UsageError: OpenTelemetry is requested but not installed, or its variables are not valid.
    """
    monitor = Monitor(observer, names, utcnow=utcnow)
    if not targets:
        yield monitor
        return
    stop_signal.reserve_s = _RESERVE_S
    problem = _otel_problem() if targets.otel else None
    monitor.open(open_back_ends(targets if problem is None else replace(targets, otel=False), session=session))
    end: BaseException | None = None
    try:
        async with _in_background(monitor, problem):
            yield monitor
    except BaseException as error:
        is_cancelled = not isinstance(error, Exception)  # by a second signal
        end = stop_signal.error if is_cancelled and stop_signal.error is not None else error
        raise
    finally:
        max_s = FLUSH_S / _RESERVE_S * stop_signal.reserved_s
        with suppress(Exception):  # a bug in monitoring must not replace the result of the run
            await monitor.end(end, model_left=stop_signal.exit_message(), max_s=max_s)


@asynccontextmanager
async def _in_background(monitor: Monitor, problem: UsageError | None) -> AsyncIterator[None]:
    """Watch during the block, whose exception is raised as it is, and not in a group; or raise `problem`."""
    if problem is not None:
        raise problem
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.watch)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, outside the group that would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _otel_problem() -> UsageError | None:
    """Why OpenTelemetry can't be used; None if it can."""
    from batchcl.monitoring.otel import check_settings

    try:
        check_settings()
    except UsageError as error:
        return error
    return None


def _run_samples(now: Snapshot) -> Iterator[Sample]:
    yield from _count_samples(now)
    yield Sample("batchcl_calls_in_flight", now.in_flight)
    yield Sample("batchcl_pace_calls_per_second", now.rate_tps)
    if now.capacity_tps is not None:
        yield Sample("batchcl_capacity_calls_per_second", now.capacity_tps)
    if now.dollars is not None:
        yield Sample("batchcl_model_cost_dollars_total", now.dollars)
    if now.units is not None:
        yield Sample("batchcl_model_units", now.units)
    if now.model_status is not None:
        for state in dict.fromkeys((*_MODEL_STATES, now.model_status)):
            yield Sample("batchcl_model_state", int(state == now.model_status), {"state": state})


def _count_samples(counts: Snapshot | Summary) -> Iterator[Sample]:
    for outcome in ("scored", "failed", "skipped"):
        yield Sample("batchcl_images_total", getattr(counts, outcome), {"outcome": outcome})
    yield Sample("batchcl_unlabelled_images_total", counts.unlabelled)
    yield Sample("batchcl_images_planned", counts.planned)
    yield Sample("batchcl_calls_total", counts.calls)
    yield Sample("batchcl_throttled_calls_total", counts.throttled)


def _totals(summary: Summary) -> dict[str, Any]:
    """The final counters, for the document about the end."""
    return {name: getattr(summary, name) for name in _COUNTERS}


def _status(summary: Summary | None, code: ExitCode) -> Literal["done", "stopped", "postponed", "refused", "failed"]:
    if summary is not None:
        return summary.status
    if code in {ExitCode.USAGE, ExitCode.REFUSED}:
        return "refused"
    return "failed" if code is ExitCode.BUG else "stopped"


def _sentence(names: RunNames, status: str, code: ExitCode, reason: str | None, counters: dict[str, Any]) -> str:
    ended = {"refused": "was refused", "failed": "failed"}.get(status, f"is {status}")
    text = f"{names.describe()} {ended}"
    if code is not ExitCode.DONE:
        text += f" (exit code {int(code)})"
    if counters:
        text += f", {counters['scored']:,} of {counters['planned']:,} images scored, {counters['failed']:,} failed"
    return f"{text}: {reason}" if reason else text


def _nanoseconds(time: dt.datetime) -> int:
    return int(time.timestamp() * 1e9)
