"""Rows of results for images in a folder or bucket, and a stand-in for S3."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
from botocore.exceptions import ClientError

from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError


class Body(io.BytesIO):
    """The body of a response."""

    async def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        return super().read(size)


class FakeAws:
    """A session whose S3 has `objects`, by key: bytes, the code of an error, or "no credentials".

    It counts concurrent reads.

    `width`: each read waits until this many are open at the same time.
    """

    def __init__(self, objects: Mapping[str, bytes | str], *, width: int = 1) -> None:
        self.objects = objects
        self.settings = SimpleNamespace(region=None, connection=SimpleNamespace(is_signed=False))
        self.region = "us-east-1"
        self.asked: list[dict[str, Any]] = []
        self.opened: list[tuple[str, int]] = []
        self.most_open = 0
        self._open = 0
        self._width = width
        self._full = anyio.Event()

    @property
    def aws(self) -> Aws:
        return cast("Aws", self)

    @asynccontextmanager
    async def s3(self, *, region: str, connections: int) -> AsyncIterator[FakeAws]:
        self.opened.append((region, connections))
        yield self

    async def get_object(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        if self._open == self._width:
            self._full.set()
        await self._full.wait()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self._open -= 1
        found = self.objects.get(arguments["Key"], "NoSuchKey")
        if found == "no credentials":
            raise CredentialsError("no AWS credentials found")
        if isinstance(found, str):
            raise ClientError({"Error": {"Code": found, "Message": "m"}}, "GetObject")
        return {"Body": Body(found), "ContentLength": len(found), "ETag": f'"{len(found)}"'}
