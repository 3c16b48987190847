"""The model around a run: running while the run lasts, brought back when it stops, never left behind."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from batchcl.aws.arn import ModelArn
from batchcl.aws.guards import Guard
from batchcl.aws.lifecycle import START_TIMEOUT_S, Model, Units, describe, start, stop, wait
from batchcl.aws.statuses import STARTABLE, UP
from batchcl.errors import (
    CredentialsError,
    ModelError,
    ModelGoneError,
    ModelNotReadyError,
    RefusedError,
    StoppedError,
    UnreachableError,
)
from batchcl.scoring.events import Notice, Observer
from batchcl.scoring.stopper import Stopper

__all__ = ["DOLLARS_PER_UNIT_HOUR", "ModelKeeper"]

DOLLARS_PER_UNIT_HOUR: Final = 4.0
"""Price of an inference unit while the model is RUNNING, idle or not; source: the service's pricing page."""

_STOP_TRIES_FOR_S: Final = 300.0
_HURRIED_STOP_S: Final = 10.0
_MAX_PAUSES: Final = 12
_MAX_RESTARTS: Final = 3
_PAUSE_MAX_S: Final = 60.0


class ModelKeeper:
    """Knows whether this run started the model, and so whether it stops it.

    Args:
        client: an open Rekognition client for the control plane.
        arn: the model.
        units: start the model with these when it isn't running; None never starts it.
        keep: leave the model running that was started.
        free: it costs nothing, being emulated.
        guards: stop the model if this process can't: armed before it is started, disarmed when it is stopped.
        observer: told of every change of the model's state.
        stopper: ends waits early.
        rng: for jitter.
    """

    def __init__(
        self,
        client: Any,
        arn: ModelArn,
        *,
        units: Units | None,
        keep: bool,
        free: bool = False,
        guards: Sequence[Guard] = (),
        observer: Observer,
        stopper: Stopper,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._arn = arn
        self._units = units
        self._keep = keep
        self._free = free
        self._guards = tuple(guards)
        self._observer = observer
        self._stopper = stopper
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._owned = False
        self._left = False
        self._is_handed_over = False
        self._in_doubt = False
        self._on_owning: Callable[[], Awaitable[None]] | None = None
        self._running_since: float | None = None
        self._billed_s = 0.0
        self._restarts = 0

    async def check(self) -> None:
        """Look at the model before anything is spent.

        An identity that may not describe models can still score with one that runs, so that is only noticed.

        Raises:
            ModelError: there is no such model, or it isn't running and may not be started.
            CredentialsError: AWS refuses the credentials.
        """
        try:
            model = await describe(self._client, self._arn)
        except CredentialsError as error:
            if self._units is not None or not error.is_access_denied:
                raise
            self._observer.notice(Notice("model-unknown", f"the model's state can't be seen: {error}"))
            return
        may_be_started = model.status in STARTABLE | {"STOPPING"}
        if model.status in UP or (may_be_started and self._units is not None):
            return
        hint = (
            f"start it with --start-model 1, or `batchcl model start {self._arn}`"
            if may_be_started
            else "it can't be started in this state"
        )
        raise ModelError(f"the model {self._arn.name} is {model.status}, not RUNNING; {hint}")

    @property
    def owned(self) -> bool:
        """Whether this run, in any session, has started a model that it is still to stop."""
        return self._owned or self._left

    @property
    def stops(self) -> bool:
        """Whether this session will stop the model, or keep it as it was told to."""
        return self._owned

    def remember(self, on_owning: Callable[[], Awaitable[None]]) -> None:
        """Await `on_owning` before the model is started, so that somebody else can stop it if this process dies."""
        self._on_owning = on_owning

    def adopt(self) -> None:
        """Take over a model that an earlier session of this run started and could not stop.

        One that starts no models stops none: it leaves that one to the next session that does.
        """
        if self._units is None:
            self._left = True
            self._observer.notice(
                Notice(
                    "model-left",
                    f"an earlier session of this run started {self._arn.name} and could not stop it; this one "
                    f"won't: add --start-model, or stop it with `batchcl model stop {self._arn}`",
                )
            )
        else:
            self._owned = True

    def hand_over(self) -> None:
        """Leave the model and its guards to another session of this run, which is at work with it and will stop it."""
        self._observer.notice(
            Notice("model-handed-over", f"{self._arn.name} is left to the runner that has taken this run over")
        )
        self._stop_billing()
        self._owned = False
        self._is_handed_over = True

    def dollars(self) -> float | None:
        """What the model has cost so far at its minimum of units; None unless this run started it and pays for it."""
        if self._free or self._units is None or not (self._owned or self._billed_s):
            return None
        since = self._running_since
        billed_s = self._billed_s + (0.0 if since is None else anyio.current_time() - since)
        return billed_s / 3600 * self._units.minimum * DOLLARS_PER_UNIT_HOUR

    async def have_running(self) -> None:
        """Return when the model is RUNNING; start it if need be. Only inside `stopping`.

        Raises:
            ModelError: it can't be started.
            StoppedError: the run was asked to end while it started.
        """
        with self._stopper.interruptible():
            await self._ensure_running()

    @asynccontextmanager
    async def stopping(self) -> AsyncIterator[None]:
        """Stop the model at the end of the block if the run started it, whatever the end.

        Raises:
            StoppedError: the model could not be stopped.
        """
        try:
            yield
        finally:
            if self._owned:
                await self._end()
            elif not self._is_handed_over:
                await self._disarm()

    async def keep_guarded(self) -> None:
        """What the guards do beside the run, until cancelled."""
        async with anyio.create_task_group() as group:
            for guard in self._guards:
                group.start_soon(guard.keep)

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        """Wait for the model, restart it if the run owns it, or raise `ModelGoneError`."""
        if pauses > _MAX_PAUSES:
            raise ModelGoneError(f"the model {self._arn.name} answered nothing but: {error}; run again to continue")
        try:
            model = await describe(self._client, self._arn)
            if model.status == "RUNNING":
                await self._breathe(pauses)
                return
            self._note(model)
            self._stop_billing()
            if model.status != "STARTING":
                self._may_restart(model)
            await self._ensure_running()
        except UnreachableError:
            await self._breathe(pauses)
        except RefusedError as refusal:
            raise ModelGoneError(f"the model is not back: {refusal}; run again to continue") from refusal

    async def _breathe(self, pauses: int) -> None:
        await anyio.sleep(self._rng.uniform(0.5, 1.0) * min(_PAUSE_MAX_S, 2.0 ** (pauses - 1)))

    def _may_restart(self, model: Model) -> None:
        """Only what the run started is the run's to restart, and not for ever."""
        if not self._owned:
            raise ModelGoneError(
                f"the model {model.name} is {model.status}: somebody stopped it, and this run did not start it; "
                "start it and run again to continue"
            )
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise ModelGoneError(
                f"the model {model.name} stopped again after {_MAX_RESTARTS} restarts; find out who stops it, "
                "and run again to continue"
            )

    async def _ensure_running(self) -> None:
        try:
            model = await describe(self._client, self._arn)
        except CredentialsError as error:
            if self._units is not None or not error.is_access_denied:
                raise
            return  # `check` has said so: who may not see the model may still call it
        if model.status == "STOPPING" and self._units is not None:
            self._note(model)
            model = await wait(self._client, self._arn, until="STOPPED", passing={"STOPPING"})
        if model.status in STARTABLE and self._units is not None:
            await self._start(self._units)
        elif self._owned:  # an earlier session started it, and died
            await self._arm()
        else:
            await self._share()
        if model.status != "RUNNING":
            passing = {"STARTING"} | self._lag()
            await wait(self._client, self._arn, until="RUNNING", passing=passing, on_state=self._note)
        self._start_billing()

    async def _start(self, units: Units) -> None:
        owned = self._owned
        self._owned = True  # before the call: if its answer is lost, the model may be starting all the same
        if self._on_owning is not None:
            await self._on_owning()
        try:
            await self._arm()
        except RefusedError:
            self._owned = owned
            await self._disarm()
            raise
        self._in_doubt = True  # until there is an answer: a description may lag behind a start
        try:
            await start(self._client, self._arn, units)
        except CredentialsError:
            self._in_doubt = False
            raise
        except ModelError:
            # Refused, perhaps because somebody else started it in between; theirs isn't ours to stop.
            self._owned = self._in_doubt = False
            await self._disarm()
            model = await describe(self._client, self._arn)
            if model.status not in UP:
                raise
            await self._share()
        self._in_doubt = False

    async def _arm(self) -> None:
        for guard in self._guards:
            await guard.arm()

    async def _share(self) -> None:
        for guard in self._guards:
            await guard.share()

    async def _disarm(self) -> None:
        for guard in reversed(self._guards):
            await guard.disarm()

    def _lag(self) -> frozenset[str]:
        """States that a description may still show right after the start."""
        return STARTABLE - {"FAILED"} if self._owned else frozenset()

    async def _end(self) -> None:
        """Stop the model even when the run is being cancelled, and say so loudly if that fails."""
        if self._keep:
            self._observer.notice(Notice("model-kept", f"{self._arn.name} stays RUNNING, as --keep-model says"))
            await self._disarm()
            self._stop_billing()
            self._owned = False
            return
        with (
            anyio.CancelScope(shield=True) as scope,
            self._stopper.calling_in_hurry(lambda: _shorten(scope, _HURRIED_STOP_S)),
        ):
            await self._stop_with_retries()
            if not self._owned and not self._in_doubt:
                await self._disarm()
        if self._owned:
            raise StoppedError(self._left_running())

    async def _stop_with_retries(self) -> None:
        give_up_at: float | None = None
        delay_s = 1.0
        while True:
            try:
                await self._stop_once()
            except (RefusedError, StoppedError) as error:
                now = anyio.current_time()
                if give_up_at is None:  # a model may have been STARTING for long before its first stop could fail
                    give_up_at = now + _STOP_TRIES_FOR_S
                if now >= give_up_at:
                    return
                self._observer.notice(Notice("model-stop-failed", f"{error}; trying again"))
                await anyio.sleep(delay_s)
                delay_s = min(2 * delay_s, 30.0)
            else:
                self._owned = False
                self._stop_billing()
                return

    async def _stop_once(self) -> None:
        model = await describe(self._client, self._arn)
        if model.status == "STARTING":
            self._observer.notice(
                Notice(
                    "model-starting", f"{self._arn.name} is still STARTING and can't be stopped before it runs: waiting"
                )
            )
            model = await wait(
                self._client, self._arn, until="RUNNING", passing={"STARTING"}, timeout_s=START_TIMEOUT_S
            )
        if model.status == "RUNNING":
            await stop(self._client, self._arn)
            self._in_doubt = False
        self._observer.notice(
            Notice("model-stopped", f"{self._arn.name} is stopped" + ("" if self._free else "; its billing has ended"))
        )

    def _left_running(self) -> str:
        return (
            f"the model {self._arn.name} could not be stopped and may still cost ${DOLLARS_PER_UNIT_HOUR:.2f} per unit "
            f"and hour; stop it with `batchcl model stop {self._arn}`"
        )

    def _note(self, model: Model) -> None:
        self._observer.notice(Notice("model", f"{model.name} is {model.status}", {"status": model.status}))

    def _start_billing(self) -> None:
        if self._owned and self._running_since is None:
            self._running_since = anyio.current_time()

    def _stop_billing(self) -> None:
        if self._running_since is not None:
            self._billed_s += anyio.current_time() - self._running_since
            self._running_since = None


def _shorten(scope: anyio.CancelScope, seconds: float) -> None:
    scope.deadline = min(scope.deadline, anyio.current_time() + seconds)
