"""A model's life: describe, list, start, wait, stop. Each verb takes an open Rekognition client.

A version's ARN doesn't hold its project's, which DescribeProjectVersions needs; it is resolved by the project's name.
Botocore's own waiter gives up after 19.5 minutes and doesn't notice a model that stops, so `wait` is ours.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import anyio
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from batchcl.aws.arn import ModelArn
from batchcl.errors import (
    BatchclError,
    CredentialsError,
    ModelError,
    StoppedError,
    UnreachableError,
    UsageError,
)

__all__ = ["Model", "Units", "describe", "list_models", "start", "stop", "wait"]

MAX_UNITS: Final = 5
"""Inference units a running model may have; source: the service's default quota."""

START_TIMEOUT_S: Final = 45 * 60.0
"""Models were seen to take up to 30 minutes to start; source: developer guide, "Running a model"."""

_POLL_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_CREDENTIAL_CODES: Final = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "ExpiredTokenException",
        "InvalidSignatureException",
    }
)
_BUSY_CODES: Final = frozenset({"ThrottlingException", "ProvisionedThroughputExceededException"})
_SERVER_ERROR: Final = 500
_SILENCE_S: Final = 300.0
"""A wait outlives so long a time without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A project version as the service describes it."""

    arn: str
    project: str
    version: str
    status: str
    message: str
    min_units: int | None
    max_units: int | None
    f1: float | None
    created: dt.datetime | None

    @property
    def name(self) -> str:
        """`<project>@<version>`."""
        return f"{self.project}@{self.version}"


@dataclass(frozen=True, slots=True)
class Units:
    """Inference units to start a model with; `maximum` switches the service's auto-scaling on."""

    minimum: int
    maximum: int | None = None

    @classmethod
    def parse(cls, text: str) -> Units:
        """Read `MIN` or `MIN:MAX`; raises `UsageError`."""
        low, colon, high = text.partition(":")
        try:
            units = cls(int(low), int(high) if colon else None)
        except ValueError:
            raise UsageError(f"{text!r} are no inference units; write MIN or MIN:MAX, such as 2 or 1:3") from None
        highest = units.minimum if units.maximum is None else units.maximum
        if not 1 <= units.minimum <= highest <= MAX_UNITS:
            raise UsageError(f"inference units {text!r} are out of range: 1 <= MIN <= MAX <= {MAX_UNITS}")
        return units

    def __str__(self) -> str:
        return str(self.minimum) if self.maximum is None else f"{self.minimum}:{self.maximum}"


async def describe(client: Any, arn: ModelArn) -> Model:
    """The model as it is now.

    Raises:
        ModelError: there is none of this ARN in its account and region.
        CredentialsError: AWS doesn't know the credentials, or they may not describe models.
    """
    async with _explained(f"describing {arn.name}"):
        projects = await client.describe_projects(ProjectNames=[arn.project])
        for project in projects["ProjectDescriptions"]:
            pages = client.get_paginator("describe_project_versions").paginate(
                ProjectArn=project["ProjectArn"], VersionNames=[arn.version]
            )
            async for page in pages:
                for version in page["ProjectVersionDescriptions"]:
                    if version["ProjectVersionArn"] == arn.text:
                        return _model(version)
    raise ModelError(
        f"there is no model {arn.text}; check it with `batchcl model list --region {arn.region}` "
        f"in account {arn.account}"
    )


async def list_models(client: Any, *, project: str | None = None) -> list[Model]:
    """All models of the account and region, or of one project; the newest of a project first."""
    found: list[Model] = []
    names = {} if project is None else {"ProjectNames": [project]}
    async with _explained("listing models"):
        async for page in client.get_paginator("describe_projects").paginate(**names):
            for entry in page["ProjectDescriptions"]:
                versions = client.get_paginator("describe_project_versions").paginate(ProjectArn=entry["ProjectArn"])
                async for part in versions:
                    found.extend(_model(version) for version in part["ProjectVersionDescriptions"])
    return found


async def start(client: Any, arn: ModelArn, units: Units) -> None:
    """Ask the service to start the model; billing begins when it is RUNNING. Returns at once: see `wait`."""
    arguments: dict[str, Any] = {"ProjectVersionArn": arn.text, "MinInferenceUnits": units.minimum}
    if units.maximum is not None:
        arguments["MaxInferenceUnits"] = units.maximum
    async with _explained(f"starting {arn.name} with {units} inference units"):
        await client.start_project_version(**arguments)


async def stop(client: Any, arn: ModelArn) -> None:
    """Ask the service to stop the model, which ends billing. Returns at once: see `wait`.

    Raises:
        ModelError: the model is not RUNNING. One that is STARTING can't be stopped before it runs.
    """
    async with _explained(f"stopping {arn.name}"):
        await client.stop_project_version(ProjectVersionArn=arn.text)


async def wait(
    client: Any,
    arn: ModelArn,
    *,
    until: str,
    passing: Collection[str],
    timeout_s: float = START_TIMEOUT_S,
    on_state: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Poll until the model's status is `until`.

    Args:
        client: an open Rekognition client.
        arn: the model.
        until: the status to wait for, such as RUNNING or STOPPED.
        passing: statuses on the way to it; any other ends the wait.
        timeout_s: how long at most.
        on_state: told of each change of status, the first one included.

    Raises:
        ModelError: the model took another way, with the service's reason.
        StoppedError: it took longer than `timeout_s`.
        UnreachableError: the service has not answered for five minutes.
    """
    deadline = anyio.current_time() + timeout_s
    seen: str | None = None
    polls = 0
    heard_at = anyio.current_time()
    while True:
        await anyio.sleep(_POLL_S[min(polls, len(_POLL_S)) - 1] if polls else 0)
        polls += 1
        try:
            model = await describe(client, arn)
        except UnreachableError:
            if anyio.current_time() - heard_at > _SILENCE_S:
                raise
            continue
        heard_at = anyio.current_time()
        if model.status != seen:
            seen = model.status
            on_state(model)
        if model.status == until:
            return model
        if model.status not in passing:
            reason = f": {model.message}" if model.message else ""
            raise ModelError(f"{arn.name} is {model.status} and will not become {until}{reason}")
        if anyio.current_time() >= deadline:
            raise StoppedError(f"{arn.name} was still {model.status} after {timeout_s / 60:.0f} minutes")


@asynccontextmanager
async def _explained(doing: str) -> AsyncIterator[None]:
    """Turn the SDK's errors into ours."""
    try:
        yield
    except NoCredentialsError as error:
        raise CredentialsError(
            f"{doing} failed: no AWS credentials found; set AWS_PROFILE or run `aws configure`"
        ) from error
    except ClientError as error:
        raise _from_client_error(doing, error) from error
    except BotoCoreError as error:
        raise UnreachableError(f"{doing} failed: {error}; check the region, the endpoint and the network") from error


def _from_client_error(doing: str, error: ClientError) -> BatchclError:
    code = error.response.get("Error", {}).get("Code", "")
    message = error.response.get("Error", {}).get("Message", "")
    what = f"{doing} failed: {code}: {message}"
    if code == "AccessDeniedException":
        return CredentialsError(f"{what}; allow the action in this identity's IAM policy", is_access_denied=True)
    if code in _CREDENTIAL_CODES:
        return CredentialsError(f"{what}; check the profile and its keys, or log in again")
    if code in _BUSY_CODES or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= _SERVER_ERROR:
        return UnreachableError(f"{what}; try again later")
    return ModelError(what)


def _model(version: dict[str, Any]) -> Model:
    arn = ModelArn.parse(version["ProjectVersionArn"])
    return Model(
        arn=arn.text,
        project=arn.project,
        version=arn.version,
        status=version["Status"],
        message=version.get("StatusMessage", ""),
        min_units=version.get("MinInferenceUnits"),
        max_units=version.get("MaxInferenceUnits"),
        f1=version.get("EvaluationResult", {}).get("F1Score"),
        created=version.get("CreationTimestamp"),
    )
