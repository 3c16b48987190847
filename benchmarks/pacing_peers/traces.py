"""The capacities that nobody is told of. Each seed varies the figures of its trace: rates, times, bursts, latencies."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pacing_peers.world import BucketService, Capacity, QueueService, RandomRefusals, Service, lognormal

__all__ = ["TRACES", "Trace", "World", "constant"]

_VARIED: Final = 0.2


@dataclass(frozen=True, slots=True)
class World:
    """One service of a trace, made for one seed.

    Attributes:
        delay_s: draws the time that a call or an answer is under way.
        rival_from_s, rival_to_s: when a competing client calls too; never when both are 0.
        rival_workers: calls that it has in flight at most.
    """

    capacity: Capacity
    service: Service
    delay_s: Callable[[], float]
    rival_from_s: float = 0.0
    rival_to_s: float = 0.0
    rival_workers: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """A named capacity over time. `make(seed, seconds)` gives its world.

    Attributes:
        counted: whether it goes into the means: not where even one who knows the capacity can't use it, or is
            throttled all the same.
    """

    name: str
    about: str
    make: Callable[[int, float], World]
    counted: bool = True


def _varied(rng: random.Random, value: float) -> float:
    return value * rng.uniform(1 - _VARIED, 1 + _VARIED)


def _delay(rng: random.Random) -> Callable[[], float]:
    """One way of the network: a few milliseconds, and some jitter."""
    least_s, jitter_s = rng.uniform(0.005, 0.03), rng.uniform(0.0005, 0.002)
    return lambda: least_s + rng.expovariate(1 / jitter_s)


def _steps(tps: Sequence[float]) -> Callable[[random.Random, float], Capacity]:
    def make(rng: random.Random, seconds: float) -> Capacity:
        share = seconds / len(tps)
        points: list[tuple[float, float]] = []
        begin = 0.0
        for number, one in enumerate(tps):
            end = seconds if number == len(tps) - 1 else share * (number + rng.uniform(0.85, 1.15))
            rate = _varied(rng, one)
            points += [(begin, rate), (end, rate)]
            begin = end
        return Capacity(points)

    return make


def _ramp(rng: random.Random, seconds: float) -> Capacity:
    return Capacity([(0.0, _varied(rng, 5)), (seconds, _varied(rng, 45))])


def _sawtooth(rng: random.Random, seconds: float) -> Capacity:
    low, high, period_s = _varied(rng, 10), _varied(rng, 40), _varied(rng, 600)
    points: list[tuple[float, float]] = []
    begin = 0.0
    while begin < seconds:
        points += [(begin, low), (begin + period_s, high)]
        begin += period_s
    return Capacity(points)


def _bucket(
    shape: Callable[[random.Random, float], Capacity],
    *,
    least_calls: tuple[float, float] | None = None,
    long_latency: bool = False,
    rival_workers: int = 0,
) -> Callable[[int, float], World]:
    def make(seed: int, seconds: float) -> World:
        rng = random.Random(seed)
        capacity = shape(rng, seconds)
        median_s = rng.uniform(0.15, 0.4)
        latency_s = lognormal(rng, 0.5, 0.8, most=2.0) if long_latency else lognormal(rng, median_s, 0.3)
        burst_s = rng.uniform(0.5, 2.0) if least_calls is None else 0.0
        burst_calls = 1.0 if least_calls is None else rng.uniform(*least_calls)
        return World(
            capacity,
            BucketService(capacity, latency_s=latency_s, burst_s=burst_s, burst_calls=burst_calls),
            _delay(rng),
            rival_from_s=seconds * rng.uniform(0.15, 0.25) if rival_workers else 0.0,
            rival_to_s=seconds * rng.uniform(0.75, 0.85) if rival_workers else 0.0,
            rival_workers=rival_workers,
        )

    return make


def _queue(seed: int, seconds: float) -> World:
    rng = random.Random(seed)
    capacity = _steps([14, 28, 9])(rng, seconds)
    service = QueueService(
        capacity, latency_s=lognormal(rng, rng.uniform(0.15, 0.4), 0.3), work=lognormal(rng, 0.956, 0.3)
    )
    return World(capacity, service, _delay(rng))


def _random_refusals(share: float, tps: float) -> Callable[[int, float], World]:
    """A bucket of one second, and refusals at random."""

    def make(seed: int, seconds: float) -> World:
        rng = random.Random(seed)
        capacity = _steps([tps])(rng, seconds)
        service = BucketService(capacity, latency_s=lognormal(rng, 12 / max(tps, 48.0), 0.1))
        return World(capacity, RandomRefusals(service, share, rng), _delay(rng))

    return make


def constant(tps: float, seed: int) -> World:
    """A bucket of one second whose rate is just `tps`."""
    rng = random.Random(seed)
    capacity = Capacity([(0.0, tps)])
    service = BucketService(capacity, latency_s=lognormal(rng, rng.uniform(0.15, 0.4), 0.3), burst_s=1.0)
    return World(capacity, service, _delay(rng))


TRACES: Final = [
    Trace("constant 3", "3 TPS, about one inference unit", _bucket(_steps([3]))),
    Trace("constant 14", "14 TPS, about five units", _bucket(_steps([14]))),
    Trace("constant 50", "50 TPS, the account's quota", _bucket(_steps([50]))),
    Trace("steps", "10, then 40, then 5 TPS: auto-scaling", _bucket(_steps([10, 40, 5]))),
    Trace("ramp", "from 5 to 45 TPS in a line", _bucket(_ramp)),
    Trace("sawtooth", "from 10 to 40 TPS in ten minutes, then back at once", _bucket(_sawtooth)),
    Trace(
        "no burst", "the steps, with a bucket of 1.2 to 2 calls", _bucket(_steps([10, 40, 5]), least_calls=(1.2, 2.0))
    ),
    Trace("queue", "14, then 28, then 9 TPS; calls wait rather than being refused", _queue),
    Trace("rival", "20 TPS, shared with 6 workers in full-jitter backoff", _bucket(_steps([20]), rival_workers=6)),
    Trace("slow calls", "14 TPS, latency lognormal up to 2 s", _bucket(_steps([14]), long_latency=True)),
    Trace(
        "0.5 % at random",
        "14 TPS, and 0.5 % of all calls refused whatever their rate",
        _random_refusals(0.005, 14),
        counted=False,
    ),
    Trace(
        "5 % at random",
        "14 TPS, and 5 % of all calls refused whatever their rate",
        _random_refusals(0.05, 14),
        counted=False,
    ),
    Trace(
        "0.5 %, 800 TPS",
        "800 TPS, and 0.5 % of all calls refused whatever their rate",
        _random_refusals(0.005, 800),
        counted=False,
    ),
    Trace(
        "5 %, 800 TPS",
        "800 TPS, and 5 % of all calls refused whatever their rate",
        _random_refusals(0.05, 800),
        counted=False,
    ),
    Trace(
        "one token",
        "the steps, with a bucket of 1 to 1.05 calls: each call that the network delays wastes some",
        _bucket(_steps([10, 40, 5]), least_calls=(1.0, 1.05)),
        counted=False,
    ),
]
