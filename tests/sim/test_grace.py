"""A signal with a time limit: the session ends in time regardless of what hangs; lost outcomes are repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from batchcl.errors import StoppedError
from batchcl.stop_signal import CALLS, RECORDS, STORE, StopSignal
from batchcl.summary import Summary
from sim.fake_world import FakeWorld, FaultInjector, OperationKind
from sim.service import Service, image
from virtual import run_virtual

GRACE_S = 25.0
SIGNAL_S = 30.0

T = TypeVar("T")


class Hanging(FaultInjector):
    """Operations of one kind hang after `since_s`."""

    def __init__(self, operation: OperationKind, *, since_s: float) -> None:
        super().__init__()
        self._hangs = operation
        self._since_s = since_s

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        hangs = operation.is_on_store if self._hangs is OperationKind.STORE else operation is self._hangs
        if hangs and anyio.current_time() >= self._begun_at + self._since_s:
            await anyio.sleep_forever()
        return await super().around(operation, act)

    def begin(self) -> Hanging:
        self._begun_at = anyio.current_time()
        return self


def run_and_signal(
    world: FakeWorld, faults: FaultInjector | None = None, *, limit_s: float = GRACE_S
) -> tuple[object, float]:
    """Run one session and stop it after 30 s; returns its end and the seconds from the signal to the end."""
    world.stop_signal = stop_signal = StopSignal()
    result: list[object] = []
    took: list[float] = []

    async def main() -> None:
        async def ask() -> None:
            await anyio.sleep(SIGNAL_S)
            stop_signal.request("ended by SIGTERM", limit_s=limit_s)
            asked_at.append(anyio.current_time())

        asked_at: list[float] = []
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            result.append(await world.run(faults.begin() if isinstance(faults, Hanging) else faults))
            took.append(anyio.current_time() - asked_at[0])

    run_virtual(main)
    world.stop_signal = None
    return result[0], took[0]


def world(latency_s: float, *, images: int = 400) -> FakeWorld:
    return FakeWorld(
        [image(n) for n in range(images)], Service(latency_s=lambda _: latency_s), shard_size=100, page=100
    )


def assert_resumes(one: FakeWorld) -> None:
    """Assert that a later session completes the run with one row per image."""
    summary = run_virtual(one.run_to_end)
    assert isinstance(summary, Summary)
    one.assert_exactly_once(summary)


def test_calls_that_take_a_minute_are_given_up_in_time():
    one = world(60.0, images=40)
    end, took_s = run_and_signal(one)
    assert isinstance(end, StoppedError)
    assert GRACE_S * CALLS <= took_s <= GRACE_S * CALLS + 1
    assert end.summary is not None
    assert end.summary.calls == 8
    assert_resumes(one)


def test_the_end_waits_no_longer_than_the_calls_in_flight():
    one = world(2.0)
    end, took_s = run_and_signal(one)
    assert isinstance(end, StoppedError)
    assert took_s <= 2.5
    assert end.summary is not None
    assert end.summary.scored == len(one.rows()) > 20
    assert_resumes(one)


def test_calls_that_a_hanging_store_did_not_record_are_repeated():
    one = world(2.0)
    end, took_s = run_and_signal(one, Hanging(OperationKind.STORE, since_s=SIGNAL_S - 5))
    assert isinstance(end, StoppedError)
    assert "ended by SIGTERM; writing " in str(end)
    assert "calls for these images again" in str(end)
    assert GRACE_S * STORE < took_s <= GRACE_S * RECORDS + 0.1
    assert_resumes(one)


def test_a_store_that_hangs_from_the_start_ends_the_session_too():
    one = world(2.0)
    end, took_s = run_and_signal(one, Hanging(OperationKind.STORE, since_s=1.0))
    assert isinstance(end, StoppedError)
    assert took_s <= GRACE_S * RECORDS + 0.1
    assert_resumes(one)


@pytest.mark.parametrize("operation", [OperationKind.PAGE, OperationKind.CALL])
def test_a_hanging_list_or_service_delays_the_end_no_further(operation):
    one = world(2.0)
    end, took_s = run_and_signal(one, Hanging(operation, since_s=5.0))
    assert isinstance(end, StoppedError)
    assert took_s <= GRACE_S * CALLS + 1
    assert_resumes(one)
