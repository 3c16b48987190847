from __future__ import annotations

import random
from collections.abc import Callable

import anyio

from batchcl.errors import BatchclError, StalledError, ThrottledError
from batchcl.events import SilentObserver
from batchcl.scoring.circuit_breaker import DISTINCT_IMAGES, STALL_ENDS_S, STALL_WARNS_S, CircuitBreaker
from observers import RecordingObserver
from sim.service import WaitingRecovery
from virtual import run_virtual


def breaker(
    observer: SilentObserver | None = None, on_failure: Callable[[BatchclError], None] = lambda _: None
) -> CircuitBreaker:
    return CircuitBreaker(
        WaitingRecovery(), observer=observer or SilentObserver(), rng=random.Random(1), on_failure=on_failure
    )


def test_repeated_errors_of_one_image_are_not_an_outage() -> None:
    async def main() -> None:
        circuit_breaker = breaker()
        assert not any(circuit_breaker.is_outage("a") for _ in range(100))

    run_virtual(main)


def test_ten_unanswered_images_are_an_outage_until_an_answer() -> None:
    async def main() -> None:
        circuit_breaker = breaker()
        found = [circuit_breaker.is_outage(f"{number}") for number in range(DISTINCT_IMAGES + 1)]
        assert found == [False] * (DISTINCT_IMAGES - 1) + [True, True]
        circuit_breaker.answered(scored=True)
        assert not circuit_breaker.is_outage("0")

    run_virtual(main)


def test_errors_between_answers_are_not_an_outage() -> None:
    async def main() -> None:
        circuit_breaker = breaker()
        for number in range(100):
            assert not circuit_breaker.is_outage(f"{number}")
            if number % 5 == 0:
                circuit_breaker.answered(scored=False)

    run_virtual(main)


async def stalled_for(
    *, rate_tps: float = 5.0, outcome_at: float | None = None
) -> tuple[RecordingObserver, list[float]]:
    """Watch an hour with at most one outcome; returns the notices and the times at which the run ended."""
    observer, ends, ended = RecordingObserver(), list[float](), anyio.Event()

    def end(_error: BatchclError) -> None:
        ends.append(anyio.current_time())
        ended.set()
        circuit_breaker.stop()

    circuit_breaker = breaker(observer, end)
    circuit_breaker.failed(ThrottledError("Provisioned Rate exceeded", code="ProvisionedThroughputExceededException"))
    outcomes = 0
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await circuit_breaker.watch(outcomes=lambda: outcomes, is_due=lambda: True, rate_tps=lambda: rate_tps)

        tasks.start_soon(watch)
        if outcome_at is not None:
            await anyio.sleep(outcome_at)
            outcomes += 1
        with anyio.move_on_after(3600):
            await ended.wait()
        circuit_breaker.stop()
    return observer, ends


def test_a_stall_warns_after_1_minute_and_ends_the_run_after_15() -> None:
    observer, ends = run_virtual(stalled_for)
    [at], [notice] = observer.times, observer.notices
    assert STALL_WARNS_S <= at <= STALL_WARNS_S + 6
    assert "Provisioned Rate exceeded" in notice.text
    assert STALL_ENDS_S <= ends[0] <= STALL_ENDS_S + 6


def test_an_outcome_restarts_the_15_minutes() -> None:
    observer, ends = run_virtual(lambda: stalled_for(outcome_at=800.0))
    assert 800 + STALL_ENDS_S <= ends[0] <= 800 + STALL_ENDS_S + 12
    assert len(observer.notices) == 2


def test_a_rate_below_one_call_per_minute_is_not_a_stall() -> None:
    observer, ends = run_virtual(lambda: stalled_for(rate_tps=0.0001))
    assert (observer.notices, ends) == ([], [])


def test_the_stall_error_says_what_happened_and_what_to_do() -> None:
    async def main() -> BatchclError:
        errors: list[BatchclError] = []
        circuit_breaker = breaker(on_failure=errors.append)
        with anyio.move_on_after(STALL_ENDS_S + 10):
            await circuit_breaker.watch(outcomes=lambda: 0, is_due=lambda: True, rate_tps=lambda: 5.0)
        return errors[0]

    error = run_virtual(main)
    assert isinstance(error, StalledError)
    assert "15 minutes" in str(error)
    assert "the run ends to save the cost of the model" in str(error)
