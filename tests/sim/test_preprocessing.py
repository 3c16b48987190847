"""Images that are prepared concurrently with the calls: none is lost, and calls don't wait for them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcl.errors import BatchclError, CallError, FatalCallError, HostError, ImageError, RejectedError, TransientError
from batchcl.events import Progress
from batchcl.images import ImageRef, SkipReason
from batchcl.loaders.base import Prepared
from batchcl.pacing.controller import RateController
from batchcl.pacing.pacer import AdaptivePacer, Pacer
from batchcl.scoring import preprocessing
from batchcl.scoring.engine import Engine, EngineSettings
from sim.service import MemorySink, Service, UnpacedPacer, WaitingRecovery, batches, image
from virtual import run_virtual

REFUSAL = ImageError("Request has invalid image format", code="InvalidImageFormatException", status=400)


@dataclass
class FakePreparer:
    """A preparer; the number of an image determines what it needs: see `needs`."""

    needs: Callable[[int], bool] = lambda _: False
    prepare_s: float = 1.0
    broken: Callable[[int], bool] = lambda _: False
    fine: Callable[[int], bool] = lambda _: False
    error: Callable[[int, int], CallError | None] = lambda *_: None
    most_held: int = 1_000_000
    held: set[str] = field(default_factory=set)
    peak: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    def needs_preparation(self, image: ImageRef) -> bool:
        return self.needs(number(image))

    def may_fix(self, error: ImageError) -> bool:
        return error.code == REFUSAL.code

    def has_capacity(self) -> bool:
        return len(self.held) < self.most_held

    async def prepare(self, image: ImageRef) -> Prepared | SkipReason:
        self.asked[image.uri] += 1
        await anyio.sleep(self.prepare_s)
        if (error := self.error(number(image), self.asked[image.uri])) is not None:
            raise error
        if self.broken(number(image)):
            return SkipReason("BrokenImage", "the picture can't be decoded")
        if self.fine(number(image)):
            return Prepared()
        self.held.add(image.uri)
        self.peak = max(self.peak, len(self.held))
        return Prepared("WEBP to JPEG")

    def release(self, image: ImageRef) -> None:
        self.held.discard(image.uri)


def number(image: ImageRef) -> int:
    return int(image.key.removesuffix(".jpg"))


class Run:
    """One engine with a preparer."""

    def __init__(
        self, preparer: FakePreparer, service: Service, *, max_in_flight: int = 64, pacer: Pacer | None = None
    ) -> None:
        self.preparer = preparer
        self.service = service
        self.sink = MemorySink()
        self.progress = Progress()
        self.error: BatchclError | None = None
        self.ended_at = 0.0
        self._max_in_flight = max_in_flight
        self._pacer = pacer

    def over(self, images: Iterable[ImageRef], *, drain_at: float | None = None) -> Run:
        async def main() -> None:
            engine = Engine(
                self.service,
                self._pacer or AdaptivePacer(RateController()),
                self.sink,
                WaitingRecovery(),
                progress=self.progress,
                settings=EngineSettings(max_in_flight=self._max_in_flight),
                preparer=self.preparer,
                rng=random.Random(1),
            )
            async with anyio.create_task_group() as group:
                if drain_at is not None:
                    group.start_soon(self._drain, engine, drain_at)
                try:
                    await engine.run(batches(images))
                except BatchclError as error:
                    self.error = error
                self.ended_at = anyio.current_time()
                group.cancel_scope.cancel()

        run_virtual(main, is_alone=True)
        return self

    @staticmethod
    async def _drain(engine: Engine, at: float) -> None:
        await anyio.sleep(at)
        engine.drain()

    def assert_each_once(self, count: int) -> None:
        assert Counter(outcome.image.uri for _, outcome in self.sink.outcomes) == {
            image(n).uri: 1 for n in range(count)
        }
        assert len(set(self.sink.positions)) == count
        assert self.sink.closed
        assert self.preparer.held == set(), "all is released"


def refusing(preparer: FakePreparer, which: Callable[[int], bool]) -> Service:
    """Refuses these images until they are prepared."""
    return Service(
        fault=lambda each, _call, _now: REFUSAL if which(number(each)) and each.uri not in preparer.held else None
    )


def test_images_are_changed_before_their_call_and_rows_say_how():
    preparer = FakePreparer(needs=lambda n: n % 4 == 0)
    run = Run(preparer, refusing(preparer, lambda n: n % 4 == 0)).over(map(image, range(100)))
    run.assert_each_once(100)
    assert {(number(each.image) % 4 == 0, each.fitted, each.attempts) for each in run.sink.scored} == {
        (True, "WEBP to JPEG", 1),
        (False, None, 1),
    }
    assert run.progress.calls == 100


def test_preparation_uses_no_call_slot_and_no_turn():
    """One in ten images needs 0.8 s of preparation; the others are called for at the model's rate."""
    preparer = FakePreparer(needs=lambda n: n % 10 == 0, prepare_s=0.8)
    run = Run(preparer, Service(tps=lambda _: 20.0), max_in_flight=8).over(map(image, range(600)))
    run.assert_each_once(600)
    assert run.ended_at < 600 / 20 * 1.2
    late = [outcome.fitted for _, outcome in run.sink.outcomes[-20:] if hasattr(outcome, "fitted")]
    assert late.count(None) > 10, "they were ready long before the end"


def test_refused_images_are_changed_and_called_for_again():
    preparer = FakePreparer()
    run = Run(preparer, refusing(preparer, lambda n: n % 3 == 0)).over(map(image, range(90)))
    run.assert_each_once(90)
    assert run.sink.failed == []
    assert {(each.fitted is None, each.attempts) for each in run.sink.scored} == {(True, 1), (False, 2)}
    assert run.progress.calls == 90 + 30


def test_calls_wait_while_too_many_refused_images_wait():
    """All images are refused, and preparing one takes as long as 100 calls: few images wait."""
    preparer = FakePreparer(prepare_s=10.0)
    service = refusing(preparer, lambda _: True)
    run = Run(preparer, service, max_in_flight=16, pacer=UnpacedPacer())
    run.over(map(image, range(400)))
    run.assert_each_once(400)
    first_calls = [at for at in service.sent_at if at < 5.0]
    assert len(first_calls) <= 32 + 16 + 2 * preprocessing._WORKERS
    assert preparer.peak <= 32 + 16 + 2 * preprocessing._WORKERS


def test_the_number_of_prepared_images_is_bounded():
    preparer = FakePreparer(needs=lambda _: True, prepare_s=0.001, most_held=10)
    run = Run(preparer, Service(tps=lambda _: 5.0)).over(map(image, range(200)))
    run.assert_each_once(200)
    assert preparer.peak <= 10 + preprocessing._WORKERS
    counted = FakePreparer(needs=lambda _: True, prepare_s=0.001)
    run = Run(counted, Service(tps=lambda _: 5.0), max_in_flight=4).over(map(image, range(200)))
    run.assert_each_once(200)
    assert counted.peak <= 2 * 4


def test_unfixable_images_are_skipped_or_fail_with_the_reason():
    preparer = FakePreparer(needs=lambda n: n < 10, broken=lambda n: n % 2 == 0, fine=lambda n: n == 11)
    run = Run(preparer, refusing(preparer, lambda n: 10 <= n < 20)).over(map(image, range(30)))
    run.assert_each_once(30)
    skipped = [each for each in run.sink.failed if each.status == "skipped"]
    assert {(each.code, each.attempts) for each in skipped} == {("BrokenImage", 0)}
    assert sorted(number(each.image) for each in skipped) == [0, 2, 4, 6, 8]
    failed = {number(each.image): each for each in run.sink.failed if each.status == "failed"}
    assert sorted(failed) == [10, 11, 12, 14, 16, 18]
    assert {n: each.code for n, each in failed.items()} == {
        n: REFUSAL.code if n == 11 else "BrokenImage" for n in failed
    }
    assert {each.attempts for each in failed.values()} == {1}
    assert failed[10].message == (
        "InvalidImageFormatException: Request has invalid image format; --fit can't help: the picture can't be decoded"
    )
    assert failed[11].message == "Request has invalid image format"


def test_unreadable_bytes_are_prepared_after_the_calls_refusal():
    lost = TransientError("S3 didn't give the object", code="SlowDown")
    preparer = FakePreparer(needs=lambda _: True, error=lambda _, time: lost if time == 1 else None)
    run = Run(preparer, refusing(preparer, lambda _: True)).over(map(image, range(5)))
    run.assert_each_once(5)
    assert run.sink.failed == []
    assert {each.attempts for each in run.sink.scored} == {2}


def test_reading_after_a_refusal_is_retried_within_the_attempts():
    """One read fails, then six (within the attempts), then all: no call is made for unprepared images."""
    lost = HostError("S3 gave no whole answer", code="ConnectionLost")
    failing = {0: 0, 1: 1, 2: 6, 3: 7, 4: 1_000}
    preparer = FakePreparer(error=lambda n, time: lost if time <= failing[n] else None)
    run = Run(preparer, refusing(preparer, lambda _: True)).over(map(image, range(5)))
    run.assert_each_once(5)
    assert {number(each.image): each.attempts for each in run.sink.scored} == {0: 2, 1: 3, 2: 8}
    assert {(number(each.image), each.code, each.attempts) for each in run.sink.failed} == {
        (3, "ConnectionLost", 8),
        (4, "ConnectionLost", 8),
    }
    assert preparer.asked == {image(0).uri: 1, image(1).uri: 2, image(2).uri: 7, image(3).uri: 7, image(4).uri: 7}
    assert run.progress.calls == 5 + 3
    assert run.error is None, "it isn't the service that gives nothing"


def test_images_to_be_read_again_do_not_delay_others():
    """For some seconds, more refused images than are read ahead are unreadable: the rate does not change."""
    lost = HostError("slow down", code="SlowDown")
    preparer = FakePreparer(prepare_s=0.05, error=lambda *_: lost if anyio.current_time() < 6.0 else None)
    run = Run(preparer, refusing(preparer, lambda n: n < 100 and n % 2 == 0), max_in_flight=16, pacer=UnpacedPacer())
    run.over(map(image, range(1000)))
    run.assert_each_once(1000)
    assert run.sink.failed == []
    assert len([1 for at in run.service.sent_at if at < 8.0]) >= 1000, "0.1 s a call, sixteen at a time"


def test_calls_wait_while_too_many_images_are_to_be_read_again():
    """S3 is unreachable for a while and all images are refused: the number of waiting images is bounded."""
    lost = HostError("slow down", code="SlowDown")
    preparer = FakePreparer(prepare_s=0.001, error=lambda *_: lost if anyio.current_time() < 4.0 else None)
    run = Run(preparer, refusing(preparer, lambda _: True), max_in_flight=64, pacer=UnpacedPacer())
    run.over(map(image, range(3000)))
    run.assert_each_once(3000)
    assert run.sink.failed == []
    assert len([1 for at in run.service.sent_at if at < 4.0]) <= 1024 + 128 + 64 + preprocessing._WORKERS


def test_a_drain_does_not_wait_for_images_to_be_read_again():
    preparer = FakePreparer(error=lambda *_: HostError("slow down", code="SlowDown"))
    run = Run(preparer, refusing(preparer, lambda n: n == 0)).over(map(image, range(1000)), drain_at=8.0)
    assert run.error is None
    assert run.ended_at < 9.0
    assert image(0).uri not in {outcome.image.uri for _, outcome in run.sink.outcomes}, "the next session does it"


def test_unreadable_bytes_fail_an_image_and_credentials_the_run():
    gone = ImageError("S3 has no such object", code="InvalidS3ObjectException")
    run = Run(FakePreparer(needs=lambda n: n == 2, error=lambda *_: gone), Service()).over(map(image, range(5)))
    run.assert_each_once(5)
    assert [(each.status, each.attempts) for each in run.sink.failed] == [("failed", 0)]
    fatal = FatalCallError("no AWS credentials found", code="Credentials")
    stopped = Run(FakePreparer(needs=lambda n: n == 2, error=lambda *_: fatal), Service(tps=lambda _: 5.0))
    assert stopped.over(map(image, range(500))).error is fatal
    assert len(stopped.sink.outcomes) < 500


@pytest.mark.parametrize("revoked", [True, False])
def test_lost_read_access_ends_the_run_without_failure_rows(revoked: bool):
    def denied(n: int) -> CallError | None:
        if n < 100 or (n > 100 and not revoked):
            return None
        return RejectedError("S3 denies access to the object", code="AccessDenied")

    preparer = FakePreparer(needs=lambda n: n >= 50, error=lambda n, _: denied(n), prepare_s=0.01)
    run = Run(preparer, Service(fault=lambda each, *_: denied(number(each)))).over(map(image, range(150)))
    assert len(run.sink.failed) == (0 if revoked else 1)
    assert (run.error is not None) == revoked


@pytest.mark.parametrize("drain_at", [0.5, 3.0, 9.0])
def test_a_drain_ends_at_once_whatever_is_being_prepared(drain_at: float):
    preparer = FakePreparer(needs=lambda n: n % 2 == 0, prepare_s=5.0)
    run = Run(preparer, refusing(preparer, lambda n: n % 3 == 0), max_in_flight=8)
    run.over(map(image, range(5000)), drain_at=drain_at)
    assert run.error is None
    assert run.ended_at < drain_at + 1.0
    assert len(run.sink.positions) == len(set(run.sink.positions))


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(1, 12))
def test_each_image_has_one_outcome_under_random_faults(rng: random.Random, count: int, max_in_flight: int):
    kinds = {n: rng.choice(["plain", "ahead", "refused", "broken", "lost"]) for n in range(count)}
    preparer = FakePreparer(
        needs=lambda n: kinds[n] == "ahead" or n % 7 == 0,
        prepare_s=rng.choice([0.001, 0.5, 20.0]),
        broken=lambda n: kinds[n] == "broken",
        error=lambda n, _: TransientError("lost", code="SlowDown") if kinds[n] == "lost" else None,
        most_held=rng.choice([1, 3, 1000]),
    )

    def fault(each: ImageRef, call: int, _now: float) -> CallError | None:
        if rng.random() < 0.1 and call < 4:
            return TransientError("cut", code="ConnectionLost")
        unfit = kinds[number(each)] in {"refused", "broken", "lost"}
        return REFUSAL if unfit and each.uri not in preparer.held else None

    service = Service(tps=lambda _: 15.0, latency_s=lambda r: r.choice([0.05, 0.2, 4.0]), fault=fault)
    run = Run(preparer, service, max_in_flight=max_in_flight).over(map(image, range(count)))
    run.assert_each_once(count)
    assert run.error is None
