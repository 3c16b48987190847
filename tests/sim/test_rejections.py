"""Rejected calls: single ones are failures; 20 in a row end the run and are not recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from batchcl.errors import CallError, FatalCallError, ImageError, RefusedError, RejectedError, StoppedError
from batchcl.images import ImageRef
from batchcl.outcomes import Detection
from batchcl.summary import Summary
from sim.fake_world import FakeWorld, run_simulation
from sim.service import Service, UnpacedPacer, image
from sim.test_engine import Run

CODES = ("AccessDeniedException", "InvalidParameterException", "InvalidS3ObjectException", "SomethingNewException")

Fault = Callable[[ImageRef, int, float], CallError | None]


def rejection(code: str = "AccessDeniedException") -> RejectedError:
    return RejectedError("no", code=code, status=400, is_general=code == "AccessDeniedException")


def rejecting(which: Callable[[int], bool], code: str = "AccessDeniedException") -> Fault:
    """Reject images by number, immediately; scoring takes longer."""
    return lambda each, _call, _now: rejection(code) if which(int(each.key[:6])) else None


def revoked(code: str, at_s: float) -> Fault:
    return lambda _each, _call, now: rejection(code) if now >= at_s else None


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("max_in_flight", [1, 64])
@pytest.mark.parametrize("number", [0, 150, 299])
def test_one_image_of_300_fails_alone(code: str, max_in_flight: int, number: int) -> None:
    run = Run(Service(fault=rejecting(lambda n: n == number, code)), max_in_flight=max_in_flight)
    run.over(map(image, range(300)))
    assert run.error is None
    run.assert_each_once(300)
    assert [(each.image, each.code, each.attempts) for each in run.sink.failed] == [(image(number), code, 1)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("max_in_flight", [1, 64])
def test_a_revoked_permission_ends_the_run_without_failure_rows(code: str, max_in_flight: int) -> None:
    service = Service(fault=revoked(code, 20), tps=lambda _: 50, latency_s=lambda rng: rng.uniform(0.02, 1.0))
    run = Run(service, max_in_flight=max_in_flight).over(map(image, range(100_000)))
    assert isinstance(run.error, FatalCallError)
    assert code in str(run.error)
    assert "not recorded" in str(run.error)
    assert run.sink.failed == []
    assert len(run.sink.scored) == sum(run.service.answered.values())
    assert run.engine.answered
    assert run.progress.calls < len(run.sink.scored) + run.progress.throttled + 150


@pytest.mark.parametrize("code", CODES)
def test_the_first_images_all_rejected_end_the_run(code: str) -> None:
    run = Run(Service(fault=rejecting(lambda _: True, code)), max_in_flight=4).over(map(image, range(5000)))
    assert isinstance(run.error, FatalCallError)
    assert "the first 20 calls" in str(run.error)
    assert run.sink.outcomes == []
    assert not run.engine.answered
    assert run.progress.calls < 30


@pytest.mark.parametrize("code", CODES)
def test_scattered_rejections_are_failures_at_any_speed(code: str) -> None:
    """Two of three images are rejected immediately; scoring takes two seconds."""

    class Uneven(Service):
        async def detect(self, image: ImageRef) -> Detection:
            if int(image.key[:6]) % 3:
                raise rejection(code)
            return await super().detect(image)

    run = Run(Uneven(latency_s=lambda _: 2.0), pacer=UnpacedPacer()).over(map(image, range(3000)))
    assert run.error is None
    run.assert_each_once(3000)
    assert len(run.sink.failed) == 2000


@pytest.mark.parametrize(("count", "ends"), [(19, False), (20, True)])
def test_nineteen_in_a_row_are_failures_and_twenty_are_not(count: int, ends: bool) -> None:
    run = Run(Service(fault=rejecting(lambda n: 50 <= n < 50 + count)), max_in_flight=1).over(map(image, range(200)))
    assert (run.error is not None) == ends
    assert len(run.sink.failed) == (0 if ends else 19)


def test_many_missing_images_in_a_row_are_failures() -> None:
    """Another call for a scored image shows that the bucket can still be read."""
    run = Run(Service(fault=rejecting(lambda n: 100 <= n < 900, "InvalidS3ObjectException")))
    run.over(map(image, range(1000)))
    assert run.error is None
    run.assert_each_once(1000)
    assert len(run.sink.failed) == 800
    assert run.progress.calls <= 1000 + 800 / 20, "a check for each row of 20 at most"


def test_an_image_error_shows_that_images_can_be_read() -> None:
    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        if int(each.key[:6]) % 10 == 0:
            return ImageError("not a PNG", code="InvalidImageFormatException", status=400)
        return rejection()

    run = Run(Service(fault=fault), max_in_flight=1).over(map(image, range(100)))
    assert run.error is None
    run.assert_each_once(100)


@pytest.mark.parametrize("code", ["InvalidParameterException", "InvalidS3ObjectException"])
def test_a_short_list_of_rejected_images_fails_each_of_them(code: str) -> None:
    run = Run(Service(fault=rejecting(lambda _: True, code))).over(map(image, range(19)))
    assert run.error is None
    run.assert_each_once(19)


def test_a_short_list_without_access_is_refused() -> None:
    run = Run(Service(fault=rejecting(lambda _: True))).over(map(image, range(5)))
    assert isinstance(run.error, FatalCallError)
    assert run.sink.outcomes == []


def test_a_drain_leaves_held_images_to_the_next_session() -> None:
    run = Run(Service(fault=revoked("AccessDeniedException", 9.5), tps=lambda _: 1, latency_s=lambda _: 0.01))
    run.over(map(image, range(1000)), drain_at=15.0)
    assert run.error is None
    assert run.sink.failed == []
    assert len(run.sink.scored) == sum(run.service.answered.values()) > 0
    assert run.progress.calls > len(run.sink.scored) + run.progress.throttled, "some were rejected"


def test_throttled_calls_between_rejections_do_not_hide_a_row() -> None:
    service = Service(fault=revoked("AccessDeniedException", 20), tps=lambda _: 5)
    run = Run(service, pacer=UnpacedPacer(), max_in_flight=8).over(map(image, range(5000)))
    assert isinstance(run.error, FatalCallError)
    assert run.sink.failed == []


@pytest.mark.parametrize("code", CODES)
def test_the_next_session_scores_what_was_held(code: str) -> None:
    async def main() -> None:
        images = [replace(image(n), etag=f"e{n}") for n in range(300)]
        is_revoked = False

        def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
            nonlocal is_revoked
            is_revoked = is_revoked or (each == images[100] and not given_back)
            return rejection(code) if is_revoked else None

        given_back = False
        asked = FakeWorld(images, Service(fault=fault), shard_size=40, max_in_flight=4)
        end = await asked.run()
        assert isinstance(end, StoppedError), end
        is_revoked, given_back = False, True
        summary = await asked.run()
        assert isinstance(summary, Summary), summary
        assert (summary.scored, summary.failed) == (300, 0)

    run_simulation(main)


def test_nothing_scored_and_all_rejected_is_a_refusal() -> None:
    async def main() -> None:
        asked = FakeWorld([image(n) for n in range(100)], Service(fault=rejecting(lambda _: True)), max_in_flight=2)
        assert isinstance(await asked.run(), RefusedError)

    run_simulation(main)
