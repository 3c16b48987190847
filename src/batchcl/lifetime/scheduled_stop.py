"""The scheduled stop: a schedule in EventBridge Scheduler that stops the model at the run's deadline.

It works without any machine of the user's; `batchcl model reap` needs one. It acts at the deadline only.

Source: EventBridge Scheduler's user guide, "Using universal targets" and "Deleting a schedule", and its service model.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import orjson
from botocore.exceptions import ClientError

from batchcl.arns import ModelArn
from batchcl.aws.errors import cause_code, error_code, translate_errors
from batchcl.errors import RefusedError, UnreachableError
from batchcl.events import Notice, Observer
from batchcl.lifetime.lease_tags import lease_key, schedule_name_of

__all__ = ["GRACE_S", "ScheduledStop", "remove_schedule"]

GRACE_S: Final = 300.0
"""Time between the run's deadline and the scheduled stop, for the run to end its calls and stop the model itself."""

_MAX_EVENT_AGE_S: Final = 2700
"""How long the scheduler retries. A model that is STARTING can't be stopped, and starts of 30 minutes were observed.
Retries for the service's default of a day would stop the model of the next night's run."""

_MAX_RETRIES: Final = 30
_NOT_FOUND: Final = "ResourceNotFoundException"
_EXISTS: Final = "ConflictException"


class ScheduledStop:
    """The one-time schedule of one run.

    Args:
        client: an open EventBridge Scheduler client in the model's region.
        arn: the model.
        role: ARN of the IAM role that the scheduler assumes to stop the model.
        holder: text that identifies the run within the account.
        left_s: returns the seconds until the run's deadline.
        now: the service's clock.
        observer: receives a notice when the schedule is created.
    """

    def __init__(
        self,
        client: Any,
        arn: ModelArn,
        *,
        role: str,
        holder: str,
        left_s: Callable[[], float],
        now: Callable[[], dt.datetime],
        observer: Observer,
    ) -> None:
        self._client = client
        self._arn = arn
        self._role = role
        self._holder = holder
        self._name = schedule_name_of(lease_key(holder))
        self._left_s = left_s
        self._now = now
        self._observer = observer
        self._armed = False

    async def arm(self) -> None:
        """Create the schedule, or update the one of an earlier session.

        Raises:
            RefusedError: the scheduler refuses or doesn't respond.
        """
        at = self._now() + dt.timedelta(seconds=max(0.0, self._left_s()) + GRACE_S)
        was_armed, self._armed = self._armed, True  # set before the call, whose response may be lost
        try:
            with translate_errors(f"scheduling the stop of {self._arn.name} by the role {self._role}"):
                await self._create_or_update(self._arguments(at))
        except RefusedError as error:
            self._armed = was_armed or isinstance(error, UnreachableError)
            raise
        if not was_armed:
            time = f"{at:%Y-%m-%dT%H:%M:%SZ}"
            text = (
                f"if this run does not stop {self._arn.name}, EventBridge Scheduler stops it at {time} "
                f"(schedule {self._name})"
            )
            self._observer.notice(Notice("scheduled-stop", text, {"schedule": self._name, "at": time}))

    async def disarm(self) -> None:
        """Delete the schedule if this session has created it.

        Raises:
            RefusedError: the schedule still exists and will stop the model, even if another run is using it then.
        """
        if not self._armed:
            return
        try:
            await remove_schedule(self._client, self._name)
        except RefusedError as error:
            raise type(error)(
                f"{error}; the schedule will stop {self._arn.name} at its time, even if another run uses the model; "
                f"delete it with `aws scheduler delete-schedule --name {self._name}`",
                code=error.code,
            ) from error
        self._armed = False

    async def _create_or_update(self, arguments: dict[str, Any]) -> None:
        """Create the schedule, or update an existing one; create it again if that one has fired in between."""
        for operation, expected in (
            (self._client.create_schedule, _EXISTS),
            (self._client.update_schedule, _NOT_FOUND),
        ):
            try:
                await operation(**arguments)
            except ClientError as error:
                if error_code(error) != expected:
                    raise
            else:
                return
        await self._client.create_schedule(**arguments)

    def _arguments(self, at: dt.datetime) -> dict[str, Any]:
        partition = self._arn.text.split(":")[1]
        return {
            "Name": self._name,
            "Description": f"Stops {self._arn.name} after the deadline of batchcl's {self._holder}"[:512],
            "ScheduleExpression": f"at({at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%S})",
            "ScheduleExpressionTimezone": "UTC",
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "ActionAfterCompletion": "DELETE",
            "Target": {
                "Arn": f"arn:{partition}:scheduler:::aws-sdk:rekognition:stopProjectVersion",
                "RoleArn": self._role,
                "Input": orjson.dumps({"ProjectVersionArn": self._arn.text}).decode(),
                "RetryPolicy": {"MaximumEventAgeInSeconds": _MAX_EVENT_AGE_S, "MaximumRetryAttempts": _MAX_RETRIES},
            },
        }


async def remove_schedule(client: Any, name: str) -> bool:
    """Delete the schedule; False if it doesn't exist, because it has fired or was deleted already.

    Raises:
        RefusedError: the scheduler refuses or doesn't respond.
    """
    try:
        with translate_errors(f"deleting the schedule {name}"):
            await client.delete_schedule(Name=name)
    except RefusedError as error:
        if cause_code(error) != _NOT_FOUND:
            raise
        return False
    return True
