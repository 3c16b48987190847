"""One client on one trace: what it got, what that cost, and how soon it found a step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from batchcl.pacing.controller import RateController
from pacing_peers.botocore_modes import Adaptive, Legacy, Standard
from pacing_peers.paced import AimdRate, Oracle, Paced
from pacing_peers.traces import Trace, World, constant
from pacing_peers.workers import AimdConcurrency, FullJitter, Workers
from pacing_peers.world import Capacity, Line, Loop, Meter

__all__ = ["BATCHCL", "CLIENTS", "ORACLE", "Result", "Shares", "Start", "measure", "share", "start"]

WORKERS: Final = 32
TPS_PER_UNIT: Final = 2.8
"""Images a second of one inference unit, by the pricing page's example: 440,000 images in 44 hours."""
DOLLARS_PER_UNIT_HOUR: Final = 4.0

_LOOK_S: Final = 10.0
_WINDOW_S: Final = 5
_FOUND_SHARE: Final = 0.95
_CALM_SHARE: Final = 0.05

Client = Callable[[Loop, Line, Meter, World, random.Random], object]

BATCHCL: Final = "batchcl"
ORACLE: Final = "oracle"
CLIENTS: Final[dict[str, Client]] = {
    BATCHCL: lambda loop, line, _meter, _world, _rng: Paced(loop, line, RateController()),
    "botocore adaptive": lambda loop, line, meter, _world, rng: Workers(
        loop, line, meter, Adaptive(rng, loop), count=WORKERS
    ),
    "botocore standard": lambda loop, line, meter, _world, rng: Workers(
        loop, line, meter, Standard(rng), count=WORKERS
    ),
    "botocore legacy": lambda loop, line, meter, _world, rng: Workers(loop, line, meter, Legacy(rng), count=WORKERS),
    "full jitter": lambda loop, line, meter, _world, rng: Workers(loop, line, meter, FullJitter(rng), count=WORKERS),
    "AIMD concurrency": lambda loop, line, _meter, _world, _rng: AimdConcurrency(loop, line),
    "AIMD rate": lambda loop, line, _meter, _world, _rng: Paced(loop, line, AimdRate()),
    ORACLE: lambda loop, line, _meter, world, _rng: Paced(loop, line, Oracle(loop, world.capacity)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a client came to on a trace.

    Attributes:
        utilisation: images scored of those that the capacity had room for while it ran, a rival's included.
        throttled_share: refused calls of all calls.
        find_s: seconds to 95 % of the new capacity after a rise, or to less than 5 % refused after a fall; the mean
            of the trace's steps, None without any.
        lost: images that were given up.
        dollars: per million images scored, at $4 a unit-hour and 2.8 images a second of a unit.
        latency_s: mean, waiting in the service's queue included.
        rival_share: what the rival got of its fair share, which is half of the capacity; None without a rival.
    """

    trace: str
    client: str
    seed: int
    utilisation: float
    throttled_share: float
    find_s: float | None
    lost: int
    dollars: float
    latency_s: float
    rival_share: float | None

    @property
    def score(self) -> float:
        """Dollars times (1 + throttled share): what is paid, and what is asked of a shared service for it."""
        return self.dollars * (1 + self.throttled_share)


def measure(trace: Trace, client: str, seed: int, seconds: int) -> Result:
    """Run `client` on `trace` for so many virtual seconds, or until all images are gone that fit into them.

    A client that gives images up is through its list early; what it did until then counts.
    """
    world, loop, meter, rival = trace.make(seed, seconds), Loop(), Meter(seconds), Meter(seconds)
    rng = random.Random(seed)
    CLIENTS[client](loop, Line(loop, world.service, meter, world.delay_s), meter, world, rng)
    if world.rival_workers:
        Workers(
            loop,
            Line(loop, world.service, rival, world.delay_s),
            rival,
            FullJitter(rng),
            count=world.rival_workers,
            from_s=world.rival_from_s,
            to_s=world.rival_to_s,
        )
    listed = world.capacity.served_by(seconds)
    while loop.now < seconds and meter.scored + meter.lost < listed:
        loop.run(min(seconds, loop.now + _LOOK_S))
    room = world.capacity.served_by(loop.now)
    fair = (world.capacity.served_by(world.rival_to_s) - world.capacity.served_by(world.rival_from_s)) / 2
    used = (meter.scored + rival.scored) / room
    return Result(
        trace=trace.name,
        client=client,
        seed=seed,
        utilisation=used,
        throttled_share=meter.throttled_share,
        find_s=_find_s(world.capacity, meter, int(loop.now)),
        lost=meter.lost,
        dollars=1e6 / (used * TPS_PER_UNIT * 3600) * DOLLARS_PER_UNIT_HOUR,
        latency_s=meter.latency_s / max(1, meter.scored),
        rival_share=rival.scored / fair if world.rival_workers else None,
    )


def _find_s(capacity: Capacity, meter: Meter, seconds: int) -> float | None:
    found = [
        _one_step(meter, at, seconds, before=before, after=after)
        for at, before, after in capacity.steps
        if at < seconds
    ]
    return sum(found) / len(found) if found else None


def _one_step(meter: Meter, at: float, seconds: int, *, before: float, after: float) -> float:
    for begin in range(math.ceil(at), seconds - _WINDOW_S):
        scored = sum(meter.scored_in[begin : begin + _WINDOW_S])
        throttled = sum(meter.throttled_in[begin : begin + _WINDOW_S])
        if after > before and scored >= _FOUND_SHARE * after * _WINDOW_S:
            return begin - at
        if after < before and throttled <= _CALM_SHARE * (scored + throttled):
            return begin - at
    return seconds - at


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How two batchcl runs share one model: the larger share over the last third, and both together."""

    seed: int
    larger: float
    utilisation: float
    throttled_share: float


def share(trace: Trace, seed: int, seconds: int, *, later_s: float) -> Shares:
    """Two runs on one capacity, the second of which starts `later_s` after the first."""
    world, loop = trace.make(seed, seconds), Loop()
    meters = [Meter(seconds), Meter(seconds)]
    lines = [Line(loop, world.service, meter, world.delay_s) for meter in meters]
    loop.at(0.0, lambda: Paced(loop, lines[0], RateController()))
    loop.at(later_s, lambda: Paced(loop, lines[1], RateController()))
    loop.run(seconds)
    last = seconds * 2 // 3
    got = [sum(meter.scored_in[last:]) for meter in meters]
    room = world.capacity.served_by(seconds) - world.capacity.served_by(last)
    return Shares(
        seed=seed,
        larger=max(got) / sum(got),
        utilisation=sum(got) / room,
        throttled_share=sum(meter.throttled for meter in meters) / sum(meter.sent for meter in meters),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first minute of a run: seconds until it takes 95 % of the capacity, and what is refused in that minute."""

    tps: float
    learned_tps: float | None
    seed: int
    found_s: float
    throttled: int


def start(tps: float, seed: int, *, learned_tps: float | None = None, seconds: int = 60) -> Start:
    """One run on a constant capacity that knows nothing, or what an earlier one has learned."""
    world, loop, meter = constant(tps, seed), Loop(), Meter(seconds)
    controller = RateController() if learned_tps is None else RateController(start_tps=learned_tps, learned=True)
    Paced(loop, Line(loop, world.service, meter, world.delay_s), controller)
    loop.run(seconds)
    found_s = _one_step(meter, 0, seconds, before=0, after=tps)
    return Start(tps=tps, learned_tps=learned_tps, seed=seed, found_s=found_s, throttled=meter.throttled)
