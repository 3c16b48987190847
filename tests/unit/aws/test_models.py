from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import pytest
from botocore.exceptions import EndpointConnectionError, ProxyConnectionError
from hypothesis import given
from hypothesis import strategies as st

from batchcl.arns import ModelArn
from batchcl.aws.models import Model, describe, list_models, start, stop, wait
from batchcl.errors import CredentialsError, ModelError, StoppedError, UnreachableError, UsageError
from batchcl.quantities import Units
from fake_rekognition import refused
from virtual import run_virtual

ARN = ModelArn.parse("arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000")
CREATED = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
SILENT = EndpointConnectionError(endpoint_url="https://x")


def version(name: str, status: str = "RUNNING", project: str = "dogs", **more: Any) -> dict[str, Any]:
    arn = f"arn:aws:rekognition:eu-west-1:123456789012:project/{project}/version/{name}/1700000000000"
    return {"ProjectVersionArn": arn, "Status": status, **more}


class FakeClient:
    """Projects and versions, two a page; `states` are the model's statuses, one for each poll."""

    def __init__(
        self, projects: dict[str, list[dict[str, Any]]] | None = None, states: Sequence[str | Exception] = ()
    ) -> None:
        self.projects = {"dogs": [version("v1")]} if projects is None else projects
        self.states = list(states)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    async def describe_projects(self, **arguments: Any) -> dict[str, Any]:
        self.calls.append(("describe_projects", arguments))
        if self.error is not None:
            raise self.error
        names = arguments.get("ProjectNames", list(self.projects))
        found = [{"ProjectArn": f"arn:project/{name}/1"} for name in names if name in self.projects]
        return {"ProjectDescriptions": found}

    def get_paginator(self, operation: str) -> Any:
        return _Pages(self, operation)

    async def start_project_version(self, **arguments: Any) -> None:
        self.calls.append(("start", arguments))
        if self.error is not None:
            raise self.error

    async def stop_project_version(self, **arguments: Any) -> None:
        self.calls.append(("stop", arguments))
        if self.error is not None:
            raise self.error

    def versions(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        self.calls.append(("describe_project_versions", arguments))
        found = self.projects[arguments["ProjectArn"].split("/")[1]]
        if self.states:
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            if isinstance(state, Exception):
                raise state
            return [version("v1", state, StatusMessage="its reason")]
        names = arguments.get("VersionNames")
        return [one for one in found if names is None or one["ProjectVersionArn"].split("/")[3] in names]


class _Pages:
    def __init__(self, client: FakeClient, operation: str) -> None:
        self._client = client
        self._operation = operation

    async def paginate(self, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        if self._operation == "describe_projects":
            name, entries = (
                "ProjectDescriptions",
                (await self._client.describe_projects(**arguments))["ProjectDescriptions"],
            )
        else:
            name, entries = "ProjectVersionDescriptions", self._client.versions(arguments)
        for begin in range(0, len(entries) or 1, 2):
            yield {name: entries[begin : begin + 2]}


@pytest.mark.parametrize(
    ("text", "units"),
    [("1", Units(1)), ("5", Units(5)), ("1:3", Units(1, 3)), ("2:2", Units(2, 2)), ("1:5", Units(1, 5))],
)
def test_units_are_a_minimum_with_or_without_a_maximum(text: str, units: Units) -> None:
    assert Units.parse(text) == units
    assert str(units) == text


@pytest.mark.parametrize("text", ["", ":", "1:", ":3", "x", "1.5", "1:2:3", "1-3", "one"])
def test_other_text_is_refused_with_the_form_of_units(text: str) -> None:
    with pytest.raises(UsageError, match=r"are not inference units; write MIN or MIN:MAX"):
        Units.parse(text)


@pytest.mark.parametrize("text", ["0", "-1", "6", "3:2", "1:6", "0:3", "5:1"])
def test_units_out_of_range_are_refused_with_the_range(text: str) -> None:
    with pytest.raises(UsageError, match=r"out of range: 1 <= MIN <= MAX <= 5"):
        Units.parse(text)


@given(st.text())
def test_any_text_is_units_or_a_usage_error(text: str) -> None:
    try:
        units = Units.parse(text)
    except UsageError:
        return
    assert 1 <= units.minimum <= 5


def test_a_model_is_found_through_its_projects_name() -> None:
    client = FakeClient(
        {"dogs": [version("v1", "STOPPED", EvaluationResult={"F1Score": 0.9}, CreationTimestamp=CREATED)]}
    )
    found = anyio.run(describe, client, ARN)
    assert found == Model(
        arn=ARN.text,
        project="dogs",
        version="v1",
        status="STOPPED",
        message="",
        min_units=None,
        max_units=None,
        f1=0.9,
        created=CREATED,
    )
    assert found.name == "dogs@v1"
    assert client.calls == [
        ("describe_projects", {"ProjectNames": ["dogs"]}),
        ("describe_project_versions", {"ProjectArn": "arn:project/dogs/1", "VersionNames": ["v1"]}),
    ]


@pytest.mark.parametrize("projects", [{}, {"dogs": []}, {"dogs": [version("v2")]}])
def test_an_unknown_model_is_refused_with_region_and_account(projects: dict[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(ModelError, match=r"there is no model arn:.*--region eu-west-1.*123456789012"):
        anyio.run(describe, FakeClient(projects), ARN)


def test_the_same_name_with_another_stamp_is_another_model() -> None:
    other = version("v1") | {"ProjectVersionArn": ARN.text + "1"}
    with pytest.raises(ModelError):
        anyio.run(describe, FakeClient({"dogs": [other]}), ARN)


def test_all_pages_of_all_projects_are_listed() -> None:
    projects = {
        "a": [version(f"v{number}", project="a", MinInferenceUnits=number) for number in range(5)],
        "b": [],
        "c": [version("v9", project="c")],
    }

    async def names(**options: Any) -> list[str]:
        return [f"{model.name} {model.min_units}" for model in await list_models(FakeClient(projects), **options)]

    assert anyio.run(names) == ["a@v0 0", "a@v1 1", "a@v2 2", "a@v3 3", "a@v4 4", "c@v9 None"]

    async def of_c() -> list[str]:
        return await names(project="c")

    assert anyio.run(of_c) == ["c@v9 None"]


def test_start_enables_auto_scaling_only_with_a_maximum() -> None:
    client = FakeClient()
    anyio.run(start, client, ARN, Units(2))
    anyio.run(start, client, ARN, Units(1, 3))
    assert [arguments for _, arguments in client.calls] == [
        {"ProjectVersionArn": ARN.text, "MinInferenceUnits": 2},
        {"ProjectVersionArn": ARN.text, "MinInferenceUnits": 1, "MaxInferenceUnits": 3},
    ]


def test_stop_names_the_model() -> None:
    client = FakeClient()
    anyio.run(stop, client, ARN)
    assert client.calls == [("stop", {"ProjectVersionArn": ARN.text})]


@pytest.mark.parametrize(
    ("act", "doing"),
    [
        (lambda client: describe(client, ARN), "describing dogs@v1"),
        (list_models, "listing models"),
        (lambda client: start(client, ARN, Units(1)), "starting dogs@v1 with 1 inference unit"),
        (lambda client: start(client, ARN, Units(1, 2)), "starting dogs@v1 with 1:2 inference units"),
        (lambda client: stop(client, ARN), "stopping dogs@v1"),
    ],
)
@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (refused("AccessDeniedException"), CredentialsError, "IAM policy"),
        (refused("UnrecognizedClientException"), CredentialsError, "log in again"),
        (refused("ExpiredTokenException"), CredentialsError, "log in again"),
        (refused("ThrottlingException"), UnreachableError, "try again later"),
        (refused("ProvisionedThroughputExceededException"), UnreachableError, "try again later"),
        (refused("InternalServerError", 500), UnreachableError, "try again later"),
        (SILENT, UnreachableError, "check the region, the endpoint and the network"),
        (ProxyConnectionError(proxy_url="http://p"), UnreachableError, "check HTTPS_PROXY and HTTP_PROXY"),
        (refused("ResourceInUseException"), ModelError, "ResourceInUseException: said so"),
    ],
)
def test_each_error_names_the_action_and_the_reason(
    act: Callable[[Any], Any], doing: str, error: Exception, kind: type[Exception], advice: str
) -> None:
    client = FakeClient()
    client.error = error
    with pytest.raises(kind) as caught:
        anyio.run(act, client)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{doing} failed: ")
    assert advice in str(caught.value)


def test_only_a_missing_permission_counts_as_access_denied() -> None:
    client = FakeClient()
    for code, expected in [("AccessDeniedException", True), ("UnrecognizedClientException", False)]:
        client.error = refused(code)
        with pytest.raises(CredentialsError) as caught:
            anyio.run(stop, client, ARN)
        assert caught.value.is_access_denied is expected


def waited(states: Sequence[str | Exception], **options: Any) -> tuple[Model, list[str], float, int]:
    """(the model, its changes of status, virtual seconds, polls)."""
    told: list[str] = []
    client = FakeClient(states=states)

    async def main() -> tuple[Model, list[str], float, int]:
        model = await wait(
            client,
            ARN,
            until="RUNNING",
            passing={"STARTING"},
            on_state=lambda model: told.append(model.status),
            **options,
        )
        looks = sum(name == "describe_projects" for name, _ in client.calls)
        return model, told, anyio.current_time(), looks

    return run_virtual(main)


def test_a_wait_ends_at_once_when_the_model_is_there_already() -> None:
    model, told, seconds, looks = waited(["RUNNING"])
    assert (model.status, told, looks) == ("RUNNING", ["RUNNING"], 1)
    assert seconds < 0.1


def test_a_wait_reports_each_change_and_polls_less_often() -> None:
    _, told, seconds, looks = waited(["STARTING"] * 20 + ["RUNNING"])
    assert told == ["STARTING", "RUNNING"]
    assert looks == 21
    assert seconds == pytest.approx(0.5 + 1 + 2 + 4 + 8 + 15 * 15, abs=1)


def test_a_wait_can_take_half_an_hour() -> None:
    _, _, seconds, _ = waited(["STARTING"] * 125 + ["RUNNING"])
    assert seconds > 30 * 60


def test_a_wait_fails_on_another_status_with_the_services_reason() -> None:
    with pytest.raises(ModelError, match="dogs@v1 is FAILED and will not become RUNNING: its reason"):
        waited(["STARTING", "FAILED"])


def test_a_wait_ends_at_its_deadline() -> None:
    with pytest.raises(StoppedError, match="dogs@v1 was still STARTING after 10 minutes"):
        waited(["STARTING"], timeout_s=600)


def test_a_wait_tolerates_five_minutes_without_a_response() -> None:
    model, *_ = waited(["STARTING", *[SILENT] * 15, "STARTING", *[SILENT] * 15, "RUNNING"])
    assert model.status == "RUNNING"
    with pytest.raises(UnreachableError):
        waited(["STARTING", SILENT])


def test_a_wait_ends_without_credentials() -> None:
    with pytest.raises(CredentialsError):
        waited(["STARTING", refused("ExpiredTokenException"), "RUNNING"])
