"""The scheduled stop, with the SDK against a server that knows EventBridge Scheduler's API."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import botocore.session
import botocore.validate
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws, AwsSettings, Connection
from batchcl.errors import CredentialsError, RefusedError, UnreachableError
from batchcl.lifetime.lease_tags import lease_key, schedule_name_of
from batchcl.lifetime.scheduled_stop import GRACE_S, ScheduledStop, remove_schedule
from servers import aws_env, client
from unit.aws.models_service import EPOCH, Listener, arn_of, refused

CATS = ModelArn.parse(arn_of("cats@v1").replace("eu-west-1", "us-east-1"))
ROLE = "arn:aws:iam::123456789012:role/stop"
HOLDER = "run a in s3://b"
NAME = schedule_name_of(lease_key(HOLDER))


def switch(scheduler: Any, listener: Listener | None = None, *, left_s: float = 3600.0) -> ScheduledStop:
    return ScheduledStop(
        scheduler,
        CATS,
        role=ROLE,
        holder=HOLDER,
        left_s=lambda: left_s,
        now=lambda: EPOCH,
        observer=listener or Listener(),
    )


@pytest.fixture
def scheduling(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run something with batchcl's own client, and look at the schedules with boto3's."""
    for name, value in aws_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SCHEDULER", moto)

    def run(work: Callable[[Any], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            async with Aws(AwsSettings(region="us-east-1", **settings)).scheduler() as scheduler:
                await work(scheduler)

        anyio.run(main)

    return run


def schedules(moto: str) -> dict[str, dict[str, Any]]:
    scheduler = client("scheduler", moto)
    names = [each["Name"] for each in scheduler.list_schedules()["Schedules"]]
    return {name: scheduler.get_schedule(Name=name) for name in names}


def test_it_is_made_changed_and_removed(scheduling: Any, moto: str) -> None:
    listener = Listener()

    async def life(scheduler: Any) -> None:
        first = switch(scheduler, listener)
        await first.arm()
        found = schedules(moto)[NAME]
        at = EPOCH + dt.timedelta(seconds=3600 + GRACE_S)
        assert found["ScheduleExpression"] == f"at({at:%Y-%m-%dT%H:%M:%S})" == "at(2026-11-21T01:05:00)"
        assert found["ScheduleExpressionTimezone"] == "UTC"
        assert found["ActionAfterCompletion"] == "DELETE"
        assert found["FlexibleTimeWindow"] == {"Mode": "OFF"}
        assert found["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:rekognition:stopProjectVersion"
        assert found["Target"]["RoleArn"] == ROLE
        later = switch(scheduler, listener, left_s=7200)  # a session that takes the run up again
        await later.arm()
        assert schedules(moto)[NAME]["ScheduleExpression"] == "at(2026-11-21T02:05:00)"
        assert len(schedules(moto)) == 1
        await later.disarm()
        assert schedules(moto) == {}
        await first.disarm()  # somebody else has removed it: just as well

    scheduling(life)
    assert listener.kinds == ["switch", "switch"]
    assert listener.notices[0].fields == {"schedule": NAME, "at": "2026-11-21T01:05:00Z"}


def test_what_the_scheduler_would_send_is_a_stop_of_this_model(scheduling: Any, moto: str) -> None:
    async def look(scheduler: Any) -> None:
        await switch(scheduler).arm()
        target = schedules(moto)[NAME]["Target"]
        parameters = json.loads(target["Input"])
        service, action = target["Arn"].split(":")[-2:]
        model = botocore.session.get_session().get_service_model(service)
        operation = model.operation_model(f"{action[0].upper()}{action[1:]}")
        report = botocore.validate.ParamValidator().validate(parameters, operation.input_shape)
        assert not report.has_errors(), report.generate_report()
        assert set(parameters) <= set(operation.input_shape.members)
        assert parameters == {"ProjectVersionArn": CATS.text}
        assert await remove_schedule(scheduler, NAME)
        assert not await remove_schedule(scheduler, NAME)

    scheduling(look)


def test_a_scheduler_that_does_not_answer_is_a_refusal(scheduling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SCHEDULER", "http://127.0.0.1:1")

    async def arm(scheduler: Any) -> None:
        with pytest.raises(UnreachableError, match=f"scheduling the stop of cats@v1 by the role {ROLE} failed"):
            await switch(scheduler).arm()

    scheduling(arm, connection=Connection(max_attempts=1))


class Scripted:
    """A scheduler whose calls fail as told: a code for each call in its turn, or None."""

    def __init__(self, **codes: list[str | None]) -> None:
        self.codes = codes
        self.calls: list[str] = []

    def __getattr__(self, operation: str) -> Callable[..., Awaitable[None]]:
        async def call(**_: Any) -> None:
            self.calls.append(operation)
            code = self.codes[operation].pop(0) if self.codes.get(operation) else None
            if code is not None:
                raise refused(code)

        return call


def test_a_schedule_that_strikes_while_it_is_changed_is_made_anew() -> None:
    scheduler = Scripted(create_schedule=["ConflictException", None], update_schedule=["ResourceNotFoundException"])
    anyio.run(switch(scheduler).arm)
    assert scheduler.calls == ["create_schedule", "update_schedule", "create_schedule"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AccessDeniedException", CredentialsError),
        ("ValidationException", RefusedError),
        ("ServiceQuotaExceededException", RefusedError),
        ("ThrottlingException", UnreachableError),
    ],
)
@pytest.mark.parametrize("operation", ["create_schedule", "update_schedule"])
def test_what_the_scheduler_refuses_is_a_refusal(operation: str, code: str, kind: type[RefusedError]) -> None:
    codes: dict[str, list[str | None]] = {"create_schedule": ["ConflictException"], operation: [code]}
    scheduler = Scripted(**codes)

    async def main() -> None:
        found = switch(scheduler)
        with pytest.raises(kind, match="scheduling the stop of cats@v1"):
            await found.arm()
        await found.disarm()

    anyio.run(main)
    assert ("delete_schedule" in scheduler.calls) == (kind is UnreachableError), "it may be there all the same"


def test_a_schedule_that_cannot_be_removed_is_said_with_the_way_to_do_it() -> None:
    listener = Listener()

    async def main() -> None:
        found = switch(Scripted(delete_schedule=["AccessDeniedException"]), listener)
        await found.arm()
        with pytest.raises(CredentialsError, match=f"aws scheduler delete-schedule --name {NAME}"):
            await found.disarm()

    anyio.run(main)
    assert listener.kinds == ["switch"]
