"""The learned rate: stored at the end of a session, used by the next one, and optional."""

from __future__ import annotations

import datetime as dt

import anyio

from batchcl.errors import CallError, FatalCallError, StoppedError
from batchcl.events import SilentObserver
from batchcl.images import ImageRef
from batchcl.pacing.pacer import Pacer
from batchcl.quantities import Units
from batchcl.runs.layout import pace_path
from batchcl.scoring.pace import open_pacer
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from sim.fake_world import MODEL, FakeWorld, FaultInjector, FaultyStore, run_simulation, utcnow
from sim.service import Service, image

PACE = pace_path(MODEL, "")


def no_units() -> None:
    """The units are unknown without permission to describe the model."""


def world(tps: float, *, images: int = 1500) -> FakeWorld:
    return FakeWorld(
        [image(n) for n in range(images)],
        Service(tps=lambda _: tps, latency_s=lambda rng: rng.uniform(0.1, 0.3)),
        shard_size=500,
        page=500,
        max_in_flight=64,
    )


async def throttled(pacer: Pacer) -> None:
    """One call succeeds, then enough are throttled to reduce the rate."""
    await pacer.acquire()
    pacer.succeeded(sent_at=anyio.current_time())
    for _ in range(30):
        await pacer.acquire()
        pacer.throttled(sent_at=anyio.current_time(), by_model=True)


def learned(files: dict[str, bytes]) -> float:
    return float(files[PACE].split(b'"tps":')[1].split(b",")[0])


def test_the_next_run_starts_with_the_learned_rate() -> None:
    first = world(30)
    assert isinstance(run_simulation(first.run), Summary)
    assert abs(learned(first.files) - 30) < 1.5
    second = world(30)
    second.files[PACE] = first.files[PACE]
    assert isinstance(run_simulation(second.run), Summary)

    def in_first_seconds(one: FakeWorld) -> int:
        begin = min(one.service.sent_at)
        return sum(at < begin + 1 for at in one.service.sent_at)

    assert in_first_seconds(second) > 2 * in_first_seconds(first)
    assert abs(learned(second.files) - 30) < 1.5


def test_a_run_that_is_stopped_keeps_what_it_learned() -> None:
    def denied_later(_image: ImageRef, _call: int, now: float) -> CallError | None:
        return FatalCallError("denied", code="AccessDeniedException", status=400) if now > 40 else None

    stopped = world(30)

    stopped.service = Service(
        tps=lambda _: 30.0,
        latency_s=lambda rng: rng.uniform(0.1, 0.3),
        fault=denied_later,
    )
    end = run_simulation(stopped.run)
    assert isinstance(end, StoppedError)
    assert abs(learned(stopped.files) - 30) < 1.5


def throttled_from(at_s: float, *, images: int = 10_000) -> FakeWorld:
    one = world(30, images=images)
    one.service = Service(
        tps=lambda now: 30.0 if now < at_s else 0.0,
        latency_s=lambda rng: rng.uniform(0.1, 0.3),
    )
    return one


def test_a_run_with_only_throttled_calls_ends_after_15_minutes() -> None:
    end = run_simulation(throttled_from(0.0).run)
    assert isinstance(end, StoppedError)
    assert "15 minutes" in str(end)
    assert "Provisioned Rate exceeded" in str(end)
    assert end.summary is not None
    assert end.summary.scored == 0
    assert 900 <= end.summary.seconds < 930


def test_an_outage_does_not_lower_the_learned_rate() -> None:
    first = world(30)
    run_simulation(first.run)
    second = throttled_from(20.0)
    second.files[PACE] = first.files[PACE]
    assert isinstance(run_simulation(second.run), StoppedError)
    assert learned(second.files) >= learned(first.files)
    third = throttled_from(60.0)
    assert isinstance(run_simulation(third.run), StoppedError)
    assert learned(third.files) > 20, "what was refused in the end is no capacity"


def test_each_number_of_units_has_its_own_rate() -> None:
    files: dict[str, bytes] = {}

    async def session(units: Units) -> None:
        store = FaultyStore(files)
        async with open_pacer(
            store,
            MODEL,
            units=lambda: units,
            max_tps=None,
            observer=SilentObserver(),
            stop_signal=StopSignal(),
            utcnow=utcnow,
        ) as pacer:
            await throttled(pacer)

    run_simulation(session, Units(1))
    run_simulation(session, Units(1, 3))
    assert set(files) == {pace_path(MODEL, "1"), pace_path(MODEL, "1:3")}


def test_a_failing_store_of_the_rate_does_not_end_the_run() -> None:
    async def main() -> None:
        store = FaultyStore({}, FaultInjector(failing=lambda: True))
        async with open_pacer(
            store,
            MODEL,
            units=no_units,
            max_tps=None,
            observer=SilentObserver(),
            stop_signal=StopSignal(),
            utcnow=utcnow,
        ) as pacer:
            await throttled(pacer)

    run_simulation(main)


def test_only_a_cancelled_session_that_learned_stores_a_rate() -> None:
    async def main(files: dict[str, bytes], learns: list[bool]) -> None:
        with anyio.move_on_after(5):
            async with open_pacer(
                FaultyStore(files),
                MODEL,
                units=no_units,
                max_tps=None,
                observer=SilentObserver(),
                stop_signal=StopSignal(),
                utcnow=utcnow,
            ) as pacer:
                if learns:
                    await throttled(pacer)
                await anyio.sleep_forever()

    for learns in ([True], []):
        files: dict[str, bytes] = {}
        run_simulation(main, files, learns)
        assert (PACE in files) == bool(learns)


def test_a_stored_rate_ten_times_too_high_is_corrected() -> None:
    for wrong in (3.0, 300.0):
        one = world(30)
        one.files[PACE] = f'{{"tps": {wrong}, "learned_at": "{dt.datetime.now(dt.UTC).isoformat()}"}}'.encode()
        summary = run_simulation(one.run)
        assert isinstance(summary, Summary)
        assert summary.throttled < 0.08 * summary.calls
        assert summary.seconds < 1500 / 30 * 1.6


def test_without_throttles_the_sustained_rate_is_a_lower_bound() -> None:
    """The next run starts at the bound; a slower run does not lower it, a measured rate replaces it."""
    files: dict[str, bytes] = {}

    async def session(max_tps: float, *, throttled_at_s: float = 1e9) -> float:
        """Send calls for 20 s; returns the rate after 3 s."""
        store, rate_tps = FaultyStore(files), 0.0
        async with open_pacer(
            store,
            MODEL,
            units=no_units,
            max_tps=max_tps,
            observer=SilentObserver(),
            stop_signal=StopSignal(),
            utcnow=utcnow,
        ) as pacer:
            begin = anyio.current_time()
            while (age_s := anyio.current_time() - begin) < 20:
                await pacer.acquire()
                if age_s < throttled_at_s:
                    pacer.succeeded(sent_at=anyio.current_time())
                else:
                    pacer.throttled(sent_at=anyio.current_time(), by_model=True)
                if age_s < 3:
                    rate_tps = pacer.pace().rate_tps
        return rate_tps

    run_simulation(session, 20.0)
    assert abs(learned(files) - 20) < 1
    assert b'"is_lower_bound":true' in files[PACE]
    first = files[PACE]
    run_simulation(session, 10.0)
    assert files[PACE] == first
    assert run_simulation(session, 1000.0) > 2 * 20
    assert learned(files) > 100
    run_simulation(lambda: session(30.0, throttled_at_s=10.0))
    assert learned(files) < 30
    assert b'"is_lower_bound":false' in files[PACE]
