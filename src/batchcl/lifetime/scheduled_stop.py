"""A scheduled stop in AWS itself: EventBridge Scheduler stops the model at the run's deadline, if nobody else has.

It needs no machine of the user's, as a lease does for its reaping; but it knows only the deadline.

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
"""A run that reaches its deadline has so long to end its calls and stop the model itself."""

_KEEPS_TRYING_S: Final = 2700
"""A model that is STARTING at that moment refuses to stop, and starting was seen to take 30 minutes. Not longer: tries
that go on for the service's default of a day would stop the model of the next night's run."""

_TRIES: Final = 30
_GONE: Final = "ResourceNotFoundException"
_TAKEN: Final = "ConflictException"


class ScheduledStop:
    """The one-time schedule of one run.

    Args:
        client: an open EventBridge Scheduler client in the model's region.
        arn: the model.
        role: ARN of the IAM role that the scheduler takes on to stop the model.
        holder: the run, in words that tell it from all others of the account.
        left_s: seconds until the run's deadline, now.
        now: the service's clock.
        observer: told of the schedule.
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
        """Make the schedule, or give the one of an earlier session the time of this one.

        Raises:
            RefusedError: the scheduler refuses, or doesn't answer.
        """
        at = self._now() + dt.timedelta(seconds=max(0.0, self._left_s()) + GRACE_S)
        was_armed, self._armed = self._armed, True  # before the call: if its answer is lost, the schedule may be there
        try:
            with translate_errors(f"scheduling the stop of {self._arn.name} by the role {self._role}"):
                await self._set(self._arguments(at))
        except RefusedError as error:
            self._armed = was_armed or isinstance(error, UnreachableError)
            raise
        if not was_armed:
            moment = f"{at:%Y-%m-%dT%H:%M:%SZ}"
            text = (
                f"EventBridge Scheduler stops {self._arn.name} at {moment} unless this run has (schedule {self._name})"
            )
            self._observer.notice(Notice("switch", text, {"schedule": self._name, "at": moment}))

    async def disarm(self) -> None:
        """Remove the schedule, if this session has made it.

        Raises:
            RefusedError: it stays, and will stop the model, whoever runs it then.
        """
        if not self._armed:
            return
        try:
            await remove_schedule(self._client, self._name)
        except RefusedError as error:
            raise type(error)(
                f"the schedule {self._name} could not be removed and will stop {self._arn.name}, whoever runs it then: "
                f"{error}; remove it with `aws scheduler delete-schedule --name {self._name}`"
            ) from error
        self._armed = False

    async def _set(self, arguments: dict[str, Any]) -> None:
        """Create the schedule, or change the one that is there; it may strike, and be gone, in between."""
        for verb, in_vain in ((self._client.create_schedule, _TAKEN), (self._client.update_schedule, _GONE)):
            try:
                await verb(**arguments)
            except ClientError as error:
                if error_code(error) != in_vain:
                    raise
            else:
                return
        await self._client.create_schedule(**arguments)

    def _arguments(self, at: dt.datetime) -> dict[str, Any]:
        partition = self._arn.text.split(":")[1]
        return {
            "Name": self._name,
            "Description": f"Stops {self._arn.name} if it outlives the deadline of batchcl's {self._holder}"[:512],
            "ScheduleExpression": f"at({at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%S})",
            "ScheduleExpressionTimezone": "UTC",
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "ActionAfterCompletion": "DELETE",
            "Target": {
                "Arn": f"arn:{partition}:scheduler:::aws-sdk:rekognition:stopProjectVersion",
                "RoleArn": self._role,
                "Input": orjson.dumps({"ProjectVersionArn": self._arn.text}).decode(),
                "RetryPolicy": {"MaximumEventAgeInSeconds": _KEEPS_TRYING_S, "MaximumRetryAttempts": _TRIES},
            },
        }


async def remove_schedule(client: Any, name: str) -> bool:
    """Delete the schedule; False where there is none, as it has struck or was removed already.

    Raises:
        RefusedError: the scheduler refuses, or doesn't answer.
    """
    try:
        with translate_errors(f"removing the schedule {name}"):
            await client.delete_schedule(Name=name)
    except RefusedError as error:
        if cause_code(error) != _GONE:
            raise
        return False
    return True
