"""Run async code in virtual time: a wait costs nothing, and a run of 20 hours fits in a test.

`run_virtual(fn, *args)` is `anyio.run` on an asyncio loop whose clock is a counter. When nothing is ready, the counter
jumps to the next timer. `anyio.current_time`, `sleep`, deadlines, events, task groups and threads work as in real time.

Not offered: sockets and threads of foreign libraries (obstore's runtime) can't be seen from here, so time may jump
while they work; give them `grace_s`, the real seconds to listen for them before each jump.
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

TURN_S = 1e-9  # each turn costs this much, or a wait as short as a float's residue never ends
JUMP_S = 1e-6  # a jump shorter than this is no progress
PATIENCE_S = 20.0  # real seconds that a thread may take, or that an empty loop waits for someone outside


class VirtualTimeError(AssertionError):
    """The code under test neither ends nor waits for anything that could wake it."""


class _JumpingSelector(selectors.DefaultSelector):
    """Where a loop would sleep until its next timer, move the clock there instead."""

    def __init__(self, *, max_turns: int, max_s: float, grace_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads_busy: Callable[[], bool] = lambda: False
        self._max_turns = max_turns
        self._max_s = max_s
        self._grace_s = grace_s
        self._turns = 0
        self._stuck_since_s: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += TURN_S
        self._turns += 1
        if self._turns > self._max_turns:
            self._turns = 0  # the loop turns on while anyio cancels what is left
            message = f"{self._max_turns} turns of the loop without progress at {self.now_s:.6f} virtual seconds"
            raise VirtualTimeError(message)
        busy = self.threads_busy()
        jumps = timeout is not None and timeout > 0 and not busy
        events: list[tuple[selectors.SelectorKey, int]] = super().select(self._grace_s if jumps else 0)
        if events or timeout == 0:
            self._stuck_since_s = None
            if events:
                self._turns = 0
            return events
        if timeout is not None and jumps:
            self.now_s += timeout
            if self.now_s > self._max_s:
                self._max_s = math.inf
                raise VirtualTimeError(f"not at its end after {self.now_s:.0f} virtual seconds")
            if timeout >= JUMP_S:
                self._turns = 0
            self._stuck_since_s = None
            return []
        return self._wait_for_others(busy=busy)

    def _wait_for_others(self, *, busy: bool) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait in real time for a thread, or, with no timer left, for whoever may still wake the loop."""
        now_s = time.monotonic()
        if self._stuck_since_s is None:
            self._stuck_since_s = now_s
        elif now_s - self._stuck_since_s > PATIENCE_S:
            self._stuck_since_s = None
            cause = "a thread did not end" if busy else "deadlock: no timer is set and nothing is ready"
            raise VirtualTimeError(f"{cause} in {PATIENCE_S:.0f} real seconds at {self.now_s:.6f} virtual seconds")
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0.05)
        if events:
            self._stuck_since_s = None
            self._turns = 0
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose `time()` moves only when nothing else can happen."""

    def __init__(self, *, max_turns: int, max_s: float, grace_s: float, start_s: float) -> None:
        self._jumping = _JumpingSelector(max_turns=max_turns, max_s=start_s + max_s, grace_s=grace_s)
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
        if when == math.inf:  # anyio.sleep_forever: a timer to jump to would hide a deadlock
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
) -> T:
    """Run `fn(*args)` to its end in virtual time and return its result.

    Args:
        fn: the async function.
        args: its arguments.
        max_turns: turns of the loop in a row without a jump in time and without news from outside: more is spinning.
        max_s: virtual seconds that it may take.
        grace_s: real seconds to listen for foreign threads and sockets before each jump.
        start_s: what the clock shows at the beginning.

    Raises:
        VirtualTimeError: the code spins, polls for longer than `max_s`, is deadlocked, or a thread does not end.
    """

    async def main() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.limiter = anyio.to_thread.current_default_thread_limiter()
        with contextlib.ExitStack() as after:
            after.callback(setattr, loop, "limiter", None)  # what anyio tears down afterwards needs no clock
            return await fn(*args)

    def loop_factory() -> VirtualLoop:
        return VirtualLoop(max_turns=max_turns, max_s=max_s, grace_s=grace_s, start_s=start_s)

    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": loop_factory})
