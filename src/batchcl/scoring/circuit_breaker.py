"""When calls pause, and when a run in which nothing gets an outcome ends.

Calls pause while the model is not ready, and while the service answers no call at all. A run ends after 15 minutes in
which the model is RUNNING, calls are due and no image gets an outcome, whatever the reason: throttled calls cost as
much as idle ones.
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
"""Without an outcome: a notice, and the end of the run."""

DISTINCT_IMAGES: Final = 10
"""This many images in a row without an answer: the service is at fault, not the images."""

NEVER_ANSWERED_S: Final = 60.0
"""A service that has answered no call of this session is more likely a wrong endpoint than out of order."""

_PAUSE_MAX_S: Final = 30.0
_LOOK_EVERY_S: Final = 5.0


class CircuitBreaker:
    """Closed while calls go out, open while they pause, as the term is used for circuits.

    Args:
        recovery: waits for or restarts a model that is not ready.
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
        self._model_is_ready = True
        self._resumed_at = -math.inf
        self._pauses = 0
        self._unanswered: set[str] = set()
        self._unanswered_since = math.inf
        self._ever_answered = False
        self._last_error: CallError | None = None
        self._stopped = False

    async def wait_closed(self) -> None:
        """Wait until calls may go out."""
        if not self._closed.is_set():
            await self._closed.wait()

    def answered(self, *, scored: bool) -> None:
        """The service has accepted (`scored`) or refused an image."""
        self._ever_answered = True
        self._last_error = None
        if self._unanswered:
            self._unanswered.clear()
            self._unanswered_since = math.inf
        if scored:
            self._pauses = 0

    def failed(self, error: CallError) -> None:
        """A call had no outcome; the last such error is part of the message if the run ends for lack of outcomes."""
        self._last_error = error

    def blames_service(self, uri: str) -> bool:
        """Whether a transient error of the image `uri` is the service's: many images had no answer in a row."""
        self._unanswered_since = min(self._unanswered_since, anyio.current_time())
        if len(self._unanswered) < DISTINCT_IMAGES:
            self._unanswered.add(uri)
        return len(self._unanswered) >= DISTINCT_IMAGES

    def open(self, error: ModelNotReadyError | TransientError, *, sent_at: float, tasks: TaskGroup) -> None:
        """Pause calls until a task of `tasks` has dealt with `error`. Ignores calls from before the last pause."""
        if not self._closed.is_set() or sent_at < self._resumed_at or self._stopped:
            return
        self._closed = anyio.Event()
        self._model_is_ready = not isinstance(error, ModelNotReadyError)
        self._pauses += 1
        self._observer.notice(Notice("paused", f"calls pause: {error}", {"code": error.code}, level="warning"))
        tasks.start_soon(self._recover, error)

    def stop(self) -> None:
        """No more calls will go out: end the pause."""
        self._stopped = True
        self._recovering.cancel()

    async def watch(
        self, *, outcomes: Callable[[], int], is_due: Callable[[], bool], rate_tps: Callable[[], float]
    ) -> None:
        """Warn after a minute, and end the run after 15, in which calls are due and no image gets an outcome.

        Args:
            outcomes: how many images have an outcome.
            is_due: whether images wait for a call or an answer.
            rate_tps: calls a second; at very low ceilings the limits are longer.
        """
        since, seen, warned = anyio.current_time(), outcomes(), False
        while not self._stopped:
            await anyio.sleep(_LOOK_EVERY_S)
            now = anyio.current_time()
            if outcomes() != seen or not is_due() or not self._model_is_ready:
                since, seen, warned = now, outcomes(), False
                continue
            lasted_s, interval_s = now - since, 3 / rate_tps()
            if lasted_s >= max(STALL_ENDS_S, interval_s):
                self._on_failure(
                    StalledError(
                        f"no image got an outcome for {lasted_s / 60:.0f} minutes while the model was running and "
                        f"calls were due{self._reason()}; the run stops so that the model costs no more: run the "
                        "same command again to resume"
                    )
                )
            elif lasted_s >= max(STALL_WARNS_S, interval_s) and not warned:
                warned = True
                text = f"no image got an outcome for {lasted_s:.0f} s{self._reason()}"
                self._observer.notice(Notice("stalled", text, {"seconds": round(lasted_s)}, level="warning"))

    def _reason(self) -> str:
        return "" if self._last_error is None else f" (the last error: {self._last_error})"

    async def _recover(self, error: ModelNotReadyError | TransientError) -> None:
        try:
            with self._recovering:
                if isinstance(error, TransientError):
                    await self._wait_for_service(error)
                else:
                    await self._recovery.recover(error, pauses=self._pauses)
                self._observer.notice(Notice("resumed", "calls go on"))
        except BatchclError as refusal:
            self._on_failure(refusal)
        self._resumed_at = anyio.current_time()
        self._model_is_ready = True
        self._closed.set()

    async def _wait_for_service(self, error: TransientError) -> None:
        """Wait a little longer each time. No image loses an attempt to an outage of the service."""
        lasted_s = anyio.current_time() - self._unanswered_since
        if not self._ever_answered and lasted_s > NEVER_ANSWERED_S:
            raise UnreachableError(
                f"the service has answered no call for {lasted_s:.0f} s, the last error was: {error}; check the "
                "endpoint and the network, and run again to continue"
            )
        await anyio.sleep(self._rng.uniform(0.5, 1.0) * min(_PAUSE_MAX_S, 2.0 ** (self._pauses - 1)))
