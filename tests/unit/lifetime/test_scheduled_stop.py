"""The scheduled stop, with the SDK and a fake of EventBridge Scheduler."""

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
from fake_rekognition import EPOCH, arn_of, refused
from observers import RecordingObserver
from servers import aws_env, client

CATS = ModelArn.parse(arn_of("cats@v1").replace("eu-west-1", "us-east-1"))
ROLE = "arn:aws:iam::123456789012:role/stop"
HOLDER = "run a in s3://b"
NAME = schedule_name_of(lease_key(HOLDER))


def scheduled_stop(
    scheduler: Any, listener: RecordingObserver | None = None, *, left_s: float = 3600.0
) -> ScheduledStop:
    return ScheduledStop(
        scheduler,
        CATS,
        role=ROLE,
        holder=HOLDER,
        left_s=lambda: left_s,
        now=lambda: EPOCH,
        observer=listener or RecordingObserver(),
    )


@pytest.fixture
def with_scheduler(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that runs coroutines with batchcl's client of the fake scheduler."""
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


def test_a_schedule_is_created_updated_and_deleted(with_scheduler: Any, moto: str) -> None:
    listener = RecordingObserver()

    async def life(scheduler: Any) -> None:
        first = scheduled_stop(scheduler, listener)
        await first.arm()
        found = schedules(moto)[NAME]
        at = EPOCH + dt.timedelta(seconds=3600 + GRACE_S)
        assert found["ScheduleExpression"] == f"at({at:%Y-%m-%dT%H:%M:%S})" == "at(2026-11-21T01:05:00)"
        assert found["ScheduleExpressionTimezone"] == "UTC"
        assert found["ActionAfterCompletion"] == "DELETE"
        assert found["FlexibleTimeWindow"] == {"Mode": "OFF"}
        assert found["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:rekognition:stopProjectVersion"
        assert found["Target"]["RoleArn"] == ROLE
        later = scheduled_stop(scheduler, listener, left_s=7200)  # a session that resumes the run
        await later.arm()
        assert schedules(moto)[NAME]["ScheduleExpression"] == "at(2026-11-21T02:05:00)"
        assert len(schedules(moto)) == 1
        await later.disarm()
        assert schedules(moto) == {}
        await first.disarm()  # deleted already

    with_scheduler(life)
    assert listener.kinds == ["scheduled-stop", "scheduled-stop"]
    assert listener.notices[0].fields == {"schedule": NAME, "at": "2026-11-21T01:05:00Z"}


def test_the_schedule_sends_a_valid_stop_of_this_model(with_scheduler: Any, moto: str) -> None:
    async def look(scheduler: Any) -> None:
        await scheduled_stop(scheduler).arm()
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

    with_scheduler(look)


def test_an_unreachable_scheduler_is_reported(with_scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SCHEDULER", "http://127.0.0.1:1")

    async def arm(scheduler: Any) -> None:
        with pytest.raises(UnreachableError, match=f"scheduling the stop of cats@v1 by the role {ROLE} failed"):
            await scheduled_stop(scheduler).arm()

    with_scheduler(arm, connection=Connection(max_attempts=1))


class Scripted:
    """A scheduler with scripted responses: for each operation, the error codes of its calls, or None."""

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


def test_a_schedule_that_fires_during_an_update_is_recreated() -> None:
    scheduler = Scripted(create_schedule=["ConflictException", None], update_schedule=["ResourceNotFoundException"])
    anyio.run(scheduled_stop(scheduler).arm)
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
def test_errors_of_the_scheduler_are_translated(operation: str, code: str, kind: type[RefusedError]) -> None:
    codes: dict[str, list[str | None]] = {"create_schedule": ["ConflictException"], operation: [code]}
    scheduler = Scripted(**codes)

    async def main() -> None:
        found = scheduled_stop(scheduler)
        with pytest.raises(kind, match="scheduling the stop of cats@v1"):
            await found.arm()
        await found.disarm()

    anyio.run(main)
    assert ("delete_schedule" in scheduler.calls) == (kind is UnreachableError), "the schedule may exist nevertheless"


def test_a_schedule_that_stays_is_reported_with_the_command() -> None:
    listener = RecordingObserver()

    async def main() -> None:
        found = scheduled_stop(Scripted(delete_schedule=["AccessDeniedException"]), listener)
        await found.arm()
        with pytest.raises(CredentialsError, match=f"aws scheduler delete-schedule --name {NAME}"):
            await found.disarm()

    anyio.run(main)
    assert listener.kinds == ["scheduled-stop"]
