"""Leases, ages and costs of running models, and which of them raise an alarm."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from batchcl.aws.models import list_models
from batchcl.aws.session import Aws
from batchcl.errors import ExitCode
from batchcl.lifetime.lease_tags import LeaseTag, Role, lease_key
from batchcl.lifetime.running import AgeSource, RunningModel, running_in
from batchcl.workflow import age_text, unleased, unleased_event
from fake_rekognition import EPOCH, Models, now, refused
from unit.aws.test_metrics import CloudWatch
from virtual import run_virtual

HOUR = dt.timedelta(hours=1)


class Session(Aws):
    """A session whose only client is a CloudWatch without data, or one that refuses."""

    def __init__(self, error: Exception | None = None) -> None:
        self.cloudwatch = CloudWatch(error=error)

    @asynccontextmanager
    async def auxiliary_client(self, service: str, **_: Any) -> AsyncIterator[Any]:
        assert service == "cloudwatch"
        yield self.cloudwatch


class Clock:
    """The service's clock."""

    def now(self) -> dt.datetime:
        return now()


def lease(name: str, *, since: dt.timedelta | None = None, role: Role = Role.STARTED) -> LeaseTag:
    at = None if since is None else EPOCH - since
    return LeaseTag(key=lease_key(name), role=role, until=EPOCH + HOUR, holder=f"run {name}", since=at)


def described(models: Models, session: Session | None = None) -> dict[str, RunningModel]:
    async def main() -> list[RunningModel]:
        return await running_in(session or Session(), models, region="eu-west-1", clock=Clock())  # type: ignore[arg-type]

    return {each.model: each for each in run_virtual(main)}


def service(**leases: Any) -> Models:
    """Models `cats@<name>` that are RUNNING, each with these leases."""
    models = Models({f"cats@{name}": "RUNNING" for name in leases} | {"cats@down": "STOPPED"})
    for name, each in leases.items():
        models.tags[f"cats@{name}"].update({tag.key: tag.value for tag in each})
    return models


def test_only_running_models_are_described_and_none_is_changed() -> None:
    models = service(a=[lease("a", since=HOUR)], b=[])
    models.statuses["cats@starting"] = "STARTING"
    assert list(described(models)) == ["cats@a", "cats@b", "cats@starting"]
    assert not [call for call in models.calls if call.split()[0] in {"start", "stop", "tag", "untag"}]


def test_the_lease_has_the_time_of_the_start() -> None:
    user = lease("user", role=Role.USING)
    found = described(service(a=[lease("late", since=HOUR), lease("early", since=3 * HOUR), user], b=[lease("b")]))
    assert (found["cats@a"].since, found["cats@a"].since_source) == (EPOCH - 3 * HOUR, AgeSource.LEASE)
    assert found["cats@a"].age_s == pytest.approx(3 * 3600)
    assert found["cats@a"].is_leased
    assert (found["cats@b"].since, found["cats@b"].is_leased) == (None, True)


@pytest.mark.parametrize(
    ("units", "most", "dollars"), [(2, None, 24.0), (2, 2, 24.0), (1, 5, None), (None, None, None)]
)
def test_the_cost_needs_constant_units(
    monkeypatch: pytest.MonkeyPatch, units: int | None, most: int | None, dollars: float | None
) -> None:
    async def with_units(*args: Any, **options: Any) -> Any:
        return [replace(each, min_units=units, max_units=most) for each in await list_models(*args, **options)]

    monkeypatch.setattr("batchcl.lifetime.running.list_models", with_units)
    found = described(service(a=[lease("a", since=3 * HOUR)]))["cats@a"]
    assert found.cost_usd == (None if dollars is None else pytest.approx(dollars))
    assert found.age_s == pytest.approx(3 * 3600)


def test_without_lease_and_cloudwatch_the_age_is_unknown() -> None:
    found = described(service(a=[]), Session(refused("AccessDeniedException")))["cats@a"]
    assert (found.age_s, found.cost_usd, found.is_leased) == (None, None, False)
    assert "allow the action" in found.note
    assert found.lease == "no lease: started by other means"


def test_unreadable_and_invalid_tags() -> None:
    models = service(a=[], b=[])
    models.errors["list cats@a"] = refused("AccessDeniedException")
    models.tags["cats@b"]["batchcl:lease/x"] = "nonsense"
    found = described(models)
    assert found["cats@a"].is_leased is None
    assert found["cats@a"].lease.startswith("unknown: listing the tags of")
    assert found["cats@b"].is_leased is False, "nothing stops it until the tag is removed"


def model(name: str = "a", **more: Any) -> RunningModel:
    known: dict[str, Any] = {"status": "RUNNING", "is_leased": False, "age_s": 7200.0, "cost_usd": 8.0}
    return RunningModel(
        model=f"cats@{name}",
        arn=f"arn:{name}",
        region="eu-west-1",
        min_units=1,
        max_units=None,
        lease="",
        **known | more,
    )


def test_models_without_a_lease_raise_an_alarm_after_a_grace() -> None:
    models = [
        model("old"),
        model("young", age_s=600.0),
        model("new", age_s=0.0),
        model("unknown", age_s=None, cost_usd=None),
        model("starting", status="STARTING", age_s=None),
        model("leased", is_leased=True),
        model("unreadable", is_leased=None),
    ]
    assert [each.model for each in unleased(models)] == [
        *("cats@old", "cats@young", "cats@new", "cats@unknown", "cats@starting")
    ]
    assert [each.model for each in unleased(models, older_than_s=3600)] == ["cats@old", "cats@unknown"]


def test_the_event_names_the_models_and_what_to_do() -> None:
    event = unleased_event([model(), model("b", age_s=None, cost_usd=None)], unread=["us-west-2"])
    assert event.text == (
        "2 models without a lease, which nothing stops: cats@a in eu-west-1, running for 2h0m, $8.00 so far; cats@b in "
        "eu-west-1, age unknown; stop with `batchcl model stop`; no response from us-west-2"
    )
    assert (event.severity, event.exit_code) == ("warning", ExitCode.FAILURES)
    assert event.gauges == {"batchcl_models_without_lease": 2.0}
    assert [each["cost_usd"] for each in event.fields["models"]] == [8.0, None]


def test_without_models_only_an_unread_region_is_no_success() -> None:
    assert (unleased_event([]).severity, unleased_event([]).exit_code) == ("info", ExitCode.DONE)
    assert unleased_event([], unread=["us-west-2"]).exit_code == ExitCode.STOPPED


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m"), (59, "0m"), (3599, "59m"), (7500, "2h5m"), (90_000, "1d1h"), (864_000, "10d0h")]
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age_text(seconds) == text
