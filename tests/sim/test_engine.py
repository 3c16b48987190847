"""The engine in virtual time: each image has exactly one outcome, regardless of errors."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcl.errors import (
    BatchclError,
    CallError,
    FatalCallError,
    HostError,
    ImageError,
    ModelGoneError,
    ModelNotReadyError,
    OutputError,
    ShortageError,
    SourceError,
    StalledError,
    ThrottledError,
    TransientError,
)
from batchcl.events import Progress
from batchcl.images import ImageRef
from batchcl.outcomes import Detection, Outcome
from batchcl.pacing.controller import RateController
from batchcl.pacing.pacer import AdaptivePacer, Pacer
from batchcl.scoring.engine import Engine, EngineSettings
from sim.service import MemorySink, Service, UnpacedPacer, WaitingRecovery, batches, image
from virtual import run_virtual


class Run:
    """One engine with a fake service, sink and recovery."""

    def __init__(
        self,
        service: Service,
        *,
        sink: MemorySink | None = None,
        recovery: WaitingRecovery | None = None,
        max_in_flight: int = 64,
        max_attempts: int = 8,
        pacer: Pacer | None = None,
    ) -> None:
        self.service = service
        self.sink = sink or MemorySink()
        self.recovery = recovery or WaitingRecovery()
        self.progress = Progress()
        self.error: BatchclError | None = None
        self.ended_at = 0.0
        self._settings = EngineSettings(max_in_flight=max_in_flight, max_attempts=max_attempts)
        self._pacer = pacer
        self.engine: Engine

    def over(self, images: Iterable[ImageRef], *, drain_at: float | None = None, shard_size: int = 10_000) -> Run:
        async def main() -> None:
            self.engine = Engine(
                self.service,
                self._pacer or AdaptivePacer(RateController()),
                self.sink,
                self.recovery,
                progress=self.progress,
                settings=self._settings,
                rng=random.Random(1),
            )
            async with anyio.create_task_group() as group:
                if drain_at is not None:
                    group.start_soon(self._drain, drain_at)
                try:
                    await self.engine.run(batches(images, shard_size))
                except BatchclError as error:
                    self.error = error
                self.ended_at = anyio.current_time()
                group.cancel_scope.cancel()

        run_virtual(main, is_alone=True)
        return self

    async def _drain(self, at: float) -> None:
        await anyio.sleep(at)
        self.engine.drain()

    def uris(self) -> Counter[str]:
        return Counter(outcome.image.uri for _, outcome in self.sink.outcomes)

    def assert_each_once(self, count: int) -> None:
        assert self.uris() == Counter({image(n).uri: 1 for n in range(count)})
        snapshot = self.progress.snapshot(self.ended_at)
        assert snapshot.done == count
        assert len(set(self.sink.positions)) == count
        assert self.sink.closed


def transient(_image: ImageRef, _call: int, _now: float) -> CallError:
    return TransientError("Service Unavailable", code="ThrottlingException", status=500)


def test_every_image_is_scored_once_and_all_call_slots_are_used():
    run = Run(Service(latency_s=lambda _: 1.0), max_in_flight=10, pacer=UnpacedPacer()).over(map(image, range(200)))
    run.assert_each_once(200)
    assert run.service.most_in_flight == 10
    assert run.ended_at == pytest.approx(20.0, abs=0.1)


def test_throttled_images_are_never_lost_and_cost_no_attempt():
    run = Run(Service(tps=lambda _: 10.0)).over(map(image, range(300)))
    run.assert_each_once(300)
    assert run.sink.failed == []
    assert {scored.attempts for scored in run.sink.scored} == {1}
    assert run.progress.throttled > 0
    assert run.progress.throttled == run.progress.calls - 300
    assert run.ended_at < 300 / 10 * 1.25, "the capacity is used"
    assert run.progress.throttled < 30, "and not overrun"


def test_throttled_images_go_back_to_the_front():
    def fault(each: ImageRef, call: int, _now: float) -> CallError | None:
        return ThrottledError("slow", code="x") if each == image(0) and call <= 3 else None

    run = Run(Service(fault=fault), max_in_flight=1).over(map(image, range(20)))
    assert run.sink.scored[0].image == image(0)


def test_transient_errors_are_retried_seven_times_with_jitter():
    run = Run(Service(fault=transient)).over(map(image, range(5)))
    run.assert_each_once(5)
    assert [(failed.code, failed.status, failed.attempts) for failed in run.sink.failed] == [
        ("ThrottlingException", "failed", 8)
    ] * 5
    assert set(run.service.calls.values()) == {8}
    assert len(set(run.service.sent_at)) == 40, "jitter spreads them"


def test_an_image_that_recovers_keeps_count_of_its_attempts():
    run = Run(Service(fault=lambda _i, call, _n: transient(_i, call, _n) if call < 4 else None)).over([image(0)])
    assert [scored.attempts for scored in run.sink.scored] == [4]


def test_waiting_for_a_retry_holds_no_call_slot():
    def fault(each: ImageRef, call: int, now: float) -> CallError | None:
        return transient(each, call, now) if each == image(0) else None

    run = Run(Service(fault=fault), max_in_flight=1, pacer=UnpacedPacer()).over(map(image, range(10)))
    assert [outcome.image for _, outcome in run.sink.outcomes][-1] == image(0)
    run.assert_each_once(10)


def test_an_image_error_fails_only_its_image():
    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ImageError("not a PNG", code="InvalidImageFormatException", status=400) if each == image(3) else None

    run = Run(Service(fault=fault)).over(map(image, range(10)))
    run.assert_each_once(10)
    assert [(failed.image, failed.attempts) for failed in run.sink.failed] == [(image(3), 1)]


def test_images_that_violate_a_limit_need_no_call():
    unfit = ImageRef(uri="s3://b/x.gif", bucket="b", key="x.gif", size_bytes=5)
    run = Run(Service()).over([image(0), unfit])
    assert [(failed.status, failed.code, failed.attempts) for failed in run.sink.failed] == [
        ("skipped", "UnsupportedExtension", 0)
    ]
    assert run.service.calls.keys() == {image(0).uri}
    assert sorted(run.sink.positions) == [(0, 0), (0, 1)]


def test_a_fatal_error_stops_at_once_and_keeps_what_is_done():
    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        return FatalCallError("denied", code="AccessDeniedException", status=400) if now > 5 else None

    run = Run(Service(fault=fault)).over(map(image, range(10_000)))
    assert isinstance(run.error, FatalCallError)
    assert run.sink.closed
    assert 5 < run.ended_at < 6
    assert run.sink.failed == [], "no image is to blame"
    assert len(run.sink.scored) == sum(run.service.answered.values()) > 10
    assert max(run.uris().values()) == 1


def test_calls_pause_while_the_model_is_not_ready():
    down = (10.0, 100.0)

    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        is_down = down[0] <= now < down[1]
        return ModelNotReadyError("not ready", code="ResourceNotReadyException") if is_down else None

    run = Run(Service(fault=fault, tps=lambda _: 50), recovery=WaitingRecovery(seconds=95)).over(
        map(image, range(2000))
    )
    run.assert_each_once(2000)
    assert len(run.recovery.pauses) == 1
    assert not [at for at in run.service.sent_at if 11 < at < 100]
    assert run.sink.failed == []


def test_a_model_that_stays_not_ready_ends_the_run_without_loss():
    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        return ModelNotReadyError("not ready", code="ResourceNotReadyException") if now > 10 else None

    recovery = WaitingRecovery(error=ModelGoneError("gone"))
    run = Run(Service(fault=fault, tps=lambda _: 50), recovery=recovery).over(map(image, range(2000)))
    assert isinstance(run.error, ModelGoneError)
    assert len(run.sink.scored) == sum(run.service.answered.values())
    assert run.sink.closed


def test_draining_ends_calls_in_flight_and_keeps_their_outcomes():
    run = Run(Service(latency_s=lambda _: 2.0), max_in_flight=20, pacer=UnpacedPacer()).over(
        map(image, range(10_000)), drain_at=5.0
    )
    assert run.error is None
    assert run.ended_at == pytest.approx(6.0, abs=0.01)
    assert len(run.sink.scored) == sum(run.service.answered.values()) == 60
    assert run.sink.closed


def test_a_drain_does_not_wait_for_the_model():
    def fault(_each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ModelNotReadyError("not ready", code="ResourceNotReadyException")

    run = Run(Service(fault=fault), recovery=WaitingRecovery(seconds=1e6)).over(map(image, range(9)), drain_at=20.0)
    assert run.ended_at == pytest.approx(20.0, abs=0.01)


def test_a_sink_that_cannot_keep_outcomes_ends_the_run():
    sink = MemorySink(fail_at=7, error=OutputError("disk full"), save_error=OutputError("still full"))
    run = Run(Service(), sink=sink).over(map(image, range(5000)))
    assert run.error is sink.error, "the first error is the one that is told"
    assert sink.saved
    assert not sink.closed
    assert len(sink.outcomes) == sum(run.service.answered.values()), "what was in flight is handed over to be saved"
    assert run.progress.calls < 200


def test_an_error_of_the_list_ends_the_run_and_keeps_outcomes():
    def images() -> Iterable[ImageRef]:
        yield from map(image, range(1500))
        raise SourceError("the listing broke off")

    run = Run(Service()).over(images())
    assert isinstance(run.error, SourceError)
    assert len(run.sink.scored) == sum(run.service.answered.values())


def test_max_tps_is_never_exceeded_in_any_second():
    service = Service()
    Run(service, pacer=AdaptivePacer(RateController(), max_tps=7)).over(map(image, range(200)))
    sent = sorted(service.sent_at)
    most = max(sum(1 for other in sent if at <= other < at + 1) for at in sent)
    assert most <= 8, "seven, and one on the edge"
    assert sent[-1] - sent[0] == pytest.approx(199 / 7, rel=0.05)


def test_memory_does_not_grow_with_the_number_of_images():
    class Forgetful(MemorySink):
        def record(self, shard: int, position: int, outcome: Outcome) -> None:
            """Discard the outcome."""

    class CountingService(Service):
        async def detect(self, image: ImageRef) -> Detection:
            await anyio.lowlevel.checkpoint()
            return Detection((), "r")

    def peak(count: int) -> int:
        run = Run(CountingService(), sink=Forgetful(), pacer=UnpacedPacer(), max_in_flight=32)
        tracemalloc.start()
        run.over((image(n) for n in range(count)), shard_size=500)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.progress.scored == count
        return most

    peak(5_000)  # what the interpreter allocates once
    assert peak(4_000) < 1.05 * peak(1_000)


@settings(max_examples=40)
@given(data=st.data())
def test_each_image_has_one_outcome_under_random_errors(data):
    count = data.draw(st.integers(1, 60))
    seed = data.draw(st.integers(0, 10_000))
    rng = random.Random(seed)
    errors = [
        lambda: ThrottledError("slow", code="ProvisionedThroughputExceededException"),
        lambda: ThrottledError("sudden", code="ThrottlingException", sudden=True),
        lambda: TransientError("reset", code="ConnectionClosedError"),
        lambda: ImageError("bad", code="ImageTooLargeException", status=400),
        lambda: ModelNotReadyError("later", code="ResourceNotReadyException"),
    ]
    share = data.draw(st.floats(0, 0.6))

    def fault(_each: ImageRef, _call: int, _now: float) -> CallError | None:
        return rng.choice(errors)() if rng.random() < share else None

    run = Run(Service(fault=fault, latency_s=lambda r: r.random()), max_in_flight=data.draw(st.integers(1, 16)))
    run.over(map(image, range(count)), shard_size=data.draw(st.integers(1, 30)))
    assert run.error is None
    run.assert_each_once(count)


def hanging(first: ImageRef) -> Service:
    """The first call for the image takes a minute, all others 0.1 s."""

    class Hanging(Service):
        async def detect(self, each: ImageRef) -> Detection:
            if each == first and not self.calls[each.uri]:
                self.calls[each.uri] += 1
                await anyio.sleep(60)
            return await super().detect(each)

    return Hanging()


def test_a_hanging_last_call_is_hedged():
    service = hanging(image(199))
    run = Run(service, pacer=UnpacedPacer()).over(map(image, range(200)))
    run.assert_each_once(200)
    assert run.ended_at < 4
    assert service.calls[image(199).uri] == 2
    assert sum(service.calls.values()) == 201, "no other call is doubled"


def test_calls_of_usual_latency_are_not_hedged():
    service = Service(latency_s=lambda _: 30.0)
    run = Run(service, pacer=UnpacedPacer(), max_in_flight=5).over(map(image, range(20)))
    run.assert_each_once(20)
    assert set(service.calls.values()) == {1}


def test_a_hedged_call_that_fails_is_one_failure():
    class FailingService(Service):
        async def detect(self, each: ImageRef) -> Detection:
            if each == image(19):
                self.calls[each.uri] += 1
                await anyio.sleep(30)
                raise ImageError("larger than 4096 pixels", code="ImageTooLargeException", status=400)
            return await super().detect(each)

    service = FailingService()
    run = Run(service, pacer=UnpacedPacer()).over(map(image, range(20)))
    run.assert_each_once(20)
    assert [failed.image for failed in run.sink.failed] == [image(19)]
    assert service.calls[image(19).uri] == 2


def test_a_drain_waits_20_s_for_calls_in_flight():
    service = hanging(image(3))
    run = Run(service, pacer=UnpacedPacer(), max_in_flight=8).over(map(image, range(100_000)), drain_at=5)
    assert run.ended_at == pytest.approx(25, abs=0.5)
    assert image(3).uri not in run.uris(), "it is left to the next session"
    assert run.sink.closed


def test_an_outage_costs_no_image_an_attempt():
    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        return TransientError("reset", code="ConnectionClosedError") if 5 < now < 600 else None

    run = Run(Service(fault=fault), pacer=UnpacedPacer(), max_in_flight=8).over(map(image, range(2000)))
    run.assert_each_once(2000)
    assert run.sink.failed == []
    assert run.ended_at < 700, "it goes on soon after the outage"
    assert run.progress.calls < 2000 + 8 * 60, "and hardly calls while it lasts"


def test_a_long_outage_ends_the_run_and_fails_no_image():
    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        return TransientError("reset", code="ConnectionClosedError") if now > 5 else None

    run = Run(Service(fault=fault), pacer=UnpacedPacer(), max_in_flight=8).over(map(image, range(2000)))
    assert isinstance(run.error, StalledError)
    assert 900 < run.ended_at < 1000
    assert run.sink.failed == []


def test_a_descriptor_shortage_reduces_concurrency_for_a_time():
    """For a minute, only ten calls at a time get a file descriptor."""
    service = Service(latency_s=lambda _: 0.5)

    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        return ShortageError("no descriptor", code="Shortage") if service.in_flight > 10 and now < 60 else None

    service._fault = fault
    run = Run(service, pacer=UnpacedPacer(), max_in_flight=64).over(map(image, range(4000)))
    run.assert_each_once(4000)
    assert {each.attempts for each in run.sink.scored} == {1}
    assert run.sink.failed == []
    first, later = ([at for at in service.sent_at if low < at <= high] for low, high in ((10, 60), (90, 100)))
    assert len(first) < 2.5 * 50 * 10 / 0.5, "few calls are wasted"
    assert len(later) > 10 * 40, "all slots are used again"
    assert run.ended_at < 120


def test_a_failing_image_host_fails_its_images_without_a_pause():
    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return HostError("its host answered 503", code="Http503") if each in lost else None

    lost = set(map(image, range(100, 150)))
    run = Run(Service(fault=fault), pacer=UnpacedPacer(), max_in_flight=8).over(map(image, range(2000)))
    run.assert_each_once(2000)
    assert {each.image for each in run.sink.failed} == lost
    assert {(each.code, each.attempts) for each in run.sink.failed} == {("Http503", 8)}
    assert run.progress.calls == 2000 - len(lost), "the service wasn't asked about the others"
    assert run.error is None


def test_unreadable_images_do_not_affect_the_call_rate():
    """An image that was not sent is not a call and must not raise the rate."""

    class CountingPacer(UnpacedPacer):
        succeeded_calls = 0

        def succeeded(self, *, sent_at: float) -> None:
            self.succeeded_calls += 1
            super().succeeded(sent_at=sent_at)

    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return ImageError("it is gone", code="UnreadableFile") if each == image(3) else None

    pacer = CountingPacer()
    run = Run(Service(fault=fault), pacer=pacer).over(map(image, range(10)))
    assert [each.code for each in run.sink.failed] == ["UnreadableFile"]
    assert (pacer.succeeded_calls, run.progress.calls) == (9, 9)
