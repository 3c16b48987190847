from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Callable
from contextvars import Context
from itertools import pairwise
from typing import TypeVarTuple

import anyio
import pytest

from batchcl.pacing.controller import RateController
from batchcl.pacing.pacer import AdaptivePacer
from virtual import VirtualLoop, run_virtual

Ts = TypeVarTuple("Ts")


class FixedRate(RateController):
    """A rate that the test sets."""

    def __init__(self, rate_tps: float) -> None:
        super().__init__()
        self._fixed_tps = rate_tps

    @property
    def rate_tps(self) -> float:
        return self._fixed_tps

    def set(self, rate_tps: float) -> None:
        self._fixed_tps = rate_tps


def times(pacer: AdaptivePacer, calls: int, *, start_s: float = 0.0, busy_s: float = 0.0) -> list[float]:
    """The times at which calls are sent; after every second one the caller is busy for `busy_s`."""

    async def main() -> list[float]:
        found = []
        for number in range(calls):
            await pacer.acquire()
            found.append(anyio.current_time())
            if busy_s and number % 2:
                await anyio.sleep(busy_s)
        return found

    return run_virtual(main, start_s=start_s)


@pytest.mark.parametrize("rate_tps", [400.0, 3000.0])
def test_at_high_rates_calls_are_sent_in_small_groups(rate_tps: float) -> None:
    found = times(AdaptivePacer(FixedRate(rate_tps)), 3001, start_s=1000)
    settled = found[1000:]
    assert (len(settled) - 1) / (settled[-1] - settled[0]) == pytest.approx(rate_tps, rel=0.01)
    assert max(later - earlier for earlier, later in pairwise(settled)) < 0.0075


@pytest.mark.parametrize("rate_tps", [0.2, 3.0, 50.0, 150.0])
def test_calls_are_spaced_evenly_at_the_rate(rate_tps: float) -> None:
    found = times(AdaptivePacer(FixedRate(rate_tps)), 101, start_s=1000)[20:]  # after catching up at the start
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert min(gaps) == pytest.approx(1 / rate_tps, rel=0.01)
    assert max(gaps) == pytest.approx(1 / rate_tps, rel=0.01)


def test_small_delays_are_made_up_for() -> None:
    found = times(AdaptivePacer(FixedRate(20)), 401, busy_s=0.07)
    assert 400 / (found[-1] - found[0]) == pytest.approx(20, rel=0.01)


def test_a_long_pause_causes_no_burst() -> None:
    pacer = AdaptivePacer(FixedRate(100))

    async def main() -> int:
        sent = 0
        await pacer.acquire()
        await anyio.sleep(60)
        with anyio.move_on_after(1.0):
            while sent < 10_000:
                await pacer.acquire()
                sent += 1
        return sent

    assert run_virtual(main, start_s=1000) <= 100 + 0.05 * 100 + 1


@pytest.mark.parametrize("start_s", [0.0, 5_000.0])
def test_the_first_seconds_hold_no_burst(start_s: float) -> None:
    found = times(AdaptivePacer(FixedRate(100)), 50, start_s=start_s)
    assert found[-1] - found[0] >= 49 / 100 - 0.06


def most_in(window_s: float, found: list[float]) -> int:
    """The most calls in any half-open window of this length; `found` is sorted."""
    return max(bisect_left(found, begin + window_s - 1e-6) - n for n, begin in enumerate(found))


@pytest.mark.parametrize("max_tps", [0.5, 2.0, 7.0, 50.0, 200.0])
def test_no_second_has_more_calls_than_the_ceiling_allows(max_tps: float) -> None:
    found = times(AdaptivePacer(FixedRate(1000), max_tps=max_tps), round(60 + 3 * max_tps))
    window_s = max(1.0, 1 / max_tps)
    assert most_in(window_s, found) <= max_tps * (window_s + 0.05) + 1
    assert (len(found) - 1) / (found[-1] - found[0]) == pytest.approx(max_tps, rel=0.03)


class LateLoop(VirtualLoop):
    """Timers fire up to 20 ms late, as on a busy machine."""

    def __init__(self) -> None:
        super().__init__(max_turns=500_000, max_s=1e6, grace_s=0.0, start_s=0.0)
        self._rng = random.Random(3)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when + self._rng.uniform(0, 0.02), callback, *args, context=context)


@pytest.mark.parametrize("max_tps", [5.0, 50.0, 100.0, 200.0])
def test_the_ceiling_is_reached_although_every_wake_up_is_late(max_tps: float) -> None:
    async def main() -> list[float]:
        pacer = AdaptivePacer(RateController(start_tps=max_tps, learned=True, ceiling_tps=max_tps), max_tps=max_tps)
        found = []
        while anyio.current_time() < 62:
            await pacer.acquire()
            found.append(anyio.current_time())
        return found

    found = [at for at in anyio.run(main, backend_options={"loop_factory": LateLoop}) if 2 <= at < 62]
    assert len(found) >= 0.99 * 60 * max_tps
    assert most_in(1.0, found) <= 1.05 * max_tps + 1


def test_a_ceiling_above_the_rate_changes_nothing() -> None:
    found = times(AdaptivePacer(FixedRate(10), max_tps=500), 101)
    assert found[-1] - found[0] == pytest.approx(10, rel=0.02)


def test_a_rising_rate_shortens_the_wait() -> None:
    controller = FixedRate(0.01)
    pacer = AdaptivePacer(controller)

    async def main() -> float:
        await pacer.acquire()
        begin = anyio.current_time()

        async def rise() -> None:
            await anyio.sleep(1)
            controller.set(100)

        async with anyio.create_task_group() as group:
            group.start_soon(rise)
            await pacer.acquire()
        return anyio.current_time() - begin

    assert run_virtual(main, start_s=1000) <= 1.26


@pytest.mark.parametrize("max_tps", [None, 1.0])
def test_cancelled_waits_cost_no_turn(max_tps: float | None) -> None:
    pacer = AdaptivePacer(FixedRate(1), max_tps=max_tps)

    async def main() -> float:
        await pacer.acquire()
        begin = anyio.current_time()
        for _ in range(9):
            with anyio.move_on_after(0.1):
                await pacer.acquire()
        await pacer.acquire()
        return anyio.current_time() - begin

    assert run_virtual(main, start_s=1000) <= 1.01


def test_reported_results_change_the_rate() -> None:
    async def main() -> tuple[float, float]:
        pacer = AdaptivePacer(RateController(start_tps=10))
        for _ in range(30):
            await pacer.acquire()
            pacer.succeeded(sent_at=anyio.current_time())
        grown = pacer.pace().rate_tps
        for _ in range(30):
            await pacer.acquire()
            pacer.throttled(sent_at=anyio.current_time(), by_model=True)
        return grown, pacer.pace().rate_tps

    grown, fallen = run_virtual(main)
    assert grown > 15
    assert fallen < 0.95 * grown


def test_returned_turns_are_reused_without_a_burst() -> None:
    async def main() -> tuple[float, float, int]:
        pacer = AdaptivePacer(FixedRate(1.0))
        await pacer.acquire()
        begun_at = anyio.current_time()

        async def gives_back() -> None:
            await anyio.sleep(0.3)
            pacer.unsent(sent_at=begun_at, give_back=True)

        async with anyio.create_task_group() as group:
            group.start_soon(gives_back)
            await pacer.acquire()
        one_s = anyio.current_time() - begun_at
        await pacer.acquire()
        next_s = anyio.current_time() - begun_at
        for _ in range(100):
            pacer.unsent(sent_at=anyio.current_time(), give_back=True)
        at_once = 0
        with anyio.move_on_after(0.5):
            while True:
                await pacer.acquire()
                at_once += 1
        return one_s, next_s, at_once

    one_s, next_s, at_once = run_virtual(main)
    assert 0.3 <= one_s <= 0.41, "at the next look"
    assert next_s == pytest.approx(one_s + 1.0, abs=0.1)
    assert at_once == 1
