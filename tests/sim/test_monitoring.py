"""Monitoring changes neither the rows of a run nor its result nor the time of its end, whatever its back ends do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from unittest import mock

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import BatchclError, StoppedError
from batchcl.events import Progress
from batchcl.lifetime.manager import ModelManager
from batchcl.monitoring import Monitor, RunNames, Targets, monitored
from batchcl.monitoring.report import BackEnd, Report
from batchcl.monitoring.sender import FLUSH_S, Sender
from batchcl.quantities import Units
from batchcl.stop_signal import RECORDS, StopSignal
from batchcl.summary import Summary
from fake_rekognition import Models, arn_of, refused
from observers import RecordingObserver
from sim.fake_world import EPOCH, FakeWorld, OperationKind
from sim.service import Service, image
from sim.test_grace import GRACE_S, SIGNAL_S, Hanging
from virtual import run_virtual

TARGETS = Targets(webhook="https://host/secret")


@asynccontextmanager
async def watching(
    observer: RecordingObserver, stop_signal: StopSignal, *, hanging: bool = False
) -> AsyncIterator[Monitor]:
    """Monitor a run in virtual time, which stands still while a back end is at work, unless it is `hanging`."""
    names = RunNames(root="memory", run_id="night")
    async with monitored(TARGETS, observer, stop_signal, names, session=Aws) as monitor:
        clock = asyncio.get_running_loop()._jumping  # type: ignore[attr-defined]
        threads_busy = clock.threads_busy
        if not hanging:
            clock.threads_busy = lambda: threads_busy() or any(map(is_working, monitor._senders))
        yield monitor


def is_working(sender: Sender) -> bool:
    """Whether its thread still has work: it is neither waiting nor has it ended."""
    with sender._changed:
        is_waiting = bool(sender._changed._waiters)  # type: ignore[attr-defined]
        return not sender.has_ended and (bool(sender._queue) or not is_waiting or sender._is_closing)


class Recorder:
    """Records reports; `fault` is called for each."""

    name = "the recorder"
    every_s = 60.0

    def __init__(self, fault: Callable[[Report], object] = lambda _: None) -> None:
        self.reports: list[Report] = []
        self._fault = fault

    def send(self, report: Report) -> None:
        self.reports.append(report)
        self._fault(report)

    @property
    def stages(self) -> list[str]:
        return [report.stage for report in self.reports]


@pytest.fixture
def hang() -> Iterator[Callable[[Report], object]]:
    """A fault that blocks until the end of the test."""
    over = threading.Event()
    yield lambda _: over.wait(30)
    over.set()


def fails(_: Report) -> None:
    raise RuntimeError("https://user:hunter2@host/secret")


def exits(_: Report) -> None:
    raise SystemExit(3)


def world(*, latency_s: float = 2.0, images: int = 400) -> FakeWorld:
    return FakeWorld(
        [image(n) for n in range(images)], Service(latency_s=lambda _: latency_s), shard_size=100, page=100
    )


def watched(
    one: FakeWorld,
    *back_ends: BackEnd,
    hanging: bool = False,
    faults: Hanging | None = None,
    stop_at_s: float | None = None,
) -> tuple[object, float, RecordingObserver]:
    """Run a session with these back ends; returns its end, when it ended, and what its own observer received."""
    observer = RecordingObserver()
    one.stop_signal = stop_signal = StopSignal()
    ended: list[float] = []

    async def main() -> object:
        async def stop() -> None:
            if stop_at_s is not None:
                await anyio.sleep(stop_at_s)
                stop_signal.request("ended by SIGTERM", limit_s=GRACE_S)

        async def session(monitor: Monitor) -> None:
            one.observer = monitor
            end = await one.run(None if faults is None else faults.begin())
            if isinstance(end, BatchclError):
                raise end
            assert isinstance(end, Summary)
            monitor.summary = end

        end: object = None
        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            try:
                async with watching(observer, stop_signal, hanging=hanging) as monitor:
                    await session(monitor)
                end = monitor.summary
            except BatchclError as error:
                end = error
        ended.append(anyio.current_time())
        return end

    with mock.patch("batchcl.monitoring.monitor.open_back_ends", return_value=iter(back_ends)):
        end = run_virtual(main)
    one.stop_signal = None
    return end, ended[-1], observer


def comparable(end: object) -> object:
    if isinstance(end, Summary):
        return replace(end, started_at=EPOCH)
    return type(end), str(end)


@pytest.mark.parametrize("name", ["hangs", "fails", "exits"])
def test_no_fault_of_a_back_end_changes_a_run(hang, name):
    fault = {"hangs": hang, "fails": fails, "exits": exits}[name]
    plain = world(images=60)
    expected, ended_at, _ = watched(plain)
    one = world(images=60)
    end, late_at, observer = watched(one, Recorder(fault), hanging=name == "hangs")
    assert comparable(end) == comparable(expected)
    assert one.table() == plain.table()
    assert late_at <= ended_at + FLUSH_S + 0.1
    threads = [thread for thread in threading.enumerate() if thread.name == "batchcl: the recorder"]
    assert all(thread.daemon for thread in threads), "the process would wait for it at its exit"
    assert len(threads) == 1 or name != "hangs"
    warnings = [notice.text for notice in observer.notices if notice.kind == "monitoring-failed"]
    assert len(warnings) == 1
    assert "hunter2" not in warnings[0]
    assert warnings[0].endswith("; the run is not affected")


@pytest.mark.parametrize("operation", [OperationKind.STORE, OperationKind.CALL])
def test_a_stop_with_a_hanging_back_end_ends_within_the_grace(hang, operation):
    one = world()
    end, ended_at, _ = watched(
        one, Recorder(hang), hanging=True, faults=Hanging(operation, since_s=SIGNAL_S - 5), stop_at_s=SIGNAL_S
    )
    assert isinstance(end, StoppedError)
    assert ended_at - SIGNAL_S <= GRACE_S - 0.5


def test_a_store_that_hangs_leaves_the_back_ends_their_time():
    recorder = Recorder()
    one = world()
    end, ended_at, _ = watched(one, recorder, faults=Hanging(OperationKind.STORE, since_s=25.0), stop_at_s=SIGNAL_S)
    assert isinstance(end, StoppedError)
    assert recorder.stages[-1] == "end"
    assert recorder.reports[-1].exit_code == 4
    assert ended_at - SIGNAL_S <= (GRACE_S - FLUSH_S) * RECORDS + 0.1


def test_a_run_reports_its_start_each_minute_and_its_end():
    recorder = Recorder()
    end, ended_at, observer = watched(world(latency_s=10.0, images=200), recorder)
    assert isinstance(end, Summary)
    assert ended_at > 200
    assert recorder.stages[0] == "start"
    assert recorder.stages[-1] == "end"
    assert recorder.stages.count("sample") == int(ended_at // 60)
    last = recorder.reports[-1]
    assert last.exit_code == 0
    assert last.document is not None
    assert (last.document["scored"], last.document["status"]) == (200, "done")
    assert {sample.value for sample in last.samples if sample.labels.get("outcome") == "scored"} == {200}
    assert last.trace is not None
    assert [phase.name for phase in last.trace.phases] == ["prepare", "score"]
    assert "monitoring-failed" not in observer.kinds


def test_throttling_for_ten_minutes_is_reported_during_the_run():
    recorder, observer = Recorder(), RecordingObserver()

    async def main() -> None:
        async with watching(observer, StopSignal()) as monitor:
            progress = Progress()
            monitor.started(progress)
            for _ in range(15):
                progress.calls += 100
                progress.throttled += 60
                await anyio.sleep(60)

    with mock.patch("batchcl.monitoring.monitor.open_back_ends", return_value=iter([recorder])):
        run_virtual(main)
    (trouble,) = [report.document for report in recorder.reports if report.stage == "trouble"]
    assert trouble is not None
    assert (trouble["event"], trouble["severity"]) == ("throttled", "warning")
    assert trouble["details"] == {"calls": 1000, "throttled": 600}
    assert observer.kinds == ["throttled"]


def test_a_second_signal_keeps_the_exit_code_of_the_first():
    recorder = Recorder()

    async def main() -> None:
        stop_signal = StopSignal()
        with anyio.CancelScope() as scope:
            async with watching(RecordingObserver(), stop_signal):
                stop_signal.request("interrupted by ^C", by_user=True)
                scope.cancel()
                await anyio.sleep(1)
        assert scope.cancelled_caught

    with mock.patch("batchcl.monitoring.monitor.open_back_ends", return_value=iter([recorder])):
        run_virtual(main)
    assert recorder.stages == ["start", "end"]
    assert recorder.reports[-1].exit_code == 130


@pytest.mark.parametrize(
    ("error", "keep", "left"),
    [(None, False, False), (None, True, False), (refused("AccessDeniedException"), False, True)],
    ids=["stopped", "kept", "not stopped"],
)
def test_only_a_model_that_could_not_be_stopped_is_reported(error, keep, left):
    recorder = Recorder()
    models = Models({"cats@v1": "STOPPED"})

    async def main() -> None:
        stop_signal = StopSignal()
        model_manager = ModelManager(
            models,
            ModelArn.parse(arn_of("cats@v1")),
            units=Units(1),
            keep=keep,
            observer=RecordingObserver(),
            stop_signal=stop_signal,
        )
        async with watching(RecordingObserver(), stop_signal), model_manager.stopping():
            await model_manager.ensure_running()
            if error is not None:
                models.errors["stop"] = error

    with mock.patch("batchcl.monitoring.monitor.open_back_ends", return_value=iter([recorder])), suppress(StoppedError):
        run_virtual(main)
    document = recorder.reports[-1].document
    assert document is not None
    values = {sample.name: sample.value for sample in recorder.reports[-1].samples}
    assert values["batchcl_model_left_running"] == int(left)
    if left:
        assert "the model cats@v1 could not be stopped and may be RUNNING" in document["model_left"]
        assert document["severity"] == "error"
    else:
        assert document["model_left"] is None
