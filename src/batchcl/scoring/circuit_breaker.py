"""Pauses all calls during an outage, and ends a run in which no image gets an outcome.

Calls pause while the model is not ready, while credentials fail, and while the service answers no call. A run ends
after 15 minutes in which the model is RUNNING, calls are due and no image gets an outcome. Throttled calls count as no
outcome: the model is billed for that time too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from batchcl.errors import BatchclError, CallError, ModelNotReadyError, StalledError, TransientError, UnreachableError
from batchcl.events import Notice, Observer
from batchcl.scoring.protocols import Recovery

__all__ = ["CircuitBreaker"]

STALL_WARNS_S: Final = 60.0
STALL_ENDS_S: Final = 15 * 60.0
"""Time without an outcome until a warning, and until the run ends."""

DISTINCT_IMAGES: Final = 10
"""When this many different images in a row get no response, the service is at fault and not the images."""

NEVER_ANSWERED_S: Final = 60.0
"""The run ends after this time if no call of the session got a response: the endpoint is probably wrong."""

_PAUSE_MAX_S: Final = 30.0
_CHECK_EVERY_S: Final = 5.0


class CircuitBreaker:
    """Closed: calls are sent. Open: calls wait.

    Args:
        recovery: waits for, or restarts, a model that is not ready.
        observer: receives the notices `paused`, `resumed` and `stalled`.
        rng: for jitter.
        on_failure: receives the error that ends the run.
    """

    def __init__(
        self, recovery: Recovery, *, observer: Observer, rng: random.Random, on_failure: Callable[[BatchclError], None]
    ) -> None:
        self._recovery = recovery
        self._observer = observer
        self._rng = rng
        self._on_failure = on_failure
        self._recovering = anyio.CancelScope()
        self._closed = anyio.Event()
        self._closed.set()
        self._is_model_ready = True
        self._resumed_at = -math.inf
        self._pauses = 0
        self._unanswered: set[str] = set()
        self._unanswered_since = math.inf
        self._ever_answered = False
        self._last_error: CallError | None = None
        self._stopped = False

    async def wait_closed(self) -> None:
        """Wait until calls may be sent."""
        if not self._closed.is_set():
            await self._closed.wait()

    def answered(self, *, scored: bool) -> None:
        """Record that the service has scored (`scored`) or refused an image."""
        self._ever_answered = True
        self._last_error = None
        if self._unanswered:
            self._unanswered.clear()
            self._unanswered_since = math.inf
        if scored:
            self._pauses = 0

    def failed(self, error: CallError) -> None:
        """Record a call that failed. The last error is part of the message if the run stalls."""
        self._last_error = error

    def is_outage(self, uri: str) -> bool:
        """Record a transient error of the image `uri`; whether the service is at fault: 10 images in a row had one."""
        self._unanswered_since = min(self._unanswered_since, anyio.current_time())
        if len(self._unanswered) < DISTINCT_IMAGES:
            self._unanswered.add(uri)
        return len(self._unanswered) >= DISTINCT_IMAGES

    def open(self, error: ModelNotReadyError | TransientError, *, sent_at: float, tasks: TaskGroup) -> None:
        """Pause calls until a task in `tasks` has recovered from `error`.

        Ignored for calls that were sent before the last recovery ended.
        """
        if not self._closed.is_set() or sent_at < self._resumed_at or self._stopped:
            return
        self._closed = anyio.Event()
        self._is_model_ready = not isinstance(error, ModelNotReadyError)
        self._pauses += 1
        self._observer.notice(Notice("paused", f"calls paused: {error}", {"code": error.code}, level="warning"))
        tasks.start_soon(self._recover, error)

    def stop(self) -> None:
        """End the pause: no more calls will be sent."""
        self._stopped = True
        self._recovering.cancel()

    async def watch(
        self, *, outcomes: Callable[[], int], is_due: Callable[[], bool], rate_tps: Callable[[], float]
    ) -> None:
        """Warn after 1 minute, and end the run after 15, in which calls are due and no image gets an outcome.

        Args:
            outcomes: number of images with an outcome.
            is_due: whether images wait for a call or a response.
            rate_tps: current call rate. At low rates, both limits are the time that three calls take.
        """
        since, last_count, has_warned = anyio.current_time(), outcomes(), False
        while not self._stopped:
            await anyio.sleep(_CHECK_EVERY_S)
            now = anyio.current_time()
            if outcomes() != last_count or not is_due() or not self._is_model_ready:
                since, last_count, has_warned = now, outcomes(), False
                continue
            stalled_s, three_calls_s = now - since, 3 / rate_tps()
            if stalled_s >= max(STALL_ENDS_S, three_calls_s):
                self._on_failure(
                    StalledError(
                        f"no image got an outcome for {stalled_s / 60:.0f} minutes while the model was running and "
                        f"calls were due{self._reason()}; the run ends to save the cost of the model"
                    )
                )
            elif stalled_s >= max(STALL_WARNS_S, three_calls_s) and not has_warned:
                has_warned = True
                text = f"no image got an outcome for {stalled_s:.0f} s{self._reason()}"
                self._observer.notice(Notice("stalled", text, {"seconds": round(stalled_s)}, level="warning"))

    def _reason(self) -> str:
        return "" if self._last_error is None else f" (last error: {self._last_error})"

    async def _recover(self, error: ModelNotReadyError | TransientError) -> None:
        try:
            with self._recovering:
                if isinstance(error, TransientError):
                    await self._wait_for_service(error)
                else:
                    await self._recovery.recover(error, pauses=self._pauses)
                self._observer.notice(Notice("resumed", "calls resumed"))
        except BatchclError as failure:
            self._on_failure(failure)
        self._resumed_at = anyio.current_time()
        self._is_model_ready = True
        self._closed.set()

    async def _wait_for_service(self, error: TransientError) -> None:
        """Back off exponentially. An outage of the service costs no image an attempt."""
        unanswered_s = anyio.current_time() - self._unanswered_since
        if not self._ever_answered and unanswered_s > NEVER_ANSWERED_S:
            raise UnreachableError(
                f"the service has answered no call for {unanswered_s:.0f} s (last error: {error}); check the endpoint "
                "and the network, and run the same command again"
            )
        await anyio.sleep(self._rng.uniform(0.5, 1.0) * min(_PAUSE_MAX_S, 2.0 ** (self._pauses - 1)))
