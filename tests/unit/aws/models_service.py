"""A service of models and their tags in memory, for the async verbs; its time is the loop's."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from botocore.exceptions import ClientError

from batchcl.scoring.events import Notice, Progress

EPOCH = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
ARN = "arn:aws:rekognition:eu-west-1:123456789012:project/{}/version/{}/1700000000000"


def now() -> dt.datetime:
    """The service's clock."""
    return EPOCH + dt.timedelta(seconds=anyio.current_time())


def arn_of(name: str) -> str:
    """The ARN of `project@version`."""
    return ARN.format(*name.split("@"))


def refused(code: str, status: int = 400) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "Some")


@dataclass
class Models:
    """Statuses and tags by `project@version`. `errors` has what an operation fails with; `calls` what was asked."""

    statuses: dict[str, str]
    tags: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def _called(self, operation: str, name: str = "") -> None:
        await anyio.lowlevel.checkpoint()
        self.calls.append(f"{operation} {name}".rstrip())
        error = self.errors.get(f"{operation} {name}") or self.errors.get(operation)
        if error is not None:
            raise error

    def _name(self, arn: str) -> str:
        return next(name for name in self.statuses if arn_of(name) == arn)

    async def tag_resource(self, **arguments: Any) -> None:
        name = self._name(arguments["ResourceArn"])
        await self._called("tag", name)
        self.tags[name].update(arguments["Tags"])

    async def untag_resource(self, **arguments: Any) -> None:
        name = self._name(arguments["ResourceArn"])
        await self._called("untag", name)
        for key in arguments["TagKeys"]:
            self.tags[name].pop(key, None)

    async def list_tags_for_resource(self, **arguments: Any) -> dict[str, Any]:
        name = self._name(arguments["ResourceArn"])
        await self._called("list", name)
        return {"Tags": dict(self.tags[name])}

    async def start_project_version(self, **arguments: Any) -> None:
        name = self._name(arguments["ProjectVersionArn"])
        await self._called("start", name)
        if self.statuses[name] in {"STARTING", "RUNNING", "STOPPING"}:
            raise refused("ResourceInUseException")
        self.statuses[name] = "RUNNING"

    async def stop_project_version(self, **arguments: Any) -> None:
        name = self._name(arguments["ProjectVersionArn"])
        await self._called("stop", name)
        if self.statuses[name] != "RUNNING":
            raise refused("ResourceInUseException")
        self.statuses[name] = "STOPPED"

    async def describe_projects(self, **arguments: Any) -> dict[str, Any]:
        await self._called("describe")
        names = arguments.get("ProjectNames") or list(dict.fromkeys(name.partition("@")[0] for name in self.statuses))
        return {"ProjectDescriptions": [{"ProjectArn": f"arn:project/{name}/1"} for name in names]}

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
                {"ProjectVersionArn": arn_of(name), "Status": status}
                for name, status in self._models.statuses.items()
                if name.startswith(f"{project}@") and (versions is None or name.partition("@")[2] in versions)
            ]
        }


class Listener:
    """An observer that keeps the kinds and texts of notices."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def started(self, progress: Progress) -> None:
        """Look away."""

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)

    @property
    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.notices]
