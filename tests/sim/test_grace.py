"""A signal with a time limit: whatever hangs, the session is over in time, and what is lost is called for again."""

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
    """Operations of a sort never return from a moment on."""

    def __init__(self, sort: OperationKind, *, since_s: float) -> None:
        super().__init__()
        self._hangs = sort
        self._since_s = since_s

    async def around(self, operation: OperationKind, act: Callable[[], Awaitable[T]]) -> T:
        if operation is self._hangs and anyio.current_time() >= self._begun_at + self._since_s:
            await anyio.sleep_forever()
        return await super().around(operation, act)

    def begin(self) -> Hanging:
        self._begun_at = anyio.current_time()
        return self


def signalled(
    world: FakeWorld, faults: FaultInjector | None = None, *, limit_s: float = GRACE_S
) -> tuple[object, float]:
    """One session that is asked to end after 30 s; its end, and the seconds that it then took."""
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


def finishes(one: FakeWorld) -> None:
    """A later session ends the run, with each image once."""
    summary = run_virtual(one.run_to_end)
    assert isinstance(summary, Summary)
    one.assert_exactly_once(summary)


def test_calls_that_take_a_minute_are_given_up_in_time():
    one = world(60.0, images=40)
    end, took_s = signalled(one)
    assert isinstance(end, StoppedError)
    assert GRACE_S * CALLS <= took_s <= GRACE_S * CALLS + 1
    assert end.summary is not None
    assert end.summary.calls == 8
    finishes(one)


def test_calls_that_end_soon_are_waited_for_no_longer():
    one = world(2.0)
    end, took_s = signalled(one)
    assert isinstance(end, StoppedError)
    assert took_s <= 2.5
    assert end.summary is not None
    assert end.summary.scored == len(one.rows()) > 20
    finishes(one)


def test_a_store_that_hangs_costs_what_it_did_not_take():
    one = world(2.0)
    end, took_s = signalled(one, Hanging(OperationKind.STORE, since_s=SIGNAL_S - 5))
    assert isinstance(end, StoppedError)
    assert "ended by SIGTERM; writing " in str(end)
    assert "calls for these images again" in str(end)
    assert GRACE_S * STORE < took_s <= GRACE_S * RECORDS + 0.1
    finishes(one)


def test_a_store_that_hangs_from_the_start_ends_the_session_too():
    one = world(2.0)
    end, took_s = signalled(one, Hanging(OperationKind.STORE, since_s=1.0))
    assert isinstance(end, StoppedError)
    assert took_s <= GRACE_S * RECORDS + 0.1
    finishes(one)


@pytest.mark.parametrize("sort", [OperationKind.PAGE, OperationKind.CALL])
def test_a_list_or_a_service_that_hangs_holds_the_session_up_no_longer_than_calls(sort):
    one = world(2.0)
    end, took_s = signalled(one, Hanging(sort, since_s=5.0))
    assert isinstance(end, StoppedError)
    assert took_s <= GRACE_S * CALLS + 1
    finishes(one)
