"""Reads lists and their data files from a directory or an S3 bucket, with one interface."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import s3_error
from batchcl.aws.session import Aws
from batchcl.errors import ErrorCode, SourceError
from batchcl.sources.base import parse_s3_uri
from batchcl.sources.files import copy_object, is_not_found, object_chunks

__all__ = ["LocalStorage", "S3Storage", "StorageLocation"]


class StorageLocation(Protocol):
    """Files by their full names: paths, or `s3://bucket/key`."""

    async def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """The file's content; None if it does not exist. Raises `SourceError` if it is larger than `max_bytes`."""
        ...

    async def fetch(self, name: str, *, md5: str | None = None) -> Path | None:
        """A local path of the file; None if it does not exist. Raises `SourceError` if its MD5 is not `md5`."""
        ...

    async def folders(self, name: str) -> list[str]:
        """The names of the folders directly below `name`, sorted."""
        ...


class LocalStorage:
    """Local files."""

    async def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """See `StorageLocation`."""
        return await anyio.to_thread.run_sync(self._read, name, max_bytes, abandon_on_cancel=True)

    async def fetch(self, name: str, *, md5: str | None = None) -> Path | None:
        """See `StorageLocation`; returns the path of the file itself."""
        return await anyio.to_thread.run_sync(self._fetch, name, md5, abandon_on_cancel=True)

    async def folders(self, name: str) -> list[str]:
        """See `StorageLocation`."""
        return await anyio.to_thread.run_sync(self._folders, name, abandon_on_cancel=True)

    @staticmethod
    def _read(name: str, max_bytes: int) -> bytes | None:
        try:
            with Path(name).open("rb") as file:
                data = file.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(
                f"can't read {name}: {error.strerror}; check its permissions", code=ErrorCode.UNREADABLE_SOURCE
            ) from error
        return _checked_size(data, name, max_bytes)

    @staticmethod
    def _fetch(name: str, md5: str | None) -> Path | None:
        path = Path(name)
        if not path.is_file():
            return None
        if md5 is not None:
            try:
                with path.open("rb") as file:
                    actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            except OSError as error:
                raise SourceError(
                    f"can't read {name}: {error.strerror}; check its permissions", code=ErrorCode.UNREADABLE_SOURCE
                ) from error
            if actual != md5.lower():
                raise SourceError(
                    f"{name} is corrupt: its MD5 is {actual}, expected {md5}; download it again",
                    code=ErrorCode.CORRUPT_FILE,
                )
        return path

    @staticmethod
    def _folders(name: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(name or ".") if entry.is_dir())
        except OSError as error:
            raise SourceError(
                f"can't read the directory {name}: {error.strerror}; check the path", code=ErrorCode.UNREADABLE_SOURCE
            ) from error


class S3Storage:
    """Objects in S3. Closing `stack` removes the local copies."""

    def __init__(self, aws: Aws, stack: ExitStack, *, region: str) -> None:
        self._aws = aws
        self._stack = stack
        self._region = region

    async def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """See `StorageLocation`."""
        bucket, _ = parse_s3_uri(name)
        data = b""
        try:
            async with self._aws.s3(region=self._region) as client, aclosing(object_chunks(client, name)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > max_bytes:
                        break
        except (ClientError, BotoCoreError) as error:
            if is_not_found(error):
                return None
            raise s3_error(error, f"reading {name}", bucket) from error
        return _checked_size(data, name, max_bytes)

    async def fetch(self, name: str, *, md5: str | None = None) -> Path | None:
        """See `StorageLocation`; returns the path of a temporary copy."""
        async with self._aws.s3(region=self._region) as client:
            path = await copy_object(client, name, md5=md5)
        if path is not None:
            self._stack.callback(path.unlink, missing_ok=True)
        return path

    async def folders(self, name: str) -> list[str]:
        """See `StorageLocation`."""
        bucket, _, prefix = f"{name.rstrip('/')}/".removeprefix("s3://").partition("/")
        return sorted(
            [
                entry["Prefix"].removeprefix(prefix).rstrip("/")
                async for page in self._pages(bucket, Prefix=prefix, Delimiter="/")
                for entry in page.get("CommonPrefixes", ())
            ]
        )

    async def objects(self, prefix: str, matches: Callable[[str], object]) -> list[str]:
        """The URIs of the objects below `prefix` for which `matches(uri)` is true, sorted."""
        bucket, _, key_prefix = prefix.removeprefix("s3://").partition("/")
        return sorted(
            [
                uri
                async for page in self._pages(bucket, Prefix=key_prefix)
                for entry in page.get("Contents", ())
                if matches(uri := f"s3://{bucket}/{entry['Key']}")
            ]
        )

    async def _pages(self, bucket: str, **arguments: str) -> AsyncIterator[dict[str, Any]]:
        try:
            async with self._aws.s3(region=self._region) as client:
                async for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, **arguments):
                    yield page
        except (ClientError, BotoCoreError) as error:
            raise s3_error(error, f"listing s3://{bucket}/{arguments['Prefix']}", bucket) from error


def _checked_size(data: bytes, name: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise SourceError(
            f"{name} is larger than {max_bytes:,} bytes, too large for such a file; check the path",
            code=ErrorCode.UNSUPPORTED_SOURCE,
        )
    return data
