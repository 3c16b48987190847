"""Fakes of Rekognition's SDK client: models and tags, whose clock is the event loop's, and DetectCustomLabels."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from botocore.exceptions import ClientError

T = TypeVar("T")

EPOCH = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
ARN = "arn:aws:rekognition:eu-west-1:123456789012:project/{}/version/{}/1700000000000"


def now() -> dt.datetime:
    """The service's clock."""
    return EPOCH + dt.timedelta(seconds=anyio.current_time())


def arn_of(name: str) -> str:
    """The ARN of `project@version`."""
    return ARN.format(*name.split("@"))


def refused(code: str, status: int = 400, *, message: str = "said so") -> ClientError:
    metadata = {"HTTPStatusCode": status, "RequestId": "r-9"}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, "Some")


class FakeDetection:
    """A client that only detects. `answer` is the response, an error to raise, or a function that returns one."""

    def __init__(self, answer: object) -> None:
        self.meta = SimpleNamespace(endpoint_url="https://x")
        self.asked: list[dict[str, Any]] = []
        self.at_once = 0
        self.most_at_once = 0
        self._answer = answer

    async def detect_custom_labels(self, **arguments: Any) -> Any:
        self.asked.append(arguments)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await anyio.lowlevel.checkpoint()
            answer = await self._answer(arguments) if callable(self._answer) else self._answer
        finally:
            self.at_once -= 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


@dataclass
class Models:
    """Statuses and tags by `project@version`. `errors` has the errors of operations, `calls` the received calls.

    Attributes:
        start_s: duration of a start, while the model is STARTING.
        stop_s: duration of a stop, while it is STOPPING.
        who: makes the calls; `started_by` has who started each model, and `stops` who stopped whose.
        units: with which each model was started.
    """

    statuses: dict[str, str]
    tags: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    start_s: float = 0.0
    stop_s: float = 0.0
    who: str = "run"
    started_by: dict[str, str] = field(default_factory=dict)
    stops: list[tuple[str, str]] = field(default_factory=list)
    due: dict[str, tuple[float, str]] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    metered: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    running_since: dict[str, float] = field(default_factory=dict)

    def billed_unit_s(self) -> float:
        """The service's own meter: unit seconds in which models that were started here have been RUNNING."""
        for name in self.statuses:
            self.status(name)
        now = anyio.current_time()
        return sum(self.metered.values()) + sum(
            (now - since) * self.units[name] for name, since in self.running_since.items()
        )

    async def _do(self, operation: str, name: str, effect: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()
        self.calls.append(f"{operation} {name}".rstrip())
        error = self.errors.get(f"{operation} {name}") or self.errors.get(operation)
        if error is not None:
            raise error
        return effect()

    def _name(self, arn: str) -> str:
        return next(name for name in self.statuses if arn_of(name) == arn)

    def status(self, name: str) -> str:
        """As of now."""
        if name in self.due and self.due[name][0] <= anyio.current_time():
            at, self.statuses[name] = self.due.pop(name)
            if self.statuses[name] == "RUNNING":
                self.running_since[name] = at
        return self.statuses[name]

    def _become(self, name: str, passing: str, status: str, seconds: float) -> None:
        self.statuses[name] = passing if seconds else status
        if seconds:
            self.due[name] = (anyio.current_time() + seconds, status)

    async def tag_resource(self, **arguments: Any) -> None:
        name = self._name(arguments["ResourceArn"])
        await self._do("tag", name, lambda: self.tags[name].update(arguments["Tags"]))

    async def untag_resource(self, **arguments: Any) -> None:
        name = self._name(arguments["ResourceArn"])

        def remove() -> None:
            for key in arguments["TagKeys"]:
                self.tags[name].pop(key, None)

        await self._do("untag", name, remove)

    async def list_tags_for_resource(self, **arguments: Any) -> dict[str, Any]:
        name = self._name(arguments["ResourceArn"])
        return await self._do("list", name, lambda: {"Tags": dict(self.tags[name])})

    async def start_project_version(self, **arguments: Any) -> None:
        name = self._name(arguments["ProjectVersionArn"])

        def begin() -> None:
            if self.status(name) in {"STARTING", "RUNNING", "STOPPING"}:
                raise refused("ResourceInUseException")
            self._become(name, "STARTING", "RUNNING", self.start_s)
            self.units[name] = arguments.get("MinInferenceUnits", 1)
            if not self.start_s:
                self.running_since[name] = anyio.current_time()
            self.started_by[name] = self.who

        await self._do("start", name, begin)

    async def stop_project_version(self, **arguments: Any) -> None:
        name = self._name(arguments["ProjectVersionArn"])

        def end() -> None:
            if self.status(name) != "RUNNING":
                raise refused("ResourceInUseException")
            self._become(name, "STOPPING", "STOPPED", self.stop_s)
            if name in self.running_since:
                self.metered[name] += (anyio.current_time() - self.running_since.pop(name)) * self.units[name]
            self.stops.append((self.who, self.started_by.get(name, "")))

        await self._do("stop", name, end)

    async def describe_projects(self, **arguments: Any) -> dict[str, Any]:
        names = arguments.get("ProjectNames") or list(dict.fromkeys(name.partition("@")[0] for name in self.statuses))
        found = {"ProjectDescriptions": [{"ProjectArn": f"arn:project/{name}/1"} for name in names]}
        return await self._do("describe", "", lambda: found)

    def get_paginator(self, operation: str) -> Any:
        return _Pages(self, operation)


class _Pages:
    def __init__(self, models: Models, operation: str) -> None:
        self._models = models
        self._operation = operation

    async def paginate(self, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        if self._operation == "describe_projects":
            yield await self._models.describe_projects(**arguments)
            return
        project = arguments["ProjectArn"].split("/")[1]
        versions = arguments.get("VersionNames")
        yield {
            "ProjectVersionDescriptions": [
                {"ProjectVersionArn": arn_of(name), "Status": self._models.status(name)}
                | ({"MinInferenceUnits": self._models.units[name]} if name in self._models.units else {})
                for name in self._models.statuses
                if name.startswith(f"{project}@") and (versions is None or name.partition("@")[2] in versions)
            ]
        }
