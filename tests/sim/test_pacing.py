"""The promises of pacing: the capacity is used, few calls are throttled, and concurrent runs share a model.

Uses the benchmark's simulation on parts of its traces, with other seeds, and the real pacer and engine in virtual time.
`benchmarks/pacing.py` prints the full figures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import mean, median

import anyio
import pytest
from pacing_peers.paced import Paced
from pacing_peers.run import BATCHCL, ORACLE, measure, share, start
from pacing_peers.traces import TRACES, constant
from pacing_peers.world import Line, Loop, Meter

from batchcl.aws.errors import classify
from batchcl.errors import CallError, ImageError
from batchcl.images import ImageRef
from batchcl.outcomes import Detection
from batchcl.pacing.controller import RateController
from batchcl.pacing.pacer import AdaptivePacer
from sim.service import Service, image
from sim.test_engine import Run

NAMED = {trace.name: trace for trace in TRACES}
SEEDS = (201, 202)


@pytest.mark.parametrize(
    ("trace", "seconds", "used", "throttled"),
    [
        ("constant 3", 1200, 0.94, 0.045),
        ("constant 14", 900, 0.985, 0.015),
        ("constant 50", 400, 0.985, 0.01),
        ("steps", 1200, 0.97, 0.025),
        ("ramp", 600, 0.985, 0.025),
        ("sawtooth", 900, 0.975, 0.035),
        ("no burst", 1200, 0.93, 0.015),
        ("queue", 1200, 0.95, 0.005),
        ("rival", 1200, 0.95, 0.04),
        ("slow calls", 900, 0.985, 0.03),
    ],
)
def test_an_unknown_capacity_is_used_with_few_throttles(
    trace: str, seconds: int, used: float, throttled: float
) -> None:
    """And calls don't queue for long, and another client gets half of the capacity, or all that it requests."""
    results = [measure(NAMED[trace], BATCHCL, seed, seconds) for seed in SEEDS]
    assert mean(result.utilisation for result in results) > used
    assert mean(result.throttled_share for result in results) < throttled
    assert all(result.lost == 0 for result in results)
    if trace == "queue":
        assert all(result.latency_s < 20 for result in results), "far shorter than the deadline of a call"
    if trace == "rival":
        assert all((result.rival_share or 0) > 0.8 for result in results)


@pytest.mark.parametrize(
    ("trace", "share", "used"), [("14 TPS", 0.005, 0.85), ("14 TPS", 0.05, 0.85), ("800 TPS", 0.05, 0.85)]
)
def test_random_throttles_do_not_slow_a_run_down(trace: str, share: float, used: float) -> None:
    """Finding out that random throttles are not a limit may take a minute or two."""
    name = f"{100 * share:g} % at random" if trace == "14 TPS" else f"{100 * share:g} %, {trace}"
    seconds, seeds = (900, SEEDS) if trace == "14 TPS" else (120, SEEDS[:1])
    results = [measure(NAMED[name], BATCHCL, seed, seconds) for seed in seeds]
    assert min(result.utilisation for result in results) > used
    assert max(result.throttled_share for result in results) < 2 * share + 0.03


@pytest.mark.parametrize(("trace", "later_s"), [("constant 3", 200.0), ("constant 14", 0.0), ("constant 14", 200.0)])
def test_two_runs_share_a_model(trace: str, later_s: float) -> None:
    shares = [share(NAMED[trace], seed, 1200, later_s=later_s) for seed in range(201, 204)]
    assert median(each.larger for each in shares) < 0.6
    assert all(each.larger < 0.8 for each in shares)
    assert mean(each.utilisation for each in shares) > 0.88


def test_a_run_that_joins_later_gets_its_share() -> None:
    """Without yielding by the faster client it would get a twentieth for an hour."""
    shares = [share(NAMED["constant 50"], seed, 800, later_s=200) for seed in (3, 4)]
    assert all(each.larger < 0.65 for each in shares)


def test_a_client_without_backoff_leaves_a_run_some_calls() -> None:
    """It sends half again as many calls as the model takes, whatever is refused."""
    tps, seconds = 3.0, 1200
    world, loop = constant(tps, 201), Loop()
    own, other = Meter(seconds), Meter(seconds)
    line = Line(loop, world.service, other, world.delay_s)

    def send() -> None:
        line.call(lambda _accepted, _sent_at: None)
        loop.at(loop.now + 1 / (1.5 * tps), send)

    Paced(loop, Line(loop, world.service, own, world.delay_s), RateController())
    loop.at(100.0, send)
    loop.run(seconds)
    assert sum(own.scored_in[400:]) > 0.03 * tps * 800


@pytest.mark.parametrize(
    ("tps", "learned_tps", "max_s"),
    [(50.0, None, 6), (14.0, None, 2), (50.0, 50.0, 1), (50.0, 25.0, 12), (14.0, 28.0, 1)],
)
def test_a_run_is_at_capacity_within_seconds(tps: float, learned_tps: float | None, max_s: int) -> None:
    """From 5 TPS, from the learned rate, and from a rate that is wrong by a factor of two."""
    starts = [start(tps, seed, learned_tps=learned_tps) for seed in SEEDS]
    assert all(one.found_s <= max_s for one in starts)
    assert all(one.throttled < 0.05 * 60 * tps for one in starts)


def test_a_client_that_knows_the_capacity_gets_all_of_it() -> None:
    """Without this, the bounds above would prove nothing."""
    for name in ("constant 14", "steps", "sawtooth"):
        oracle = measure(NAMED[name], ORACLE, SEEDS[0], 600)
        assert oracle.utilisation == pytest.approx(1, abs=0.02)
        assert oracle.throttled_share < 0.01


@pytest.mark.parametrize(
    ("name", "tps", "seconds"),
    [
        ("constant", lambda _: 14.0, 400.0),
        ("steps", lambda now: 10.0 if now < 150 else 25.0 if now < 400 else 5.0, 500.0),
    ],
)
def test_the_real_pacer_and_engine_use_the_capacity(name: str, tps: Callable[[float], float], seconds: float) -> None:
    room = math.ceil(sum(tps(second) for second in range(int(seconds))))
    service = Service(tps=tps, latency_s=lambda rng: rng.lognormvariate(math.log(0.3), 0.4), seed=3)
    pacer = AdaptivePacer(RateController())
    run = Run(service, max_in_flight=256, pacer=pacer).over(map(image, range(room)))
    run.assert_each_once(room)
    throttled = run.progress.throttled / run.progress.calls
    late_s = run.ended_at - seconds
    assert late_s * tps(seconds) < 0.05 * room, f"{name}: {late_s:.0f} s after one who knows the capacity"
    assert throttled < 0.02


@pytest.mark.parametrize(("learned_tps", "max_s"), [(None, 5), (50.0, 1)])
def test_the_real_engine_is_at_50_tps_within_seconds(learned_tps: float | None, max_s: int) -> None:
    controller = RateController() if learned_tps is None else RateController(start_tps=learned_tps, learned=True)
    service = Service(tps=lambda _: 50.0, latency_s=lambda rng: rng.lognormvariate(math.log(0.3), 0.4))
    run = Run(service, max_in_flight=256, pacer=AdaptivePacer(controller)).over(map(image, range(800)))
    run.assert_each_once(800)
    assert calls_a_second(run, max_s, max_s + 5) > 0.95 * 50


class Bucket:
    """A token bucket of one second."""

    def __init__(self, tps: float) -> None:
        self._tps = self._tokens = tps
        self._at = 0.0

    def takes(self, now: float) -> bool:
        self._tokens = min(self._tps, self._tokens + (now - self._at) * self._tps)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def refused(message: str, *, code: str = "ProvisionedThroughputExceededException") -> CallError:
    return classify(code, message, status=400)


def calls_a_second(run: Run, begin: float, end: float) -> float:
    return sum(begin <= at < end for at in run.service.sent_at) / (end - begin)


def test_the_download_limit_of_s3_is_not_learned_as_capacity() -> None:
    bucket = Bucket(8)
    controller = RateController()
    pacer = AdaptivePacer(controller)
    learned_meanwhile = []

    def slow_s3(_image: ImageRef, _call: int, now: float) -> CallError | None:
        if 200 <= now < 240:
            learned_meanwhile.append(controller.measured_tps or 0.0)
        if 120 <= now < 240 and not bucket.takes(now):
            return refused("S3 download limit exceeded")
        return None

    service = Service(tps=lambda _: 20.0, fault=slow_s3)
    run = Run(service, max_in_flight=256, pacer=pacer).over(map(image, range(6000)))
    run.assert_each_once(6000)
    assert calls_a_second(run, 100, 120) == pytest.approx(20, rel=0.05)
    assert calls_a_second(run, 150, 240) == pytest.approx(8, rel=0.1)
    assert calls_a_second(run, 260, 300) == pytest.approx(20, rel=0.05)
    assert min(learned_meanwhile) > 15
    assert controller.measured_tps == pytest.approx(20, rel=0.05)
    assert run.progress.throttled < 0.02 * run.progress.calls


class Ramp:
    """Accepts at most twice the average rate of the last five seconds or so."""

    def __init__(self) -> None:
        self._now_tps = self._usual_tps = 10.0
        self._at = 0.0

    def takes(self, now: float) -> bool:
        gap_s, self._at = now - self._at, now
        self._now_tps = self._now_tps * math.exp(-gap_s) + 1
        self._usual_tps = self._usual_tps * math.exp(-gap_s / 5) + 1 / 5
        return self._now_tps <= 2 * self._usual_tps


@pytest.mark.parametrize("message", ["Slow down; sudden increase in rate of requests", "Rate exceeded"])
def test_only_throttles_for_a_sudden_increase_are_not_learned(message: str) -> None:
    ramp = Ramp()

    def too_fast(_image: ImageRef, _call: int, now: float) -> CallError | None:
        return None if ramp.takes(now) else refused(message, code="ThrottlingException")

    controller = RateController(start_tps=10)
    run = Run(Service(fault=too_fast), max_in_flight=256, pacer=AdaptivePacer(controller)).over(map(image, range(2500)))
    run.assert_each_once(2500)
    assert run.progress.throttled > 0
    assert (controller.measured_tps is None) == (message != "Rate exceeded")
    if message != "Rate exceeded":
        assert calls_a_second(run, run.ended_at - 3, run.ended_at) > 60, "it goes on growing"


UNREADABLE = ImageError("the file can't be read", code="UnreadableFile")


class Unreadable(Service):
    """Calls the service for images that can be read."""

    def __init__(self, share: float, *, error: CallError = UNREADABLE, tps: float = 14.0) -> None:
        chance = random.Random(7)
        super().__init__(
            tps=lambda _: tps, latency_s=lambda rng: (0.25 if self.sent_at[-1] < 200 else 1.0) * rng.uniform(0.8, 1.25)
        )
        self._lost = {image(n).uri for n in range(10_000) if chance.random() < share}
        self._error = error

    async def detect(self, image: ImageRef) -> Detection:
        if image.uri in self._lost:
            await anyio.sleep(0.05)
            raise self._error
        return await super().detect(image)


@pytest.mark.parametrize(("share", "tps"), [(0.05, 14.0), (0.3, 8.0)])
def test_unreadable_images_use_no_turns_and_form_no_queue(share: float, tps: float) -> None:
    """Then larger images follow, which take four times as long."""
    count = round(500 * tps / (1 - share))
    pacer = AdaptivePacer(RateController(start_tps=tps, learned=True))
    run = Run(Unreadable(share, tps=tps), max_in_flight=256, pacer=pacer).over(map(image, range(count)))
    run.assert_each_once(count)
    assert calls_a_second(run, 20, 200) > 0.9 * tps
    assert calls_a_second(run, 220, 480) > 0.9 * tps
    assert run.progress.throttled < 0.04 * run.progress.calls
