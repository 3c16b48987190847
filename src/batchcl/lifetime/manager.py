"""The model manager: starts a run's model, restarts it if it stops, and stops it at the end of the run.

`state_machine` decides; this module executes an action, and its result is the next event. Notices are sent after the
actions; exceptions of observers are dropped.

Who stops the model? Three properties, each of which implies the next:

- `ModelLife.is_ours`: this session may have started the model, or has adopted it.
- `ModelManager.stops`: this session has to stop it, or may have to: it is writing the lease before a start, or has not
  read yet whether an earlier session left the model.
- `ModelManager.owned`: a session of this run has to stop it, if not this one, then the next. The heartbeat of the run
  lease contains it, so that the next session learns of it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Literal

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.errors import cause_code, cause_status, was_refused_for_clock
from batchcl.aws.models import START_TIMEOUT_S, STARTABLE, UP, Model, describe, start, stop, wait
from batchcl.errors import (
    BatchclError,
    CredentialsError,
    ErrorCode,
    ModelError,
    ModelGoneError,
    ModelNotReadyError,
    RefusedError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from batchcl.events import ModelUse, Notice, Observer, SafeObserver
from batchcl.lifetime.meter import BilledUse, Meter, elapsed
from batchcl.lifetime.model_lease import ModelLease
from batchcl.lifetime.state_machine import ModelAction, ModelEvent, ModelLife, ModelState, event_for_status, step
from batchcl.prices import unit_hour_usd
from batchcl.quantities import AutoUnits, Units
from batchcl.stop_signal import MODEL, StopSignal

__all__ = ["ModelManager"]

_STOP_TIMEOUT_S: Final = 300.0
_HURRIED_STOP_TIMEOUT_S: Final = 10.0
_UNREACHABLE_TIMEOUT_S: Final = 300.0
_THROTTLED_TIMEOUT_S: Final = 300.0
_RELEASE_TIMEOUT_S: Final = 10.0
_LEAVE_TIMEOUT_S: Final = 5.0
_MAX_PAUSES: Final = 12
"""Pauses of the engine in a row, without a scored image between them."""

_MAX_PAUSE_S: Final = 60.0
_MAX_RESTARTS: Final = 3
_MAX_IN_USE: Final = 3
"""Responses ResourceInUseException to starts of a model that is described as down, until the start is given up."""

_TAG_ATTEMPTS: Final = 3
_MAY_START: Final = frozenset({ModelState.UNKNOWN, ModelState.STARTING, ModelState.LEFT})
_DESCRIBE_PAUSES_S: Final = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Pauses between two descriptions of the model; the last one repeats. A RUNNING model is billed while it waits."""

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
        units: inference units to start the model with if it isn't running; None to never start it. `AutoUnits` are
            decided by `choose_units` before the start.
        keep: leave the model running at the end (`--keep-model`).
        is_free: the model costs nothing, because it is emulated.
        lease: the run's lease in the model's tags, by which later sessions and the reaper recognize the model; None for
            no lease.
        observer: receives a notice for every change of the model's status.
        stop_signal: interrupts waits when the run is asked to end.
        rng: for jitter.
        utcnow: current time, for the months of the bill.

    Attributes:
        meter: what the run pays for; never opened if the model is free or was not started by the run.
        start_s: seconds from the last accepted start until the model was RUNNING; None without a start.
    """

    def __init__(
        self,
        client: Any,
        arn: ModelArn,
        *,
        units: Units | AutoUnits | None,
        keep: bool,
        is_free: bool = False,
        lease: ModelLease | None = None,
        observer: Observer,
        stop_signal: StopSignal,
        rng: random.Random | None = None,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.meter = Meter(clock=elapsed, utcnow=utcnow)
        self.start_s: float | None = None
        self._utcnow = utcnow
        self._client = client
        self._arn = arn
        self._units = units
        self._keep = keep
        self.is_free = is_free
        self._lease = lease or ModelLease(client, arn, length_s=None)
        self._observer = SafeObserver(observer)
        self._stop_signal = stop_signal
        self._rng = rng or random.Random()
        self._life = ModelLife()
        self._entered_at: float | None = None  # when the state machine entered its state
        self._describe_count = 0
        self._described_at: float | None = None
        self._status = ""  # for which a notice was sent
        self._described = ""  # the last status
        self._running_units: Units | None = None
        self._last_error: BatchclError | None = None
        self._notices: list[Notice] = []
        self._may_adopt = False  # an earlier session may have left the model; its tag has not been read yet
        self._is_claiming = False  # the lease is being written
        self._is_left_to_next = False  # an earlier session has left the model, and this one does not stop models
        self._is_handed_over = False  # another run, or another session of this run, will stop the model
        self._before_start: Callable[[], Awaitable[None]] | None = None
        self._start_accepted_at: float | None = None
        self._not_running_at: float | None = None  # when the model was last described as not RUNNING
        self._stop_accepted_at: float | None = None
        self._unattended_since: dt.datetime | None = None  # until when earlier sessions have counted the model's cost
        self._billed_from: dt.datetime | None = None
        self._is_counted_elsewhere = False  # another session of this run counts the model's cost
        self._restarts = 0
        self._in_use_count = 0
        self._throttled_since: float | None = None

    @property
    def state(self) -> ModelState:
        """The state of the state machine."""
        return self._life.state

    @property
    def units(self) -> Units | None:
        """The inference units that the model runs with or would be started with; None if unknown."""
        return self._running_units or (None if isinstance(self._units, AutoUnits) else self._units)

    @property
    def undecided(self) -> AutoUnits | None:
        """The range of units of which `choose_units` must choose before a start; None if nothing is to be chosen."""
        is_up = self._described in UP
        return self._units if isinstance(self._units, AutoUnits) and not is_up else None

    def choose_units(self, units: Units) -> None:
        """Decide with how many units the model is started."""
        self._units = units

    @property
    def owned(self) -> bool:
        """Whether this session or the next one of this run has to stop the model."""
        is_left = self._life.state is ModelState.LEFT and not self._is_handed_over
        return self.stops or self._is_left_to_next or is_left

    @property
    def stops(self) -> bool:
        """Whether this session is responsible for stopping the model (or keeping it, with `--keep-model`)."""
        return self._life.is_ours or self._may_adopt or self._is_claiming

    @property
    def billed_until(self) -> dt.datetime | None:
        """Until when this session and earlier ones have counted the cost of a model that may be RUNNING, or become so.

        None if no session of this run has to pay for it.
        """
        if self.is_free or self._is_counted_elsewhere:
            return None
        may_start = self._start_accepted_at is not None and self._life.state in _MAY_START
        return self._utcnow() if self.meter.is_open or may_start else self._unattended_since

    @property
    def billed_from(self) -> dt.datetime | None:
        """From when on this session counts the cost of a model that an earlier one has counted before."""
        return self._billed_from

    async def check(self) -> None:
        """Check before the first call that the model is running or can be started.

        If describing models is not permitted, only a notice is sent: scoring with a running model still works.

        Raises:
            ModelError: the model doesn't exist, or isn't running and `units` is None or it can't be started.
            CredentialsError: AWS refuses the credentials.
        """
        try:
            model = await describe(self._client, self._arn)
        except CredentialsError as error:
            if self._units is not None or not error.is_access_denied:
                raise
            text = f"the model's status is unknown, scoring continues: {error}"
            self._observer.notice(Notice("model-unknown", text, level="warning"))
            return
        self._record_description(model)
        may_be_started = model.status in STARTABLE | {"STOPPING"}
        if model.status in UP or (may_be_started and self._units is not None):
            return
        hint = (
            f"start it with --start-model 1, or `batchcl model start {self._arn}`"
            if may_be_started
            else "it can't be started in this status"
        )
        raise ModelError(
            f"the model {self._arn.name} is {model.status}, not RUNNING; {hint}", code=ErrorCode.MODEL_NOT_RUNNING
        )

    def remember(self, before_start: Callable[[], Awaitable[None]]) -> None:
        """Await `before_start` before the model is started, to record the start for the next session."""
        self._before_start = before_start

    def adopt(self, *, unattended_since: dt.datetime | None = None) -> None:
        """Let this session adopt, and so stop, a model that an earlier session of this run may have left.

        The model's tag decides when the model is described next. `unattended_since` is the earlier session's
        `billed_until`; the time from then on belongs to this session's bill.

        A session that doesn't start models (`units` is None) doesn't stop them; it leaves the model to a later session.
        """
        self._unattended_since = unattended_since
        if self._units is None:
            self._is_left_to_next = True
            text = (
                f"an earlier session of this run started {self._arn.name} and could not stop it, and this session will "
                f"not stop it either; add --start-model, or stop it with `batchcl model stop {self._arn}`"
            )
            self._observer.notice(Notice("model-left", text, level="warning"))
        else:
            self._may_adopt = True
            self._billed_from = unattended_since

    def hand_over(self) -> None:
        """Leave the model and its tag to another session of this run, which is using it and will stop it."""
        self._step(ModelEvent.TAKEN_OVER)
        self._is_handed_over = True
        self._may_adopt = False
        self._stop_billing()
        self._queue_notice("model-handed-over", f"{self._arn.name} is left to the process that has taken over this run")
        self._send_notices()

    def count_until(self, time: dt.datetime) -> None:
        """Leave the model's cost from `time` on to another session of this run, which counts it."""
        self.meter.close(ago_s=(self._utcnow() - time).total_seconds())
        self._is_counted_elsewhere = True

    def dollars(self) -> float | None:
        """Cost of the model so far with its minimum number of units; None if this run doesn't pay for it."""
        if self.is_free or not (self._life.is_ours or self.meter.was_opened):
            return None
        return self.meter.read().dollars

    def use(self) -> ModelUse:
        """The model as last described, and its cost."""
        units = self.units
        return ModelUse(
            status=self._described or None, units=None if units is None else units.minimum, dollars=self.dollars()
        )

    async def ensure_running(self) -> None:
        """Start the model if necessary, and return when it is RUNNING. Only inside `stopping`.

        Raises:
            RefusedError: the model can't be started.
            StoppedError: the run was asked to end in the meantime.
        """
        with self._stop_signal.interruptible():
            await self._ensure_running()

    async def start(self) -> None:
        """Start the model and return when the service has accepted the start; after a lost response, when it is up.

        Raises:
            RefusedError: it was not started, or that is unknown; see `state`.
        """
        await self._drive(ModelEvent.STARTABLE, describe_in={ModelState.UNKNOWN})
        if self._life.state not in {ModelState.STARTING, ModelState.RUNNING}:
            raise self._failure()

    @asynccontextmanager
    async def stopping(self) -> AsyncIterator[None]:
        """Stop the model at the end of the block if the run may have started it, also after errors and cancellation.

        Raises:
            StoppedError: the model could not be stopped.
        """
        self._stop_signal.on_abandoned = lambda: self._left_message() if self.owned else ""
        try:
            yield
        finally:
            if not self._is_handed_over:
                await self._end()

    async def keep_lease_renewed(self) -> None:
        """Renew the lease until cancelled. A failed renewal never ends the run."""
        failed = False
        while self._lease.is_enabled:
            await anyio.sleep(self._lease.next_renewal_s(failed=failed))
            try:
                is_kept = await self._lease.renew()
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                if not failed:
                    self._queue_not_renewed(error)
                failed = True
            else:
                if failed:
                    self._queue_notice("lease-renewed", f"the lease of {self._arn.name} is renewed")
                failed = False
                if not is_kept:
                    self._queue_not_ours()
                    await self._drive(ModelEvent.TAG_GONE)
            self._send_notices()

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        """Wait for the model, restart it if this session has started or adopted it, or raise `ModelGoneError`."""
        if pauses > _MAX_PAUSES:
            raise ModelGoneError(f"the model {self._arn.name} did not recover after {_MAX_PAUSES} pauses: {error}")
        try:
            model = await describe(self._client, self._arn)
            if model.status == "RUNNING":
                await self._back_off(pauses)
                return
            self._record_status(model)
            self._send_notices()
            if model.status != "STARTING":
                self._count_restart(model)
            await self._ensure_running()
        except UnreachableError:
            await self._back_off(pauses)
        except RefusedError as refusal:
            raise ModelGoneError(f"waiting for the model {self._arn.name} failed: {refusal}") from refusal

    async def _back_off(self, pauses: int) -> None:
        await anyio.sleep(self._rng.uniform(0.5, 1.0) * min(_MAX_PAUSE_S, 2.0 ** (pauses - 1)))

    def _count_restart(self, model: Model) -> None:
        """Count a restart. Raises `ModelGoneError` if this run didn't start the model, or after too many restarts."""
        if not self._life.is_ours:
            raise ModelGoneError(
                f"the model {model.name} is {model.status} and was not started by this run, so it is not restarted; "
                "start it first"
            )
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise ModelGoneError(
                f"the model {model.name} was stopped again after {_MAX_RESTARTS} restarts; find out what stops it"
            )

    async def _ensure_running(self) -> None:
        try:
            model = await describe(self._client, self._arn)
        except CredentialsError as error:
            if self._units is not None or not error.is_access_denied:
                raise
            return  # calls may be permitted nevertheless; `check` has sent a notice
        self._record_status(model)
        event = await self._first_event(model, ending=False)
        if self._units is not None or model.status in UP:
            await self._drive(event)
        if self._life.state in {ModelState.NOT_OURS, ModelState.SHARED} and self._status != "RUNNING":
            await wait(self._client, self._arn, until="RUNNING", passing={"STARTING"}, on_state=self._record_status_now)

    async def _first_event(self, model: Model, *, ending: bool) -> ModelEvent:
        """The event for the model's status; ADOPT_… if the model is up because an earlier session has left it."""
        event = event_for_status(self._life, model.status, now=anyio.current_time(), ending=ending)
        self._life = replace(self._life, was_failed=model.status == "FAILED")
        if self._life.state is not ModelState.NOT_OURS or self._units is None or model.status not in UP:
            return event
        if await self._is_adoptable():
            return ModelEvent.ADOPT_STARTING if model.status == "STARTING" else ModelEvent.ADOPT_RUNNING
        self._may_adopt = False
        self._unattended_since = None
        return event

    async def _is_adoptable(self) -> bool:
        """Whether an earlier session of this run has left the model: by its tag, or with `--lease none` by `adopt`."""
        if not self._lease.is_enabled:
            return self._may_adopt
        for attempts_left in reversed(range(_TAG_ATTEMPTS)):
            try:
                return await self._lease.find_own()
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                if attempts_left:
                    await anyio.sleep(1.0)
                else:
                    text = f"{self._arn.name} will not be stopped, because reading its tags failed: {error}"
                    self._queue_notice("lease-unknown", text)
        return False

    # --- the driver -------------------------------------------------------------------------------------------------

    def _step(self, event: ModelEvent) -> tuple[ModelAction, ...]:
        before = self._life.state
        self._life, actions = step(self._life, event)
        if self._life.state is not before:
            self._entered_at = anyio.current_time()
            self._describe_count = 0
            self._described_at = None
        if event is ModelEvent.INHERITED and before is ModelState.SHARED:
            self._start_billing(ago_s=self._lease.inherited_s, use=BilledUse.SCORING)
        elif event in {ModelEvent.SEEN_RUNNING, ModelEvent.ADOPT_RUNNING}:
            self._start_billing()
        return actions

    async def _drive(
        self, event: ModelEvent, *, ending: bool = False, describe_in: Collection[ModelState] = frozenset(ModelState)
    ) -> None:
        """Process `event` and those that result from its actions, until an event requires no action.

        In states that are not in `describe_in`, return when the next action would be to describe the model.
        """
        current: ModelEvent | None = event
        if self._entered_at is None:
            self._entered_at = anyio.current_time()
        try:
            while current is not None:
                actions, current = self._step(current), None
                for action in actions:
                    if action is ModelAction.DESCRIBE and self._life.state not in describe_in:
                        return
                    if action is ModelAction.FAIL and not ending:
                        raise self._failure()
                    current = await self._perform(action, ending=ending)
                self._send_notices()
        finally:
            self._send_notices()

    async def _perform(self, action: ModelAction, *, ending: bool) -> ModelEvent | None:
        match action:
            case ModelAction.DESCRIBE:
                return await self._describe(ending=ending)
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
                await self._clean_up(self._lease.release)
            case ModelAction.HAND_OVER:
                self._is_handed_over = True
                self._stop_billing()
                await self._clean_up(self._lease.hand_over)
                self._queue_notice(
                    "model-handed-over", f"{self._arn.name} is left to the other holders of a lease on it"
                )
            case ModelAction.FAIL:
                pass
        return None

    async def _describe(self, *, ending: bool) -> ModelEvent:
        """Describe the model after an increasing pause; returns the event for its status."""
        await anyio.sleep(_DESCRIBE_PAUSES_S[min(self._describe_count, len(_DESCRIBE_PAUSES_S) - 1)])
        self._describe_count += 1
        state = self._life.state
        now = anyio.current_time()
        entered_at = now if self._entered_at is None else self._entered_at
        is_starting = state in {ModelState.UNKNOWN, ModelState.STARTING} or (
            not ending and state is not ModelState.STOPPING
        )
        limit_s = START_TIMEOUT_S if is_starting else _STOP_TIMEOUT_S
        try:
            model = await describe(self._client, self._arn)
        except Exception as error:
            if not ending and not isinstance(error, UnreachableError):
                raise
            self._last_error = error if isinstance(error, BatchclError) else StoppedError(str(error))
            since = entered_at if self._described_at is None else self._described_at
            return ModelEvent.TIMED_OUT if now - since > _UNREACHABLE_TIMEOUT_S else ModelEvent.NOT_DESCRIBED
        self._described_at = now
        self._record_status(model)
        event = event_for_status(self._life, model.status, now=now, ending=ending)
        after, actions = step(self._life, event)  # what the event will do, for the error that it may raise
        if ModelAction.FAIL in actions:
            reason = f": {model.message}" if model.message else ""
            self._last_error = ModelError(
                f"{model.name} is {model.status} and will not become RUNNING{reason}", code=ErrorCode.RESOURCE_FAILED
            )
            if event is ModelEvent.TIMED_OUT:
                self._last_error = UnreachableError(
                    f"it is unknown whether {model.name} was started: no start got a response, and it is {model.status}"
                )
        elif after.state is state and actions and now - entered_at > limit_s:
            self._last_error = StoppedError(
                f"{model.name} was still {model.status} after {limit_s / 60:.0f} minutes", code=ErrorCode.TIMED_OUT
            )
            return ModelEvent.TIMED_OUT
        return event

    async def _claim(self) -> ModelEvent:
        """Write the own tag. May be cancelled: nothing is started yet, and the end of the run removes the tag."""
        self._is_claiming = True
        try:
            if self._before_start is not None:
                await self._before_start()
            await self._lease.claim()
        except RefusedError as error:
            self._last_error = error
            return ModelEvent.CLAIM_FAILED
        else:
            self._in_use_count = 0 if self._life.state is ModelState.RUNNING else self._in_use_count
            return ModelEvent.CLAIM_WRITTEN
        finally:
            self._is_claiming = False
            self._may_adopt = False

    async def _start(self) -> ModelEvent:
        """Send the start once. Shielded from cancellation until the response arrives or is lost."""
        assert isinstance(self._units, Units)
        now = anyio.current_time()
        if self._throttled_since is not None:
            if now - self._throttled_since > _THROTTLED_TIMEOUT_S:
                return ModelEvent.TIMED_OUT
            await anyio.sleep(self._rng.uniform(0.5, 1.0) * 8.0)
        # the lease may have expired if this process was suspended
        if self._lease.has_lapsed and await self._claim() is ModelEvent.CLAIM_FAILED:
            return ModelEvent.START_REFUSED
        before, self._life = self._life, self._life.with_start_sent(anyio.current_time())
        try:
            with anyio.CancelScope(shield=True):
                await start(self._client, self._arn, self._units)
        except Exception as error:  # noqa: BLE001 - any error: its kind shows whether the start may have taken effect
            event = _event_of_start_error(error)
            self._last_error = (
                error if isinstance(error, BatchclError) else UnreachableError(f"starting failed: {error}")
            )
        except BaseException:  # the process ends during the call
            self._step(ModelEvent.START_UNANSWERED)
            raise
        else:
            event = ModelEvent.START_ACCEPTED
        if event is not ModelEvent.START_THROTTLED:
            self._throttled_since = None
            self._start_accepted_at = now
        else:
            self._life = before  # a throttled start is not counted as sent
            self._throttled_since = now if self._throttled_since is None else self._throttled_since
        if event is ModelEvent.START_IN_USE and before.state is ModelState.CLAIMED:
            self._in_use_count += 1
            return event if self._in_use_count <= _MAX_IN_USE else ModelEvent.START_REFUSED
        return event

    async def _share(self) -> ModelEvent:
        try:
            return await self._lease.share()
        except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
            text = (
                f"the leases of {self._arn.name} are unknown, so another run may stop it while this one is using it: "
                f"{error}"
            )
            self._queue_notice("lease-unknown", text)
            return ModelEvent.NO_LEASE

    async def _leave(self) -> ModelEvent:
        """Change the tag to `leaving` and read all tags; with a time limit, so that failures don't prevent the stop."""
        with anyio.move_on_after(_LEAVE_TIMEOUT_S):
            while True:
                try:
                    event = await self._lease.leave()
                except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                    self._queue_notice("lease-unknown", f"reading the tags of {self._arn.name} failed: {error}")
                    await anyio.sleep(1.0)
                    continue
                if event is ModelEvent.TAG_GONE:
                    self._queue_not_ours()
                return event
        if self._life.state is ModelState.SHARED:
            return ModelEvent.OTHER_LEASES
        return ModelEvent.TIMED_OUT if self._lease.has_lapsed else ModelEvent.LAST_LEASE

    async def _stop(self) -> ModelEvent:
        if self._lease.has_lapsed:
            return ModelEvent.LAPSED
        try:
            await stop(self._client, self._arn)
            self._stop_accepted_at = elapsed()
        except Exception as error:  # noqa: BLE001 - the next description shows the result
            self._last_error = error if isinstance(error, BatchclError) else StoppedError(str(error))
            self._queue_notice("model-stop-failed", f"{error}; trying again")
        return ModelEvent.STOP_SENT

    async def _clean_up(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` for at most ten seconds, shielded from cancellation; failures are reported by a notice."""
        reason = "no response in time"
        with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True):
            try:
                await action()
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                reason = str(error)
            else:
                return
        text = f"the lease of {self._arn.name} could not be removed: {reason}; `batchcl model reap` removes it"
        self._queue_notice("lease-left", text)

    def _failure(self) -> BatchclError:
        return self._last_error or StoppedError(f"the model {self._arn.name} was not started")

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Stop the model if it is this run's, shielded from cancellation. Raises `StoppedError` if that fails."""
        with (
            self._stop_signal.bounded(MODEL, shield=True) as scope,
            self._stop_signal.calling_on_hurry(lambda: _shorten(scope, _HURRIED_STOP_TIMEOUT_S)),
        ):
            await self._finish()
        if self._life.is_ours:  # the time limit has cancelled `_finish`
            self._step(ModelEvent.TIMED_OUT)
        self._send_notices()
        if (self._life.state is ModelState.LEFT and not self._is_handed_over) or self._may_adopt:
            raise StoppedError(self._left_message(), code=ErrorCode.MODEL_LEFT_RUNNING)

    async def _finish(self) -> None:
        if self._may_adopt and self._life.state is ModelState.NOT_OURS:
            await self._adopt_left_model()
        if self._keep and (self._life.is_ours or self._life.state is ModelState.SHARED):
            if self._life.is_ours:
                self._queue_notice("model-kept", f"{self._arn.name} stays RUNNING because of --keep-model")
            self._stop_billing()
            await self._drive(ModelEvent.KEEP, ending=True)
            return
        if self._life.state is ModelState.NOT_OURS:
            await self._drive(ModelEvent.END, ending=True)
        if self._life.state in {ModelState.UNKNOWN, ModelState.STARTING}:
            text = f"{self._arn.name} is still STARTING; waiting, because it can't be stopped before it is RUNNING"
            self._queue_notice("model-starting", text)
            self._send_notices()
        while self._life.is_ours or self._life.state is ModelState.SHARED:
            await self._drive(ModelEvent.END, ending=True)
        if self._life.state is ModelState.STOPPED:
            text = f"{self._arn.name} is stopped" + ("" if self.is_free else "; its billing has ended")
            self._queue_notice("model-stopped", text)

    async def _adopt_left_model(self) -> None:
        """Adopt the model that an earlier session may have left, if this session hasn't described the model yet."""
        began_at = anyio.current_time()
        while self._may_adopt:
            try:
                model = await describe(self._client, self._arn)
            except Exception as error:  # noqa: BLE001 - providers of credentials raise anything
                if anyio.current_time() - began_at > _STOP_TIMEOUT_S:
                    return
                self._queue_notice("model-stop-failed", f"{error}; trying again")
                self._send_notices()
                await anyio.sleep(8.0)
                continue
            event = await self._first_event(model, ending=True)
            self._may_adopt = False
            if event in {ModelEvent.ADOPT_STARTING, ModelEvent.ADOPT_RUNNING}:
                await self._drive(event, ending=True, describe_in=frozenset())
            elif model.status not in UP:
                await self._clean_up(self._lease.drop_own)

    def _left_message(self) -> str:
        """Error text for a model that may still be running: its status, its cost, and what will stop it."""
        name = self._arn.name
        if self._status == "STARTING":
            what = f"the model {name} is still STARTING, so it could not be stopped and will be RUNNING"
        else:
            what = f"the model {name} could not be stopped and may be RUNNING"
        cost = "" if self.is_free else f", which costs ${unit_hour_usd():.2f} per unit and hour"
        reason = f" ({self._last_error})" if self._last_error is not None else ""
        stopped_by = ["the same command"]
        if self._lease.is_enabled:
            until = self._lease.until
            when = "" if until is None else f" after {until:%Y-%m-%dT%H:%M:%SZ}"
            stopped_by.append(f"`batchcl model reap`{when}")
        if self._lease.has_schedule:
            stopped_by.append("EventBridge Scheduler after the deadline")
        return (
            f"{what}{cost}{reason}; it is stopped by {' or by '.join(stopped_by)}; stop it now with "
            f"`batchcl model stop {self._arn}`"
        )

    # --- notices and billing ----------------------------------------------------------------------------------------

    def _queue_notice(self, kind: str, text: str) -> None:
        level: Literal["info", "warning"] = "warning" if kind in _WARNINGS else "info"
        self._notices.append(Notice(kind, text, level=level))

    def _send_notices(self) -> None:
        notices, self._notices = self._notices, []
        for notice in notices:
            self._observer.notice(notice)

    def _queue_not_ours(self) -> None:
        self.meter.close(ago_s=self._lease.lapsed_s)  # at least until then it was not stopped for the expired lease
        text = (
            f"the lease of {self._arn.name} expired and its tag was removed, so the model that this run started was "
            "stopped; if it is running now, others started it and this run will not stop it"
        )
        self._queue_notice("model-not-ours", text)

    def _queue_not_renewed(self, error: Exception) -> None:
        until = "" if self._lease.until is None else f" at {self._lease.until:%Y-%m-%dT%H:%M:%SZ}"
        text = (
            f"renewing the lease of {self._arn.name} failed: {error}; trying again; if it expires{until}, "
            "`batchcl model reap` stops the model"
        )
        self._queue_notice("lease-not-renewed", text)

    def _record_description(self, model: Model) -> None:
        self._described = model.status
        if model.status != "RUNNING":
            self._not_running_at = anyio.current_time()
            self._unattended_since = None
            self._stop_billing()
        if model.status in UP and model.min_units is not None:
            self._running_units = Units(model.min_units, model.max_units)

    def _record_status(self, model: Model) -> None:
        self._record_description(model)
        if model.status == self._status:
            return
        self._status = model.status
        self._notices.append(Notice("model", f"{model.name} is {model.status}", {"status": model.status}))

    def _record_status_now(self, model: Model) -> None:
        self._record_status(model)
        self._send_notices()

    def _start_billing(self, *, ago_s: float = 0.0, use: BilledUse = BilledUse.START) -> None:
        """Open the meter of a RUNNING model, unless it is open or the run doesn't pay for the model.

        If the run has started the model, it became RUNNING between its last two descriptions: half-way, on average. If
        an earlier session has left it, nobody has worked with it since that session counted it last.

        Args:
            ago_s: seconds for which the model, left by another run, was used by this run only.
            use: what they were used for.
        """
        if not self._life.is_ours or self.is_free or self.meter.is_open or self._is_counted_elsewhere:
            return
        if self._not_running_at is not None:
            ago_s = (anyio.current_time() - self._not_running_at) / 2
            if self._start_accepted_at is not None:
                self.start_s = round(anyio.current_time() - ago_s - self._start_accepted_at, 1)
        elif self._unattended_since is not None:
            ago_s, use = (self._utcnow() - self._unattended_since).total_seconds(), BilledUse.IDLE
        self._start_accepted_at = self._not_running_at = self._unattended_since = self._stop_accepted_at = None
        units = 1 if self.units is None else self.units.minimum
        self.meter.open(usd_per_second=units * unit_hour_usd() / 3600, ago_s=ago_s, use=use)

    def _stop_billing(self) -> None:
        """Close the meter: when the service accepted this session's stop, else now."""
        self.meter.close(ago_s=0.0 if self._stop_accepted_at is None else elapsed() - self._stop_accepted_at)


def _event_of_start_error(error: Exception) -> ModelEvent:
    """The event for an error of StartProjectVersion: throttled, refused, or unknown whether it took effect."""
    code, status = cause_code(error), cause_status(error)
    is_definite = _CLIENT_ERROR <= status < _SERVER_ERROR and code not in _TIMEOUTS and not code.isdigit() and code
    if is_definite and (code in _THROTTLING or was_refused_for_clock(error)):
        return ModelEvent.START_THROTTLED
    if is_definite and code == "ResourceInUseException":
        return ModelEvent.START_IN_USE
    if is_definite or isinstance(error, UsageError):
        return ModelEvent.START_REFUSED
    if isinstance(error, CredentialsError) and not code:
        return ModelEvent.START_REFUSED  # without credentials nothing was sent
    return ModelEvent.START_UNANSWERED


def _shorten(scope: anyio.CancelScope, seconds: float) -> None:
    scope.deadline = min(scope.deadline, anyio.current_time() + seconds)
