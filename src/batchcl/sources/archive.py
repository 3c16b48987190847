"""Tar archives of images, such as WebDataset shards. Each member is an image with the name `path.tar#member`.

Nothing is unpacked, so `../` and a leading `/` in names are harmless.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import s3_error
from batchcl.aws.errors import error_code
from batchcl.errors import ErrorCode, SourceError
from batchcl.images import ArchiveMember, ImageRef, escape_name
from batchcl.sources.base import BadLine, parse_s3_uri
from batchcl.sources.files import is_not_found
from batchcl.sources.list_source import ImageChunk, ListChunk
from batchcl.sources.tar import BLOCK, Member, MemberKind, Read, TarError, is_tar, walk
from batchcl.sources.text_lists import CHUNK

__all__ = ["Archive", "TarPart", "archive_in_s3", "local_archive"]

_DECOMPRESSORS: Final = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "zstd -d"}
_EXTENSION: Final = re.compile(r"\.(tar|tgz|tar\.gz|tar\.zst|gz|zst)$", re.IGNORECASE)
_FILE_BLOCK_BYTES: Final = 4 * 1024
_OBJECT_BLOCK_BYTES: Final = 4 * 1024 * 1024
"""Read at a time from S3, where a request takes as long as the transfer of some megabytes."""

_ATTEMPTS: Final = 3
_CHANGED: Final = frozenset({"PreconditionFailed", "412"})
_AFTER_END: Final = frozenset({"InvalidRange", "416"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The identity of an archive when it was listed.

    Attributes:
        name: its name in messages.
        bucket: empty for a local file.
        key: the object's key, or the file's absolute path.
        etag: of the object; None for a file.
        last_modified: of the object or file.
    """

    name: str
    bucket: str
    key: str
    etag: str | None
    last_modified: dt.datetime

    def image(self, member: Member) -> ImageRef:
        """The image in `member`."""
        key = f"{self.key}#{member.name}"
        uri = f"s3://{self.bucket}/{key}" if self.bucket else key
        return ImageRef(
            uri=escape_name(uri),
            bucket=self.bucket,
            key=key,
            etag=self.etag,
            size_bytes=member.size,
            last_modified=self.last_modified,
            member=ArchiveMember(self.key, member.offset),
        )


def local_archive(path: Path, stack: ExitStack) -> TarPart:
    """The archive at `path`. Blocks. Raises `SourceError` if it can't be read, or is compressed."""
    absolute = os.path.abspath(path)
    try:
        modified = dt.datetime.fromtimestamp(os.stat(absolute).st_mtime, dt.UTC)
    except OSError as error:
        raise SourceError(
            f"can't read {path}: {error.strerror}; check the path", code=ErrorCode.UNREADABLE_SOURCE
        ) from error
    archive = Archive(name=str(path), bucket="", key=absolute, etag=None, last_modified=modified)
    part = TarPart(archive, _file_reader(absolute, modified), stack, block_bytes=_FILE_BLOCK_BYTES)
    part.refuse_compressed()
    return part


def archive_in_s3(client: Any, uri: str, stack: ExitStack) -> TarPart | None:
    """The archive at `uri`, or None if the object does not exist. Blocks.

    Raises:
        SourceError: it is compressed or not an archive.
        RefusedError: S3 denies access.
    """
    bucket, key = parse_s3_uri(uri)
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        if is_not_found(error):
            return None
        raise s3_error(error, f"reading {uri}", bucket) from error
    archive = Archive(
        name=uri,
        bucket=bucket,
        key=key,
        etag=head["ETag"].strip('"'),
        last_modified=head["LastModified"].astimezone(dt.UTC),
    )
    part = TarPart(archive, _object_reader(client, archive), stack, block_bytes=_OBJECT_BLOCK_BYTES)
    if not is_tar(part.refuse_compressed()):
        raise SourceError(
            f"{uri} is not a tar archive; to list the objects below it, add --source-kind prefix",
            code=ErrorCode.INVALID_ARCHIVE,
        )
    return part


class TarPart:
    """An archive as a `ListPart`. Members other than files and folders are excluded and counted by type.

    The rest of a truncated or corrupt archive counts as one bad line. The members are cached in a temporary file,
    because the archive may be gigabytes long.

    Args:
        archive: its identity.
        read: reads its bytes; raises `SourceError` if the archive has changed.
        stack: removes the temporary file.
        block_bytes: how many bytes to read at a time.
    """

    def __init__(self, archive: Archive, read: Read, stack: ExitStack, *, block_bytes: int) -> None:
        self.name = archive.name
        self._archive = archive
        self._read = read
        self._stack = stack
        self._block_bytes = block_bytes
        self._cached: Path | None = None

    def refuse_compressed(self) -> bytes:
        """The first bytes of the archive. Blocks. Raises `SourceError` with the command that decompresses it."""
        with self._source_errors():
            start = self._read(0, BLOCK)
        tool = next((tool for magic, tool in _DECOMPRESSORS.items() if start.startswith(magic)), None)
        if tool is None:
            return start
        stem = _EXTENSION.sub("", self.name)
        plain = f"{stem}.tar" if f"{stem}.tar" != self.name else f"{stem}-plain.tar"
        name, new = shlex.quote(self.name), shlex.quote(plain)
        command = f"{tool} < {name} > {new}"
        if self._archive.bucket:
            command = f"aws s3 cp {name} - | {tool} | aws s3 cp - {new}"
        raise SourceError(
            f"{self.name} is compressed, and only uncompressed tar archives are supported; decompress it with "
            f"`{command}`, and name {plain}",
            code=ErrorCode.INVALID_ARCHIVE,
        )

    def chunks(self) -> Iterator[ListChunk]:
        """See `ListPart`."""
        images: list[ImageRef] = []
        ignored: Counter[str] = Counter()
        for entry in self._entries():
            if isinstance(entry, BadLine):
                yield ImageChunk(images, [entry], dict(ignored))
                return
            if entry.kind is MemberKind.FILE:
                images.append(self._archive.image(entry))
            elif entry.kind is not MemberKind.FOLDER:  # not reported as excluded, as with directories
                ignored[entry.kind.value] += 1
            if len(images) + ignored.total() >= CHUNK:
                yield ImageChunk(images, (), dict(ignored))
                images, ignored = [], Counter()
        if images or ignored:
            yield ImageChunk(images, (), dict(ignored))

    def _entries(self) -> Iterator[Member | BadLine]:
        """The members, from the cache if there is one; otherwise from the archive, writing the cache if possible."""
        if self._cached is not None:
            yield from _read_cache(self._cached)
            return
        cache = _open_cache()
        if cache is None:
            yield from self._walk()
            return
        path = Path(cache.name)
        self._stack.callback(path.unlink, missing_ok=True)
        is_complete = True
        try:
            for entry in self._walk():
                if is_complete:
                    try:
                        cache.write(_cache_line(entry))
                    except OSError:  # the directory is full
                        is_complete = False
                yield entry
        finally:
            try:
                cache.close()
            except OSError:
                is_complete = False
        if is_complete:
            self._cached = path

    def _walk(self) -> Iterator[Member | BadLine]:
        members = walk(_buffered(self._read, self._block_bytes))
        while True:
            try:
                with self._source_errors():
                    member = next(members, None)
            except TarError as error:
                yield BadLine(0, str(error))
                return
            if member is None:
                return
            yield member

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        """Convert errors of reading to `SourceError` or another `BatchclError`."""
        try:
            yield
        except OSError as error:
            raise SourceError(
                f"can't read {self.name}: {error.strerror}; check its permissions", code=ErrorCode.UNREADABLE_SOURCE
            ) from error
        except (ClientError, BotoCoreError) as error:
            raise s3_error(error, f"reading {self.name}", self._archive.bucket) from error


def _file_reader(path: str, last_modified: dt.datetime) -> Read:
    def read(offset: int, size: int) -> bytes:
        with Path(path).open("rb") as file:  # opened for each read, which costs less than keeping it open
            if dt.datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, dt.UTC) != last_modified:
                raise _changed(path)
            file.seek(offset)
            return file.read(size)

    return read


def _object_reader(client: Any, archive: Archive) -> Read:
    """Reads ranges with boto3's `client`, which retries by itself, except for an interrupted body."""
    arguments = {"Bucket": archive.bucket, "Key": archive.key, "IfMatch": f'"{archive.etag}"'}

    def read(offset: int, size: int) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = client.get_object(**arguments, Range=f"bytes={offset}-{offset + size - 1}")
                with response["Body"] as body:
                    data: bytes = body.read(size)  # a server without range support sends the whole object
            except ClientError as error:
                if error_code(error) in _AFTER_END:
                    return b""
                if error_code(error) in _CHANGED:
                    raise _changed(archive.name) from error
                raise
            except BotoCoreError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                return data
        raise AssertionError("the last attempt returns or raises")

    return read


def _changed(name: str) -> SourceError:
    return SourceError(
        f"{name} changed after it was listed; don't change it during a run, and start a new run",
        code=ErrorCode.SOURCE_CHANGED,
    )


def _buffered(unbuffered: Read, block_bytes: int) -> Read:
    """Combines small reads that are close together into one of `block_bytes`."""
    block, begin = b"", 0

    def read(offset: int, size: int) -> bytes:
        nonlocal block, begin
        if not begin <= offset <= offset + size <= begin + len(block):
            block, begin = unbuffered(offset, max(size, block_bytes)), offset
        return block[offset - begin : offset - begin + size]

    return read


def _open_cache() -> IO[str] | None:
    """A temporary file; None if none can be created."""
    try:
        return tempfile.NamedTemporaryFile("w", prefix="batchcl-", suffix=".members", delete=False)
    except OSError:
        return None


def _cache_line(entry: Member | BadLine) -> str:
    if isinstance(entry, BadLine):
        return json.dumps([entry.reason]) + "\n"
    return json.dumps([entry.name, entry.kind, entry.offset, entry.size]) + "\n"


def _read_cache(path: Path) -> Iterator[Member | BadLine]:
    with path.open() as cache:
        for line in cache:
            name, *rest = json.loads(line)
            yield Member(name, MemberKind(rest[0]), *rest[1:]) if rest else BadLine(0, name)
