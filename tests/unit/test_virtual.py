"""The virtual clock of other tests: it jumps when no task is ready, and stands still while a thread works."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from aiolimiter import AsyncLimiter

import virtual
from virtual import VirtualTimeError, run_virtual


def test_a_day_of_sleep_takes_no_real_time():
    async def sleep() -> float:
        before = anyio.current_time()
        await anyio.sleep(86_400)
        return anyio.current_time() - before

    began = time.monotonic()
    assert run_virtual(sleep) == pytest.approx(86_400, abs=1e-3)
    assert time.monotonic() - began < 60


def test_sleepers_wake_in_the_order_of_their_deadlines():
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((name, round(anyio.current_time(), 3)))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for name, seconds in [("c", 3.0), ("a", 1.0), ("b", 2.5)]:
                group.start_soon(sleeper, name, seconds)

    run_virtual(main)
    assert woken == [("a", 1.0), ("b", 2.5), ("c", 3.0)]


def test_deadlines_cancel_at_their_time():
    async def main() -> tuple[bool, float]:
        with anyio.move_on_after(7) as scope:
            await anyio.sleep_forever()
        return scope.cancelled_caught, anyio.current_time()

    cancelled, now = run_virtual(main)
    assert cancelled
    assert now == pytest.approx(7, abs=1e-6)

    async def fails() -> None:
        with anyio.fail_after(2):
            await anyio.sleep(3)

    with pytest.raises(TimeoutError):
        run_virtual(fails)


def test_an_event_wakes_its_waiter_when_it_is_set():
    async def main() -> float:
        event = anyio.Event()

        async def setter() -> None:
            await anyio.sleep(11)
            event.set()

        async with anyio.create_task_group() as group:
            group.start_soon(setter)
            await event.wait()
        return anyio.current_time()

    assert run_virtual(main) == pytest.approx(11, abs=1e-6)


def test_a_poll_that_never_succeeds_is_reported():
    async def poll() -> None:
        while True:  # noqa: ASYNC110 -- the defect to be found
            await anyio.sleep(60)

    with pytest.raises(VirtualTimeError, match="not finished after 86"):
        run_virtual(poll, max_s=86_400)


@pytest.mark.parametrize("through", ["anyio", "asyncio"])
def test_virtual_time_stops_while_a_thread_works(through: str) -> None:
    async def main() -> tuple[str, float]:
        release = threading.Event()

        def work() -> str:
            assert release.wait(10)
            time.sleep(0.02)  # long enough for a wrong clock to run past the deadline
            return "done"

        asyncio.get_running_loop().call_later(0, release.set)
        with anyio.fail_after(1):
            result = await (anyio.to_thread.run_sync(work) if through == "anyio" else asyncio.to_thread(work))
        return result, anyio.current_time()

    result, now = run_virtual(main)
    assert result == "done"
    assert now < 0.001


def test_consecutive_threads_leave_no_busy_mark():
    async def main() -> float:
        for _ in range(50):
            await anyio.to_thread.run_sync(lambda: None)
        await anyio.sleep(5)
        return anyio.current_time()

    assert run_virtual(main) == pytest.approx(5, abs=1e-3)


def test_a_loop_that_never_waits_is_reported():
    async def spin() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(VirtualTimeError, match="without progress"):
        run_virtual(spin, max_turns=10_000)


async def wait_for_nobody() -> None:
    await anyio.Event().wait()


@pytest.mark.parametrize("wait", [anyio.sleep_forever, wait_for_nobody])
def test_a_deadlock_is_reported(wait: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual, "PATIENCE_S", 0.1)
    with pytest.raises(VirtualTimeError, match="deadlock"):
        run_virtual(wait)


def test_aiolimiter_ends_and_keeps_its_rate():
    async def main() -> float:
        limiter = AsyncLimiter(1, 1 / 3)
        for _ in range(301):
            await limiter.acquire()
        return anyio.current_time()

    assert run_virtual(main) == pytest.approx(100, rel=0.01)


def test_results_and_errors_are_passed_on():
    async def fails(text: str) -> None:
        await anyio.sleep(1)
        raise ValueError(text)

    with pytest.raises(ValueError, match="out it comes"):
        run_virtual(fails, "out it comes")


def test_the_clock_can_start_at_any_time():
    async def now() -> float:
        return anyio.current_time()

    assert run_virtual(now, start_s=1_000_000.0) == pytest.approx(1_000_000, abs=1e-3)
