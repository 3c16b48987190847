from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from batchcl.errors import CredentialsError, RefusedError, UnreachableError
from batchcl.lifetime.lease_tags import LeaseTag, Role, lease_key, schedule_name_of
from batchcl.lifetime.reaper import ReapOutcome, ReapResult, reap
from fake_rekognition import EPOCH, Models, now, refused
from virtual import run_virtual

DEAD = LeaseTag(
    key=lease_key("dead"), role=Role.STARTED, until=EPOCH - dt.timedelta(hours=1), holder="run dead in s3://b"
)
SCHEDULED = LeaseTag(key=lease_key("s"), role=Role.SCHEDULED, until=DEAD.until, holder="run s in s3://b")
ALIVE = LeaseTag(key=lease_key("alive"), role=Role.STARTED, until=EPOCH + dt.timedelta(hours=1), holder="run alive")


def service(errors: dict[str, Exception] | None = None) -> Models:
    found = Models(
        {
            "cats@orphan": "RUNNING",
            "cats@starting": "STARTING",
            "cats@leased": "RUNNING",
            "cats@byhand": "RUNNING",
            "dogs@orphan": "RUNNING",
            "dogs@stopped": "STOPPED",
            "dogs@left": "STOPPED",
            "dogs@training": "TRAINING_IN_PROGRESS",
        },
        errors=dict(errors or {}),
    )
    for name, lease in {
        "cats@orphan": DEAD,
        "cats@starting": DEAD,
        "cats@leased": ALIVE,
        "dogs@orphan": SCHEDULED,
        "dogs@left": DEAD,
        "dogs@training": DEAD,
    }.items():
        found.tags[name][lease.key] = lease.value
    return found


def reaped(models: Models, **options: Any) -> dict[str, ReapOutcome]:
    return {name: each.done for name, each in rows(models, **options).items()}


def rows(models: Models, **options: Any) -> dict[str, ReapResult]:
    async def main() -> list[ReapResult]:
        return await reap(models, now=now, **options)

    return {each.model: each for each in run_virtual(main)}


def changes(models: Models) -> list[str]:
    return [call for call in models.calls if call.split()[0] in {"stop", "untag", "tag", "start"}]


def test_only_models_with_expired_leases_are_stopped() -> None:
    models, schedules = service(), []

    async def remove(name: str) -> None:
        schedules.append(name)

    assert reaped(models, remove_schedule=remove) == {
        "cats@orphan": ReapOutcome.STOPPED,
        "cats@starting": ReapOutcome.WAITING,
        "cats@leased": ReapOutcome.LEFT,
        "cats@byhand": ReapOutcome.LEFT,
        "dogs@orphan": ReapOutcome.STOPPED,
        "dogs@left": ReapOutcome.CLEARED,
    }
    assert changes(models) == [
        *("stop cats@orphan", "untag cats@orphan", "stop dogs@orphan", "untag dogs@orphan", "untag dogs@left")
    ]
    assert schedules == [schedule_name_of(SCHEDULED.key)]
    models.statuses["cats@starting"] = "RUNNING"
    assert reaped(models)["cats@starting"] is ReapOutcome.STOPPED
    assert set(reaped(models).values()) == {ReapOutcome.LEFT}


def test_a_dry_run_reports_the_same_and_changes_nothing() -> None:
    models = service()
    assert reaped(models, dry_run=True) == {
        "cats@orphan": ReapOutcome.WOULD_STOP,
        "cats@starting": ReapOutcome.WAITING,
        "cats@leased": ReapOutcome.LEFT,
        "cats@byhand": ReapOutcome.LEFT,
        "dogs@orphan": ReapOutcome.WOULD_STOP,
        "dogs@left": ReapOutcome.WOULD_CLEAR,
    }
    assert changes(models) == []


def test_reaping_can_be_limited_to_a_project() -> None:
    models = service()
    assert set(reaped(models, project="dogs")) == {"dogs@orphan", "dogs@left"}
    assert models.statuses["cats@orphan"] == "RUNNING"


@pytest.mark.parametrize("operation", ["list", "stop"])
def test_a_failure_for_one_model_does_not_affect_others(operation: str) -> None:
    models = service({f"{operation} cats@orphan": refused("ThrottlingException")})
    found = rows(models)
    assert found["cats@orphan"].done is ReapOutcome.FAILED
    assert "ThrottlingException" in found["cats@orphan"].reason
    assert found["cats@orphan"].done.unfinished
    assert found["dogs@orphan"].done is ReapOutcome.STOPPED
    models.errors.clear()
    assert rows(models)["cats@orphan"].done is ReapOutcome.STOPPED


def test_a_lease_that_cannot_be_removed_is_retried_next_time() -> None:
    models = service({"untag cats@orphan": refused("AccessDeniedException")})
    found = rows(models)["cats@orphan"]
    assert found.done is ReapOutcome.FAILED
    assert "it is stopped, but its lease could not be removed" in found.reason
    models.errors.clear()
    assert rows(models)["cats@orphan"].done is ReapOutcome.CLEARED


def test_a_schedule_that_cannot_be_removed_keeps_its_lease() -> None:
    models = service()

    async def fails(name: str) -> None:
        raise UnreachableError(f"removing the schedule {name} failed")

    found = rows(models, remove_schedule=fails)["dogs@orphan"]
    assert found.done is ReapOutcome.FAILED
    assert models.statuses["dogs@orphan"] == "STOPPED"
    assert SCHEDULED.key in models.tags["dogs@orphan"]

    async def succeeds(_: str) -> None:
        return

    assert rows(models, remove_schedule=succeeds)["dogs@orphan"].done is ReapOutcome.CLEARED


def test_leases_with_schedules_stay_without_a_scheduler() -> None:
    models = service()
    assert reaped(models)["dogs@orphan"] is ReapOutcome.STOPPED
    assert SCHEDULED.key in models.tags["dogs@orphan"]
    assert "dogs@orphan" not in reaped(models)


def test_a_model_stopped_by_others_is_not_a_failure() -> None:
    models = service()
    asked = models.stop_project_version

    async def too_late(**arguments: Any) -> None:
        await asked(**arguments)
        raise refused("ResourceInUseException")

    models.stop_project_version = too_late  # type: ignore[method-assign]
    found = rows(models)["cats@orphan"]
    assert (found.done, found.reason) == (ReapOutcome.LEFT, "it was stopped by others in the meantime: it is STOPPED")


def test_a_model_that_refuses_to_stop_has_failed() -> None:
    models = service({"stop cats@orphan": refused("ResourceInUseException")})
    assert reaped(models)["cats@orphan"] is ReapOutcome.FAILED


@pytest.mark.parametrize("operation", ["describe", "list", "stop"])
def test_bad_credentials_end_the_reaping(operation: str) -> None:
    models = service({operation: refused("ExpiredTokenException")})
    with pytest.raises(CredentialsError):
        rows(models)


def test_models_that_cannot_be_listed_are_refused() -> None:
    with pytest.raises(RefusedError):
        rows(service({"describe": refused("AccessDeniedException")}))
