"""The model around a run: running while the run lasts, restarted when it stops, stopped at the end.

`machine` decides, this module acts: it performs an action, and what comes of it is the next event. Notices go out after
the actions, and what an observer raises is dropped.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Literal

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.errors import cause_code, cause_status, was_too_late
from batchcl.aws.models import START_TIMEOUT_S, STARTABLE, UP, Model, Units, describe, start, stop, wait
from batchcl.errors import (
    BatchclError,
    CredentialsError,
    ModelError,
    ModelGoneError,
    ModelNotReadyError,
    RefusedError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from batchcl.events import Notice, Observer, SafeObserver
from batchcl.lifetime.model_lease import ModelLease
from batchcl.lifetime.state_machine import ModelAction, ModelEvent, ModelLife, ModelState, seen, step
from batchcl.stop_signal import MODEL, StopSignal

__all__ = ["DOLLARS_PER_UNIT_HOUR", "ModelManager"]

DOLLARS_PER_UNIT_HOUR: Final = 4.0
"""Price of an inference unit while the model is RUNNING, idle or not; source: the service's pricing page."""

_STOP_TRIES_FOR_S: Final = 300.0
_HURRIED_STOP_S: Final = 10.0
_SILENCE_S: Final = 300.0
_THROTTLED_FOR_S: Final = 300.0
_RELEASE_S: Final = 10.0
_LEAVE_S: Final = 5.0
_MAX_PAUSES: Final = 12
_MAX_RESTARTS: Final = 3
_MAX_IN_USE: Final = 3
_TAG_TRIES: Final = 3
_PAUSE_MAX_S: Final = 60.0
_LOOKS_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Between two descriptions of the model; the last one repeats."""

_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_WARNINGS: Final = frozenset(
    {"lease-left", "lease-not-renewed", "lease-unknown", "model-kept", "model-not-ours", "model-stop-failed"}
)
_THROTTLING: Final = frozenset({"ThrottlingException", "ProvisionedThroughputExceededException", "Throttling"})
_TIMEOUTS: Final = frozenset({"RequestTimeout", "RequestTimeoutException"})


class ModelManager:
    """Starts the model when a call is due, and stops it at the end if the run may have started it.

    Args:
        client: an open Rekognition client for the control plane.
        arn: the model.
        units: start the model with these when it isn't running; None never starts it.
        keep: leave the model running that was started.
        free: it costs nothing, being emulated.
        lease: in the model's tags; tells later sessions and the reaper that the model is this run's. None for none.
        observer: receives every change of the model's state.
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
        lease: ModelLease | None = None,
        observer: Observer,
        stopper: StopSignal,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._arn = arn
        self._units = units
        self._keep = keep
        self._free = free
        self._lease = lease or ModelLease(client, arn, length_s=None)
        self._observer = SafeObserver(observer)
        self._stopper = stopper
        self._rng = rng or random.Random()
        self._life = ModelLife()
        self._entered_at = 0.0
        self._looks = 0
        self._answered_at: float | None = None
        self._status = ""
        self._running_units: Units | None = None
        self._why: BatchclError | None = None
        self._notices: list[Notice] = []
        self._inherits = False
        self._claiming = False
        self._leaves_to_next = False
        self._is_handed_over = False
        self._on_owning: Callable[[], Awaitable[None]] | None = None
        self._running_since: float | None = None
        self._billed_s = 0.0
        self._restarts = 0
        self._in_use = 0
        self._throttled_since: float | None = None

    @property
    def state(self) -> ModelState:
        """What the run has to do with the model."""
        return self._life.state

    @property
    def units(self) -> Units | None:
        """Those that the model runs with, or would be started with; None where neither is known."""
        return self._running_units or self._units

    @property
    def owned(self) -> bool:
        """Whether this run, in any session, may have started a model that it is still to stop."""
        is_left = self._life.state is ModelState.LEFT and not self._is_handed_over
        return self.stops or self._leaves_to_next or is_left

    @property
    def stops(self) -> bool:
        """Whether this session will stop the model, or keep it as it was told to."""
        return self._life.is_ours or self._inherits or self._claiming

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
            self._observer.notice(Notice("model-unknown", f"the model's state can't be seen: {error}", level="warning"))
            return
        self._note_units(model)
        may_be_started = model.status in STARTABLE | {"STOPPING"}
        if model.status in UP or (may_be_started and self._units is not None):
            return
        hint = (
            f"start it with --start-model 1, or `batchcl model start {self._arn}`"
            if may_be_started
            else "it can't be started in this state"
        )
        raise ModelError(f"the model {self._arn.name} is {model.status}, not RUNNING; {hint}")

    def remember(self, on_owning: Callable[[], Awaitable[None]]) -> None:
        """Await `on_owning` before the model is started, so that the next session knows if this process dies."""
        self._on_owning = on_owning

    def adopt(self) -> None:
        """An earlier session of this run may have started the model and not stopped it: its tag decides.

        A session that starts no models stops none: it leaves the model to the next session that does.
        """
        if self._units is None:
            self._leaves_to_next = True
            text = (
                f"an earlier session of this run started {self._arn.name} and could not stop it; this one won't: add "
                f"--start-model, or stop it with `batchcl model stop {self._arn}`"
            )
            self._observer.notice(Notice("model-left", text, level="warning"))
        else:
            self._inherits = True

    def hand_over(self) -> None:
        """Leave the model with its tag to another session of this run, which is at work with it and will stop it."""
        self._step(ModelEvent.TAKEN_OVER)
        self._is_handed_over = True
        self._inherits = False
        self._stop_billing()
        self._say("model-handed-over", f"{self._arn.name} is left to the runner that has taken this run over")
        self._emit()

    def dollars(self) -> float | None:
        """What the model has cost so far at its minimum of units; None unless this run started it and pays for it."""
        if self._free or self._units is None or not (self._life.is_ours or self._billed_s):
            return None
        since = self._running_since
        billed_s = self._billed_s + (0.0 if since is None else anyio.current_time() - since)
        return billed_s / 3600 * self._units.minimum * DOLLARS_PER_UNIT_HOUR

    async def have_running(self) -> None:
        """Return when the model is RUNNING; start it if need be. Only inside `stopping`.

        Raises:
            RefusedError: it can't be started.
            StoppedError: the run was asked to end while it started.
        """
        with self._stopper.interruptible():
            await self._ensure_running()

    async def start(self) -> None:
        """Start the model and return when the service has taken the start, which a lost answer doesn't tell.

        Raises:
            RefusedError: it was not started, or nobody can tell: see `state`.
        """
        await self._drive(ModelEvent.STARTABLE, looks_in={ModelState.UNKNOWN})
        if self._life.state not in {ModelState.STARTING, ModelState.RUNNING}:
            raise self._failure()

    @asynccontextmanager
    async def stopping(self) -> AsyncIterator[None]:
        """Stop the model at the end of the block if the run may have started it, whatever the end.

        Raises:
            StoppedError: the model could not be stopped.
        """
        self._stopper.on_abandoned = lambda: self._left() if self.owned else ""
        try:
            yield
        finally:
            if not self._is_handed_over:
                await self._end()

    async def keep_guarded(self) -> None:
        """Renew the lease beside the run, until cancelled. A renewal that fails never ends the run."""
        failed = False
        while self._lease.is_enabled:
            await anyio.sleep(self._lease.next_renewal_s(failed=failed))
            try:
                is_kept = await self._lease.renew()
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                if not failed:
                    self._say_not_renewed(error)
                failed = True
            else:
                if failed:
                    self._say("lease-renewed", f"the lease of {self._arn.name} is renewed")
                failed = False
                if not is_kept:
                    self._say_not_ours()
                    await self._drive(ModelEvent.TAG_GONE)
            self._emit()

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
            self._emit()
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
        if not self._life.is_ours:
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
        self._note(model)
        event = await self._first_event(model, ending=False)
        if self._units is not None or model.status in UP:
            await self._drive(event)
        if self._life.state in {ModelState.NOT_OURS, ModelState.SHARED} and self._status != "RUNNING":
            await wait(self._client, self._arn, until="RUNNING", passing={"STARTING"}, on_state=self._note_now)
        self._start_billing()

    async def _first_event(self, model: Model, *, ending: bool) -> ModelEvent:
        """What the model's state means to this session, which an earlier one may have left it to."""
        event = seen(self._life, model.status, now=anyio.current_time(), ending=ending)
        self._life = replace(self._life, was_failed=model.status == "FAILED")
        if self._life.state is not ModelState.NOT_OURS or self._units is None or model.status not in UP:
            return event
        if await self._is_own():
            return ModelEvent.ADOPT_STARTING if model.status == "STARTING" else ModelEvent.ADOPT_RUNNING
        self._inherits = False
        return event

    async def _is_own(self) -> bool:
        """Whether an earlier session of this run has left the model to this one; without a lease, its record tells."""
        if not self._lease.is_enabled:
            return self._inherits
        for left in reversed(range(_TAG_TRIES)):
            try:
                return await self._lease.find_own()
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                if left:
                    await anyio.sleep(1.0)
                else:
                    self._say("lease-unknown", f"the tags of {self._arn.name} can't be read, so it is left: {error}")
        return False

    # --- the driver -------------------------------------------------------------------------------------------------

    def _step(self, event: ModelEvent) -> tuple[ModelAction, ...]:
        before = self._life.state
        self._life, actions = step(self._life, event)
        if self._life.state is not before:
            self._entered_at = anyio.current_time()
            self._looks = 0
            self._answered_at = None
        return actions

    async def _drive(
        self, event: ModelEvent, *, ending: bool = False, looks_in: Collection[ModelState] = frozenset(ModelState)
    ) -> None:
        """Feed events until one needs no action; in states that are not in `looks_in`, until the first look."""
        following: ModelEvent | None = event
        try:
            while following is not None:
                actions, following = self._step(following), None
                for action in actions:
                    if action is ModelAction.LOOK and self._life.state not in looks_in:
                        return
                    if action is ModelAction.FAIL and not ending:
                        raise self._failure()
                    following = await self._perform(action, ending=ending)
                self._emit()
        finally:
            self._emit()

    async def _perform(self, action: ModelAction, *, ending: bool) -> ModelEvent | None:
        match action:
            case ModelAction.LOOK:
                return await self._look(ending=ending)
            case ModelAction.CLAIM:
                return await self._claim()
            case ModelAction.START:
                return await self._start()
            case ModelAction.SHARE:
                return await self._share()
            case ModelAction.LEAVE:
                return await self._leave()
            case ModelAction.STOP:
                return await self._stop()
            case ModelAction.RELEASE:
                await self._undo(self._lease.release)
            case ModelAction.HAND_OVER:
                self._is_handed_over = True
                self._stop_billing()
                await self._undo(self._lease.hand_over)
                self._say("model-handed-over", f"{self._arn.name} is left to the others that hold a lease on it")
            case ModelAction.FAIL:
                pass
        return None

    async def _look(self, *, ending: bool) -> ModelEvent:
        """Describe the model after a pause that grows; what it means."""
        await anyio.sleep(_LOOKS_S[min(self._looks, len(_LOOKS_S) - 1)])
        self._looks += 1
        state = self._life.state
        now = anyio.current_time()
        is_starting = state in {ModelState.UNKNOWN, ModelState.STARTING} or (
            not ending and state is not ModelState.STOPPING
        )
        limit_s = START_TIMEOUT_S if is_starting else _STOP_TRIES_FOR_S
        try:
            model = await describe(self._client, self._arn)
        except Exception as error:
            if not ending and not isinstance(error, UnreachableError):
                raise
            self._why = error if isinstance(error, BatchclError) else StoppedError(str(error))
            since = self._entered_at if self._answered_at is None else self._answered_at
            return ModelEvent.TIME_UP if now - since > _SILENCE_S else ModelEvent.UNSEEN
        self._answered_at = now
        self._note(model)
        event = seen(self._life, model.status, now=now, ending=ending)
        after, actions = step(self._life, event)
        if ModelAction.FAIL in actions:
            reason = f": {model.message}" if model.message else ""
            self._why = ModelError(f"{model.name} is {model.status} and will not become RUNNING{reason}")
            if event is ModelEvent.TIME_UP:
                self._why = UnreachableError(
                    f"whether {model.name} was started can't be told: no start was answered, and it is {model.status}"
                )
        elif after.state is state and actions and now - self._entered_at > limit_s:
            self._why = StoppedError(f"{model.name} was still {model.status} after {limit_s / 60:.0f} minutes")
            return ModelEvent.TIME_UP
        return event

    async def _claim(self) -> ModelEvent:
        """Not shielded: nothing is started before the tag is written, and the end removes it."""
        self._claiming = True
        try:
            if self._on_owning is not None:
                await self._on_owning()
            await self._lease.claim()
        except RefusedError as error:
            self._why = error
            return ModelEvent.CLAIM_FAILED
        else:
            self._in_use = 0 if self._life.state is ModelState.RUNNING else self._in_use
            return ModelEvent.CLAIM_WRITTEN
        finally:
            self._claiming = False
            self._inherits = False

    async def _start(self) -> ModelEvent:
        """Send the start once, to its answer or its loss, whatever is cancelled meanwhile."""
        assert self._units is not None
        now = anyio.current_time()
        if self._throttled_since is not None:
            if now - self._throttled_since > _THROTTLED_FOR_S:
                return ModelEvent.TIME_UP
            await anyio.sleep(self._rng.uniform(0.5, 1.0) * 8.0)
        if self._lease.has_lapsed and await self._claim() is ModelEvent.CLAIM_FAILED:  # this process was suspended
            return ModelEvent.START_REFUSED
        before, self._life = self._life, self._life.sent(anyio.current_time())
        try:
            with anyio.CancelScope(shield=True):
                await start(self._client, self._arn, self._units)
        except Exception as error:  # noqa: BLE001 - whatever it is: it decides whether a start may have taken effect
            event = _answered(error)
            self._why = error if isinstance(error, BatchclError) else UnreachableError(f"starting failed: {error}")
        except BaseException:  # the process is ending in the middle of the call
            self._step(ModelEvent.START_UNANSWERED)
            raise
        else:
            event = ModelEvent.START_ACCEPTED
        if event is not ModelEvent.START_THROTTLED:
            self._throttled_since = None
        else:
            self._life = before
            self._throttled_since = now if self._throttled_since is None else self._throttled_since
        if event is ModelEvent.START_IN_USE and before.state is ModelState.CLAIMED:
            self._in_use += 1
            return event if self._in_use <= _MAX_IN_USE else ModelEvent.START_REFUSED
        return event

    async def _share(self) -> ModelEvent:
        try:
            return await self._lease.share()
        except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
            text = f"whether the model is leased can't be told, so it may be stopped: {error}"
            self._say("lease-unknown", text)
            return ModelEvent.SHARE_NONE

    async def _leave(self) -> ModelEvent:
        """Bounded: tags that can't be read or written keep no model from being stopped."""
        with anyio.move_on_after(_LEAVE_S):
            while True:
                try:
                    event = await self._lease.leave()
                except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                    self._say("lease-unknown", f"the tags of {self._arn.name} can't be read: {error}")
                    await anyio.sleep(1.0)
                    continue
                if event is ModelEvent.TAG_GONE:
                    self._say_not_ours()
                return event
        if self._life.state is ModelState.SHARED:
            return ModelEvent.OTHERS
        return ModelEvent.TIME_UP if self._lease.has_lapsed else ModelEvent.ALONE

    async def _stop(self) -> ModelEvent:
        if self._lease.has_lapsed:
            return ModelEvent.LAPSED
        try:
            await stop(self._client, self._arn)
        except Exception as error:  # noqa: BLE001 - a description shows what came of it
            self._why = error if isinstance(error, BatchclError) else StoppedError(str(error))
            self._say("model-stop-failed", f"{error}; trying again")
        return ModelEvent.STOP_SENT

    async def _undo(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Undo something within ten seconds, even when the run is being cancelled."""
        why = "no response in time"
        with anyio.move_on_after(_RELEASE_S, shield=True):
            try:
                await undo()
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                why = str(error)
            else:
                return
        self._say("lease-left", f"the lease of {self._arn.name} stays until `batchcl model reap`: {why}")

    def _failure(self) -> BatchclError:
        return self._why or StoppedError(f"the model {self._arn.name} was not started")

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Stop the model even when the run is being cancelled; say so loudly if that fails."""
        with (
            self._stopper.bounded(MODEL, shield=True) as scope,
            self._stopper.calling_in_hurry(lambda: _shorten(scope, _HURRIED_STOP_S)),
        ):
            await self._settle()
        if self._life.is_ours:  # cut short
            self._step(ModelEvent.TIME_UP)
        self._emit()
        if (self._life.state is ModelState.LEFT and not self._is_handed_over) or self._inherits:
            raise StoppedError(self._left())

    async def _settle(self) -> None:
        if self._inherits and self._life.state is ModelState.NOT_OURS:
            await self._take_over()
        if self._keep and (self._life.is_ours or self._life.state is ModelState.SHARED):
            if self._life.is_ours:
                self._say("model-kept", f"{self._arn.name} stays RUNNING, as --keep-model says")
            self._stop_billing()
            await self._drive(ModelEvent.KEEP, ending=True)
            return
        if self._life.state is ModelState.NOT_OURS:
            await self._drive(ModelEvent.END, ending=True)
        if self._life.state in {ModelState.UNKNOWN, ModelState.STARTING}:
            text = f"{self._arn.name} is still STARTING and can't be stopped before it runs: waiting"
            self._say("model-starting", text)
            self._emit()
        while self._life.is_ours or self._life.state is ModelState.SHARED:
            await self._drive(ModelEvent.END, ending=True)
        if self._life.state is ModelState.STOPPED:
            self._stop_billing()
            text = f"{self._arn.name} is stopped" + ("" if self._free else "; its billing has ended")
            self._say("model-stopped", text)

    async def _take_over(self) -> None:
        """See what became of the model that an earlier session may have left, as this one has not looked yet."""
        began_at = anyio.current_time()
        while self._inherits:
            try:
                model = await describe(self._client, self._arn)
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                if anyio.current_time() - began_at > _STOP_TRIES_FOR_S:
                    return
                self._say("model-stop-failed", f"{error}; trying again")
                self._emit()
                await anyio.sleep(8.0)
                continue
            event = await self._first_event(model, ending=True)
            self._inherits = False
            if event in {ModelEvent.ADOPT_STARTING, ModelEvent.ADOPT_RUNNING}:
                await self._drive(event, ending=True, looks_in=frozenset())
            elif model.status not in UP:
                await self._undo(self._lease.drop_own)

    def _left(self) -> str:
        """Where the model is, and who stops it."""
        name = self._arn.name
        if self._status == "STARTING":
            what = f"the model {name} is still STARTING, which can't be stopped, and will be RUNNING"
        else:
            what = f"the model {name} could not be stopped and may be RUNNING"
        cost = "" if self._free else f", which costs ${DOLLARS_PER_UNIT_HOUR:.2f} per unit and hour"
        reason = f" ({self._why})" if self._why is not None else ""
        by = ["the same command stops it"]
        if self._lease.is_enabled:
            until = self._lease.until
            when = "" if until is None else f" after {until:%Y-%m-%dT%H:%M:%SZ}"
            by.append(f"`batchcl model reap` does{when}")
        if self._lease.has_schedule:
            by.append("EventBridge Scheduler does after the deadline")
        return f"{what}{cost}{reason}; {', or '.join(by)}; to stop it now: `batchcl model stop {self._arn}`"

    # --- notices and billing ----------------------------------------------------------------------------------------

    def _say(self, kind: str, text: str) -> None:
        level: Literal["info", "warning"] = "warning" if kind in _WARNINGS else "info"
        self._notices.append(Notice(kind, text, level=level))

    def _emit(self) -> None:
        notices, self._notices = self._notices, []
        for notice in notices:
            self._observer.notice(notice)

    def _say_not_ours(self) -> None:
        self._stop_billing()
        text = (
            f"the lease of {self._arn.name} had ended and its tag is gone, so the model that this run started was "
            "stopped; whoever runs it now is left alone"
        )
        self._say("model-not-ours", text)

    def _say_not_renewed(self, error: Exception) -> None:
        until = "" if self._lease.until is None else f" at {self._lease.until:%Y-%m-%dT%H:%M:%SZ}"
        text = (
            f"the lease of {self._arn.name} could not be renewed and ends{until}, after which `batchcl model reap` "
            f"stops the model: {error}; trying again"
        )
        self._say("lease-not-renewed", text)

    def _note_units(self, model: Model) -> None:
        if model.status in UP and model.min_units is not None:
            self._running_units = Units(model.min_units, model.max_units)

    def _note(self, model: Model) -> None:
        self._note_units(model)
        if model.status == self._status:
            return
        self._status = model.status
        self._notices.append(Notice("model", f"{model.name} is {model.status}", {"status": model.status}))

    def _note_now(self, model: Model) -> None:
        self._note(model)
        self._emit()

    def _start_billing(self) -> None:
        if self._life.is_ours and self._running_since is None:
            self._running_since = anyio.current_time()

    def _stop_billing(self) -> None:
        if self._running_since is not None:
            self._billed_s += anyio.current_time() - self._running_since
            self._running_since = None


def _answered(error: Exception) -> ModelEvent:
    """What the error of a start means: a definite answer, or one that leaves open whether it took effect."""
    code, status = cause_code(error), cause_status(error)
    is_definite = _CLIENT_ERROR <= status < _SERVER_ERROR and code not in _TIMEOUTS and not code.isdigit() and code
    if is_definite and (code in _THROTTLING or was_too_late(error)):
        return ModelEvent.START_THROTTLED
    if is_definite and code == "ResourceInUseException":
        return ModelEvent.START_IN_USE
    if is_definite or isinstance(error, UsageError):
        return ModelEvent.START_REFUSED
    if isinstance(error, CredentialsError) and not code:
        return ModelEvent.START_REFUSED  # there are none, so nothing was sent
    return ModelEvent.START_UNANSWERED


def _shorten(scope: anyio.CancelScope, seconds: float) -> None:
    scope.deadline = min(scope.deadline, anyio.current_time() + seconds)
