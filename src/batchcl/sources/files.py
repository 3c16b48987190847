"""The bytes of list files: copied from pipes and S3, and decompressed according to their first bytes, not their names.

Pipes and S3 objects are first copied to a temporary file because a list is read twice: once to check it before any
call, once to score it.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import aiohttp
import anyio
import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import s3_error
from batchcl.aws.errors import error_code
from batchcl.aws.session import Aws
from batchcl.errors import ErrorCode, SourceError, UnreachableError
from batchcl.sources.base import parse_s3_uri

__all__ = [
    "MAX_EXPANSION",
    "copy_object",
    "fetch",
    "is_not_found",
    "object_chunks",
    "open_list",
    "spool_pipe",
    "spool_stdin",
    "start_of",
]

START_BYTES: Final = 256 * 1024
"""Read to detect the format of a file."""

MAX_EXPANSION: Final = 250
"""Largest ratio of decompressed to compressed size: key lists reach 10 to 30, decompression bombs exceed it."""

_EXPANSION_FROM_BYTES: Final = 64 * 1024 * 1024
_MAX_INTERRUPTIONS: Final = 5
_CORRUPT: Final = "the file is truncated or corrupt; download or create it again"
_COPY_BYTES: Final = 1024 * 1024
_BUFFER_BYTES: Final = 256 * 1024
_CODECS: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHER_CODECS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}


def spool_stdin(stack: ExitStack) -> Path:
    """Copy standard input to a temporary file, which `stack` removes, even while it is being written. Blocks."""
    return _spool(lambda sink: shutil.copyfileobj(sys.stdin.buffer, sink), stack)


def spool_pipe(path: Path, stack: ExitStack) -> Path:
    """Copy a named pipe, such as the shell's `<(…)`, to a temporary file that `stack` removes. Blocks."""
    with path.open("rb") as pipe:
        return _spool(lambda sink: shutil.copyfileobj(pipe, sink), stack)


async def fetch(uri: str, aws: Aws, *, region: str) -> Path:
    """Copy the S3 object at `uri` to a temporary file, which the caller removes. Raises `SourceError`."""
    async with aws.s3(region=region) as client:
        path = await copy_object(client, uri)
    if path is None:
        raise SourceError(f"{uri} does not exist; check the key", code=ErrorCode.SOURCE_NOT_FOUND)
    return path


async def copy_object(client: Any, uri: str, *, md5: str | None = None) -> Path | None:
    """Copy the S3 object at `uri` to a temporary file, which the caller removes; None if it does not exist.

    Raises:
        SourceError: the MD5 of the object is not `md5`, or it can't be written.
        RefusedError: S3 denies access.
    """
    bucket, _ = parse_s3_uri(uri)
    path = _spool(lambda _: None)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        async with await anyio.open_file(path, "wb") as sink:
            async for chunk in object_chunks(client, uri):
                if md5 is not None:
                    digest.update(chunk)
                await sink.write(chunk)
    except (ClientError, BotoCoreError) as error:
        path.unlink()
        if is_not_found(error):
            return None
        raise s3_error(error, f"reading {uri}", bucket) from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SourceError(
            f"can't copy {uri} to {path.parent}: {error.strerror}; free some disk space, or set TMPDIR",
            code=ErrorCode.NO_TEMPORARY_SPACE,
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if md5 is not None and digest.hexdigest() != md5.lower():
        path.unlink()
        raise SourceError(
            f"{uri} is corrupt: its MD5 is {digest.hexdigest()}, expected {md5}; download it again",
            code=ErrorCode.CORRUPT_FILE,
        )
    return path


async def object_chunks(client: Any, uri: str) -> AsyncGenerator[bytes, None]:
    """The bytes of the S3 object at `uri` in chunks; an interrupted response is continued after the last byte received.

    Raises:
        ClientError, BotoCoreError: the request failed; for the caller to explain.
        SourceError: the object changed between two requests.
        UnreachableError: too many responses were interrupted.
    """
    bucket, key = parse_s3_uri(uri)
    continuation: dict[str, str] = {}
    received_bytes = interruptions = 0
    while True:
        try:
            response = await client.get_object(Bucket=bucket, Key=key, **continuation)
        except ClientError as error:
            if continuation and error_code(error) == "PreconditionFailed":
                raise SourceError(
                    f"{uri} changed while it was copied; try again when it is complete", code=ErrorCode.SOURCE_CHANGED
                ) from error
            raise
        try:
            while chunk := await response["Body"].read(_COPY_BYTES):
                received_bytes += len(chunk)
                yield chunk
        except (BotoCoreError, aiohttp.ClientError) as error:
            interruptions += 1
            if interruptions > _MAX_INTERRUPTIONS:
                raise UnreachableError(f"reading {uri} failed: {error}; check the endpoint and the network") from error
            continuation = {"IfMatch": response["ETag"]}
            if received_bytes:
                continuation["Range"] = f"bytes={received_bytes}-"
        else:
            return


def is_not_found(error: Exception) -> bool:
    """Whether S3 reports that the object does not exist."""
    return isinstance(error, ClientError) and error_code(error) in {"NoSuchKey", "404"}


@contextmanager
def open_list(path: Path, name: str) -> Iterator[io.BufferedReader[Any]]:
    """The file's bytes, decompressed if it is gzip or zstd. Blocks.

    Raises:
        SourceError: the file can't be read, is truncated or corrupt, or is a decompression bomb.
    """
    try:
        with path.open("rb", buffering=0) as raw, io.BufferedReader(raw, _BUFFER_BYTES) as file:
            codec = _codec(file.peek(8), name)
            if codec is None:
                yield file
            else:
                inner = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
                yield io.BufferedReader(_BoundedReader(inner, compressed=file, name=name), _BUFFER_BYTES)
    except OSError as error:
        reason = f"{error.strerror}; check the path" if error.strerror else f"{error}: {_CORRUPT}"
        code = ErrorCode.UNREADABLE_SOURCE if error.strerror else ErrorCode.CORRUPT_FILE
        raise SourceError(f"can't read {name}: {reason}", code=code) from error


def start_of(path: Path, name: str) -> bytes:
    """The first `START_BYTES` of the file, decompressed and without a byte order mark. Blocks."""
    with open_list(path, name) as file:
        return file.read(START_BYTES).removeprefix(codecs.BOM_UTF8)


class _BoundedReader(io.RawIOBase):
    """A decompressing stream that raises `SourceError` beyond `MAX_EXPANSION` times the compressed size."""

    def __init__(self, inner: Any, *, compressed: IO[bytes], name: str) -> None:
        self._inner = inner
        self._compressed = compressed
        self._name = name
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > _EXPANSION_FROM_BYTES and self._count > MAX_EXPANSION * self._compressed.tell():
            raise SourceError(
                f"{self._name} decompresses to more than {MAX_EXPANSION} times its size, like a decompression bomb; "
                "if it is a list of images, decompress it first",
                code=ErrorCode.CORRUPT_FILE,
            )
        return len(data)


def _codec(start: bytes, name: str) -> str | None:
    for magic, codec in _OTHER_CODECS.items():
        if start.startswith(magic):
            raise SourceError(
                f"{name} is compressed with {codec}, which is not supported; compress it with gzip or zstd",
                code=ErrorCode.UNSUPPORTED_SOURCE,
            )
    return next((codec for magic, codec in _CODECS.items() if start.startswith(magic)), None)


def _spool(fill: Callable[[IO[bytes]], object], stack: ExitStack | None = None) -> Path:
    """A temporary file with what `fill` writes; it is removed if that fails. Raises `SourceError`."""
    path: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(prefix="batchcl-", delete=False) as sink:
            path = Path(sink.name)
            if stack is not None:
                stack.callback(path.unlink, missing_ok=True)
            fill(sink)
    except BaseException as error:
        if path is not None:
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        directory = "a temporary directory" if path is None else str(path.parent)
        raise SourceError(
            f"copying the list to {directory} failed: {error.strerror or error}; free some disk space, or set TMPDIR "
            "to a writable directory",
            code=ErrorCode.NO_TEMPORARY_SPACE,
        ) from error
    return path
