"""A fake of S3 as its SDK client sees it, and of the session that opens such clients."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import anyio.lowlevel
from botocore.exceptions import ClientError

from batchcl.aws.session import Aws

AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Call:
    """A call that the fake received: the SDK's name of the operation, the client's region, and the arguments."""

    operation: str
    region: str | None
    arguments: dict[str, Any]


@dataclass
class FakeS3:
    """Objects in memory. A client reads the buckets of its own region, and those without a region.

    Attributes:
        objects: `bucket/key`, or `bucket/key?version` → content.
        default: content of all other objects; None if they do not exist.
        regions: bucket → region.
        fault: returns the error of a call, or None.
        page_size: number of keys in a page of a listing.
        calls: received so far.
        opened: the options of all clients.
        closed: the regions of the clients that were closed.
    """

    objects: Mapping[str, bytes] = field(default_factory=dict)
    default: bytes | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    fault: Callable[[Call], Exception | None] = lambda _: None
    page_size: int = 1000
    calls: list[Call] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)
    closed: list[str | None] = field(default_factory=list)

    @property
    def aws(self) -> Aws:
        """The fake as a session."""
        return cast("Aws", self)

    def arguments(self, operation: str) -> list[dict[str, Any]]:
        """The arguments of all calls of an operation."""
        return [call.arguments for call in self.calls if call.operation == operation]

    @asynccontextmanager
    async def s3(self, *, region: str | None = None, **options: Any) -> AsyncIterator[_Client]:
        self.opened.append({"region": region, **options})
        await anyio.lowlevel.checkpoint()
        yield _Client(self, region)
        self.closed.append(region)


class _Client:
    def __init__(self, service: FakeS3, region: str | None) -> None:
        self._service = service
        self._region = region

    async def get_object(self, **arguments: Any) -> dict[str, Any]:
        self._begin("get_object", arguments)
        version = f"?{arguments['VersionId']}" if "VersionId" in arguments else ""
        name = f"{arguments['Bucket']}/{arguments['Key']}{version}"
        data = self._service.objects.get(name, self._service.default)
        if data is None:
            raise s3_error("NoSuchKey", status=404)
        if "Range" in arguments:
            first, _, last = arguments["Range"].removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1]
        return {"Body": _Body(data), "ContentLength": len(data)}

    async def head_bucket(self, **arguments: Any) -> dict[str, Any]:
        self._begin("head_bucket", arguments)
        return with_region(self._service.regions.get(arguments["Bucket"]))

    async def list_objects_v2(self, **arguments: Any) -> dict[str, Any]:
        self._begin("list_objects_v2", arguments)
        folder = f"{arguments['Bucket']}/"
        names = [name.removeprefix(folder) for name in self._service.objects if name.startswith(folder)]
        begin = int(arguments.get("ContinuationToken", 0))
        end = begin + self._service.page_size
        more = {"IsTruncated": True, "NextContinuationToken": str(end)} if end < len(names) else {}
        contents = [
            {"Key": key, "ETag": f'"e-{key}"', "Size": len(self._service.objects[folder + key]), "LastModified": AT}
            for key in names[begin:end]
        ]
        return ({"Contents": contents} if contents else {}) | more

    def _begin(self, operation: str, arguments: dict[str, Any]) -> None:
        call = Call(operation, self._region, arguments)
        self._service.calls.append(call)
        region = self._service.regions.get(arguments["Bucket"], self._region)
        if (error := self._service.fault(call)) is not None:
            raise error
        if region != self._region and operation != "head_bucket":
            raise s3_error("PermanentRedirect", region, status=301)


class _Body:
    """A response body, in chunks of at most 1,000 bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self._data.read(1000 if size < 0 else min(size, 1000))

    def close(self) -> None:
        self._data.close()


def with_region(region: str | None) -> dict[str, Any]:
    """A response with the region of a bucket, if there is one."""
    return {"ResponseMetadata": {"HTTPHeaders": {} if region is None else {"x-amz-bucket-region": region}}}


def s3_error(code: str, region: str | None = None, *, message: str = "said", status: int = 400) -> ClientError:
    """An error response; with the region of the bucket, if there is one."""
    response: Any = with_region(region) | {"Error": {"Code": code, "Message": message}}
    response["ResponseMetadata"]["HTTPStatusCode"] = status
    return ClientError(response, "Operation")
