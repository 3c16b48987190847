"""Bytes that can be read from anywhere in them: a file, or an object in S3 by ranges. Everything here blocks."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any, Final, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.errors import error_code

__all__ = ["Blob", "ChangedError", "FileBlob", "ObjectBlob"]

_OBJECT_BLOCK_BYTES: Final = 4 * 1024 * 1024
"""A request to S3 takes as long as some megabytes do."""

_ATTEMPTS: Final = 3
_CHANGED: Final = frozenset({"PreconditionFailed", "412"})
_BEHIND_THE_END: Final = frozenset({"InvalidRange", "416"})


class ChangedError(Exception):
    """What is there now isn't what was listed."""


class Blob(Protocol):
    """Bytes of which none changes while they are read, and `block_bytes` of which cost as much as one does."""

    @property
    def block_bytes(self) -> int: ...  # noqa: D102 - the class tells

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from `offset` on; fewer at the end, none behind it. Safe for several threads.

        Raises `ChangedError`, or what the file system or S3's client raise.
        """
        ...


class FileBlob:
    """A local file, as long as it is as old as it was when it was listed."""

    block_bytes = 4 * 1024

    def __init__(self, path: str, *, last_modified: dt.datetime | None) -> None:
        self._path = path
        self._last_modified = last_modified

    def read(self, offset: int, size: int) -> bytes:
        """As `Blob` has it; opens the file each time, as that costs less than keeping it open would."""
        with Path(self._path).open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if self._last_modified not in {None, dt.datetime.fromtimestamp(found.st_mtime, dt.UTC)}:
                raise ChangedError(f"{self._path} has changed since it was listed")
            file.seek(offset)
            data = file.read(size)
            while data and len(data) < size and (more := file.read(size - len(data))):
                data += more
            return data


class ObjectBlob:
    """An object in S3, as long as it has the entity tag that it was listed with.

    Args:
        client: boto3's, which retries by itself but for a body that is cut.
        bucket: its name.
        key: of the object.
        etag: without quotes; None takes the object as it is.
        version_id: of the object.
    """

    block_bytes = _OBJECT_BLOCK_BYTES

    def __init__(
        self, client: Any, *, bucket: str, key: str, etag: str | None = None, version_id: str | None = None
    ) -> None:
        self._client = client
        self._arguments = {"Bucket": bucket, "Key": key}
        if etag is not None:
            self._arguments["IfMatch"] = f'"{etag}"'
        if version_id is not None:
            self._arguments["VersionId"] = version_id

    def read(self, offset: int, size: int) -> bytes:
        """As `Blob` has it: one request."""
        if not size:
            return b""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = self._client.get_object(**self._arguments, Range=f"bytes={offset}-{offset + size - 1}")
                with answer["Body"] as body:
                    data: bytes = body.read(size)  # a server that knows no ranges would send all of it
            except ClientError as error:
                code = error_code(error)
                if code in _BEHIND_THE_END:
                    return b""
                if code in _CHANGED:
                    where = f"s3://{self._arguments['Bucket']}/{self._arguments['Key']}"
                    raise ChangedError(f"{where} has changed since it was listed") from error
                raise
            except BotoCoreError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                return data
        raise AssertionError("the last attempt returns or raises")
