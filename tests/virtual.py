"""Run async code in virtual time: sleeping takes no real time, so a test can cover a run of 20 hours.

`run_virtual(fn, *args)` is `anyio.run` on an asyncio loop with a virtual clock. When no task is ready, the clock jumps
to the next timer. `anyio.current_time`, `sleep`, deadlines, events, task groups and threads work as in real time.

Limitation: activity of sockets and of other libraries' threads (obstore's runtime) is not visible, so time may jump
while they work. For those, `grace_s` sets the real time to wait for events before each jump.
"""

import asyncio
import contextlib
import math
import selectors
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import Context
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURN_S = 1e-9  # added in each turn; otherwise a wait shorter than a float's precision would never end
JUMP_S = 1e-6  # shorter jumps do not count as progress
PATIENCE_S = 20.0  # real seconds that a thread may take, or that a loop without timers waits for an event


class VirtualTimeError(AssertionError):
    """The code under test spins, is deadlocked, or exceeds its time limit."""


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the clock to the next timer instead of waiting for it."""

    def __init__(self, *, max_turns: int, max_s: float, grace_s: float, is_alone: bool) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads_busy: Callable[[], bool] = lambda: False
        self._max_turns = max_turns
        self._max_s = max_s
        self._grace_s = grace_s
        self._is_alone = is_alone
        self._turns = 0
        self._stuck_since_s: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += TURN_S
        self._turns += 1
        if self._turns > self._max_turns:
            self._turns = 0  # the loop continues while anyio cancels the remaining tasks
            message = f"{self._max_turns} turns of the loop without progress at {self.now_s:.6f} virtual seconds"
            raise VirtualTimeError(message)
        busy = self.threads_busy()
        jumps = timeout is not None and timeout > 0 and not busy
        events: list[tuple[selectors.SelectorKey, int]] = []
        if busy or not self._is_alone:
            events = super().select(self._grace_s if jumps else 0)
        if events or timeout == 0:
            self._stuck_since_s = None
            if events:
                self._turns = 0
            return events
        if timeout is not None and jumps:
            self.now_s += timeout
            if self.now_s > self._max_s:
                self._max_s = math.inf
                raise VirtualTimeError(f"not finished after {self.now_s:.0f} virtual seconds")
            if timeout >= JUMP_S:
                self._turns = 0
            self._stuck_since_s = None
            return []
        return self._wait_for_others(busy=busy)

    def _wait_for_others(self, *, busy: bool) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait in real time for a thread or, without a timer, for an event from outside the loop."""
        now_s = time.monotonic()
        if self._stuck_since_s is None:
            self._stuck_since_s = now_s
        elif now_s - self._stuck_since_s > PATIENCE_S:
            self._stuck_since_s = None
            cause = "a thread did not end" if busy else "deadlock: no timer is set and nothing is ready"
            raise VirtualTimeError(f"{cause} within {PATIENCE_S:.0f} real seconds at {self.now_s:.6f} virtual seconds")
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0.05)
        if events:
            self._stuck_since_s = None
            self._turns = 0
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose `time()` advances only when no task is ready."""

    def __init__(self, *, max_turns: int, max_s: float, grace_s: float, start_s: float, is_alone: bool = False) -> None:
        self._jumping = _JumpingSelector(max_turns=max_turns, max_s=start_s + max_s, grace_s=grace_s, is_alone=is_alone)
        self._jumping.now_s = start_s
        self._jumping.threads_busy = self._threads_busy
        self._in_executor = 0
        self.limiter: anyio.CapacityLimiter | None = None
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if when == math.inf:  # from anyio.sleep_forever: a timer would hide a deadlock
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def _threads_busy(self) -> bool:
        return self._in_executor > 0 or (self.limiter is not None and self.limiter.borrowed_tokens > 0)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        self._in_executor += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._left_executor)
        return future

    def _left_executor(self, _future: object) -> None:
        self._in_executor -= 1


def run_virtual(
    fn: Callable[[*Ts], Awaitable[T]],
    *args: *Ts,
    max_turns: int = 500_000,
    max_s: float = 30 * 86_400.0,
    grace_s: float = 0.0,
    start_s: float = 0.0,
    is_alone: bool = False,
) -> T:
    """Run `fn(*args)` in virtual time and return its result.

    Args:
        fn: the async function.
        args: its arguments.
        max_turns: maximum number of consecutive turns of the loop without a jump in time or an external event.
        max_s: maximum duration in virtual seconds.
        grace_s: real seconds to wait for other threads and sockets before each jump.
        start_s: initial time of the clock.
        is_alone: there are no sockets, signals and threads but those of asyncio and anyio, so others are not polled for
            events in each turn.

    Raises:
        VirtualTimeError: the code spins, polls for longer than `max_s`, is deadlocked, or a thread does not end.
    """

    async def main() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.limiter = anyio.to_thread.current_default_thread_limiter()
        with contextlib.ExitStack() as after:
            after.callback(setattr, loop, "limiter", None)  # not needed when anyio shuts down the loop
            return await fn(*args)

    def loop_factory() -> VirtualLoop:
        return VirtualLoop(max_turns=max_turns, max_s=max_s, grace_s=grace_s, start_s=start_s, is_alone=is_alone)

    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": loop_factory})
