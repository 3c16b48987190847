"""Where lists lie: below a directory or in a bucket, with the same few questions to both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain
from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.sources.base import parse_s3_uri
from batchcl.sources.files import copy_object, is_gone, object_chunks

__all__ = ["LocalStorage", "S3Storage", "StorageLocation"]


class StorageLocation(Protocol):
    """Files by their whole names: paths, or `s3://bucket/key`."""

    async def read(self, name: str, *, most_bytes: int) -> bytes | None:
        """The file; None where there is none. Raises `SourceError` where it is larger than `most_bytes`."""
        ...

    async def fetch(self, name: str, *, md5: str | None = None) -> Path | None:
        """The file on this machine; None where there is none. Raises `SourceError` where its MD5 is another one."""
        ...

    async def folders(self, name: str) -> list[str]:
        """The names of the folders directly below, sorted."""
        ...


class LocalStorage:
    """This machine's files."""

    async def read(self, name: str, *, most_bytes: int) -> bytes | None:
        """As `StorageLocation` has it."""
        return await anyio.to_thread.run_sync(self._read, name, most_bytes, abandon_on_cancel=True)

    async def fetch(self, name: str, *, md5: str | None = None) -> Path | None:
        """The file itself, as `StorageLocation` has it."""
        return await anyio.to_thread.run_sync(self._fetch, name, md5, abandon_on_cancel=True)

    async def folders(self, name: str) -> list[str]:
        """As `StorageLocation` has it."""
        return await anyio.to_thread.run_sync(self._folders, name, abandon_on_cancel=True)

    @staticmethod
    def _read(name: str, most_bytes: int) -> bytes | None:
        try:
            with Path(name).open("rb") as file:
                data = file.read(most_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(f"can't read {name}: {error.strerror}; check its permissions") from error
        return _bounded(data, name, most_bytes)

    @staticmethod
    def _fetch(name: str, md5: str | None) -> Path | None:
        path = Path(name)
        if not path.is_file():
            return None
        if md5 is not None:
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            except OSError as error:
                raise SourceError(f"can't read {name}: {error.strerror}; check its permissions") from error
            if found != md5.lower():
                raise SourceError(f"{name} has the MD5 {found}, and {md5} is due: it is damaged; fetch it anew")
        return path

    @staticmethod
    def _folders(name: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(name or ".") if entry.is_dir())
        except OSError as error:
            raise SourceError(f"can't read the directory {name}: {error.strerror}; check the path") from error


class S3Storage:
    """The objects of S3; copies are removed with `stack`."""

    def __init__(self, aws: Aws, stack: ExitStack, *, region: str) -> None:
        self._aws = aws
        self._stack = stack
        self._region = region

    async def read(self, name: str, *, most_bytes: int) -> bytes | None:
        """As `StorageLocation` has it."""
        bucket, _ = parse_s3_uri(name)
        data = b""
        try:
            async with self._aws.s3(region=self._region) as client, aclosing(object_chunks(client, name)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > most_bytes:
                        break
        except (ClientError, BotoCoreError) as error:
            if is_gone(error):
                return None
            raise explain(error, f"reading {name}", bucket) from error
        return _bounded(data, name, most_bytes)

    async def fetch(self, name: str, *, md5: str | None = None) -> Path | None:
        """A copy, as `StorageLocation` has it."""
        async with self._aws.s3(region=self._region) as client:
            path = await copy_object(client, name, md5=md5)
        if path is not None:
            self._stack.callback(path.unlink, missing_ok=True)
        return path

    async def folders(self, name: str) -> list[str]:
        """As `StorageLocation` has it."""
        start = name.rstrip("/") + "/"
        bucket, _, prefix = start.removeprefix("s3://").partition("/")
        found = [
            each["Prefix"]
            async for page in self._pages(bucket, Prefix=prefix, Delimiter="/")
            for each in page.get("CommonPrefixes", ())
        ]
        return sorted(each.removeprefix(prefix).rstrip("/") for each in found)

    async def objects(self, prefix: str, fits: Callable[[str], object]) -> list[str]:
        """The whole names of the objects that start with `prefix` and that `fits` says yes to, sorted."""
        bucket, _, start = prefix.removeprefix("s3://").partition("/")
        pages = self._pages(bucket, Prefix=start)
        return sorted(
            [
                name
                async for page in pages
                for each in page.get("Contents", ())
                if fits(name := f"s3://{bucket}/{each['Key']}")
            ]
        )

    async def _pages(self, bucket: str, **arguments: str) -> AsyncIterator[dict[str, Any]]:
        try:
            async with self._aws.s3(region=self._region) as client:
                async for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, **arguments):
                    yield page
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"listing s3://{bucket}/{arguments['Prefix']}", bucket) from error


def _bounded(data: bytes, name: str, most_bytes: int) -> bytes:
    if len(data) > most_bytes:
        raise SourceError(f"{name} is larger than {most_bytes:,} bytes, and no such file is; check the path")
    return data
