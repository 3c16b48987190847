"""List files as bytes: copied from pipes and S3, decompressed by what they hold rather than by how they are called.

Pipes and S3 objects are first copied to a temporary file, as a list is read twice: once to check it before a call is
spent, once to score it.
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

from batchcl.aws.buckets import explain
from batchcl.aws.errors import error_code
from batchcl.aws.session import Aws
from batchcl.errors import SourceError, UnreachableError
from batchcl.sources.base import parse_s3_uri

__all__ = [
    "MAX_EXPANSION",
    "copy_object",
    "fetch",
    "is_gone",
    "object_chunks",
    "open_list",
    "spool_pipe",
    "spool_stdin",
    "start_of",
]

START_BYTES: Final = 256 * 1024
"""What is looked at to tell what a file is."""

MAX_EXPANSION: Final = 250
"""Key lists shrink to a tenth or a thirtieth; a file that grows more than this is made to fill disks and memory."""

_EXPANSION_FROM_BYTES: Final = 64 * 1024 * 1024
_MOST_CUTS: Final = 5
_BROKEN: Final = "the file is cut or damaged; fetch or write it anew"
_COPY_BYTES: Final = 1024 * 1024
_BUFFER_BYTES: Final = 256 * 1024
_CODECS: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHER_CODECS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}


def spool_stdin(stack: ExitStack) -> Path:
    """Copy standard input to a temporary file, which `stack` removes even while it is written. Blocks."""
    return _spool(lambda sink: shutil.copyfileobj(sys.stdin.buffer, sink), stack)


def spool_pipe(path: Path, stack: ExitStack) -> Path:
    """Copy a named pipe, such as the shell's `<(…)`, which can be read once only. Blocks; likewise."""
    with path.open("rb") as pipe:
        return _spool(lambda sink: shutil.copyfileobj(pipe, sink), stack)


async def fetch(uri: str, aws: Aws, *, region: str) -> Path:
    """Copy the S3 object at `uri` to a temporary file, which the caller removes."""
    async with aws.s3(region=region) as client:
        path = await copy_object(client, uri)
    if path is None:
        raise SourceError(f"there is no {uri}; check the key")
    return path


async def copy_object(client: Any, uri: str, *, md5: str | None = None) -> Path | None:
    """`fetch` with an open client, or None where there is no such object.

    Raises `SourceError` where the bytes haven't the checksum `md5`.
    """
    bucket, _ = parse_s3_uri(uri)
    path = _spool(lambda _: None)
    seen = hashlib.md5(usedforsecurity=False)
    try:
        async with await anyio.open_file(path, "wb") as sink:
            async for chunk in object_chunks(client, uri):
                if md5 is not None:
                    seen.update(chunk)
                await sink.write(chunk)
    except (ClientError, BotoCoreError) as error:
        path.unlink()
        if is_gone(error):
            return None
        raise explain(error, f"reading {uri}", bucket) from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SourceError(f"can't copy {uri} to {path.parent}: {error.strerror}; make room, or set TMPDIR") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if md5 is not None and seen.hexdigest() != md5.lower():
        path.unlink()
        raise SourceError(f"{uri} has the MD5 {seen.hexdigest()}, and {md5} is due: it is damaged; fetch it anew")
    return path


async def object_chunks(client: Any, uri: str) -> AsyncGenerator[bytes, None]:
    """The bytes of the S3 object at `uri`, some at a time; where an answer is cut, it goes on behind the last byte.

    Raises:
        ClientError, BotoCoreError: there was no answer, or one that the caller explains.
        SourceError: the object was changed in between.
        UnreachableError: the answers are cut again and again.
    """
    bucket, key = parse_s3_uri(uri)
    behind: dict[str, str] = {}
    count = cuts = 0
    while True:
        try:
            answer = await client.get_object(Bucket=bucket, Key=key, **behind)
        except ClientError as error:
            if behind and error_code(error) == "PreconditionFailed":
                raise SourceError(f"{uri} was changed while it was copied; leave it alone, and try again") from error
            raise
        try:
            while chunk := await answer["Body"].read(_COPY_BYTES):
                count += len(chunk)
                yield chunk
        except (BotoCoreError, aiohttp.ClientError) as error:
            cuts += 1
            if cuts > _MOST_CUTS:
                raise UnreachableError(f"reading {uri} failed: {error}; check the endpoint and the network") from error
            behind = {"IfMatch": answer["ETag"]} | ({"Range": f"bytes={count}-"} if count else {})
        else:
            return


def is_gone(error: Exception) -> bool:
    """Whether S3 says that there is no such object."""
    return isinstance(error, ClientError) and error_code(error) in {"NoSuchKey", "404"}


@contextmanager
def open_list(path: Path, name: str) -> Iterator[io.BufferedReader[Any]]:
    """The file's bytes, decompressed if it is gzip or zstd. Blocks.

    Raises:
        SourceError: the file can't be read, is cut or damaged, or grows like a decompression bomb.
    """
    try:
        with path.open("rb", buffering=0) as raw, io.BufferedReader(raw, _BUFFER_BYTES) as file:
            codec = _codec(file.peek(8), name)
            if codec is None:
                yield file
            else:
                inner = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
                yield io.BufferedReader(_Bounded(inner, file, name), _BUFFER_BYTES)
    except OSError as error:
        reason = f"{error.strerror}; check the path" if error.strerror else f"{error}: {_BROKEN}"
        raise SourceError(f"can't read {name}: {reason}") from error


def start_of(path: Path, name: str) -> bytes:
    """The first part of the file, decompressed and without the byte order mark of Windows' editors. Blocks."""
    with open_list(path, name) as file:
        return file.read(START_BYTES).removeprefix(codecs.BOM_UTF8)


class _Bounded(io.RawIOBase):
    """A decompressing stream that ends with a `SourceError` once it has grown out of all proportion."""

    def __init__(self, inner: Any, compressed: IO[bytes], name: str) -> None:
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
                f"{self._name} grows to more than {MAX_EXPANSION} times its size when it is decompressed, as no list "
                "of images does; decompress it yourself if it is meant"
            )
        return len(data)


def _codec(start: bytes, name: str) -> str | None:
    for magic, codec in _OTHER_CODECS.items():
        if start.startswith(magic):
            raise SourceError(f"{name} is compressed with {codec}; gzip and zstd are read, so recompress it")
    return next((codec for magic, codec in _CODECS.items() if start.startswith(magic)), None)


def _spool(fill: Callable[[IO[bytes]], object], stack: ExitStack | None = None) -> Path:
    """A temporary file with what `fill` writes; nothing is left behind where that fails. Raises `SourceError`."""
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
        where = "a temporary directory" if path is None else str(path.parent)
        raise SourceError(
            f"copying the list to {where} failed: {error.strerror or error}; make room there, or set TMPDIR to a "
            "directory that can be written"
        ) from error
    return path
