"""Tar archives of images, such as WebDataset's shards: each member is an image of its own.

Its name is `path.tar#member`. Names are only names: nothing is unpacked, so `../` and a leading `/` lead nowhere.
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

from batchcl.aws.buckets import explain
from batchcl.aws.errors import error_code
from batchcl.errors import SourceError
from batchcl.images import ArchiveMember, ImageRef, escaped
from batchcl.sources.base import BadLine, parse_s3_uri
from batchcl.sources.files import is_gone
from batchcl.sources.list_source import ImageChunk, ListChunk
from batchcl.sources.tar import BLOCK, Member, MemberKind, Read, TarError, is_tar, walk
from batchcl.sources.text_lists import CHUNK

__all__ = ["Archive", "TarPart", "archive_in_s3", "local_archive"]

_DECOMPRESSORS: Final = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "zstd -d"}
_ENDING: Final = re.compile(r"\.(tar|tgz|tar\.gz|tar\.zst|gz|zst)$", re.IGNORECASE)
_FILE_BLOCK_BYTES: Final = 4 * 1024
_OBJECT_BLOCK_BYTES: Final = 4 * 1024 * 1024
"""A request to S3 takes as long as some megabytes do."""

_ATTEMPTS: Final = 3
_CHANGED: Final = frozenset({"PreconditionFailed", "412"})
_BEHIND_THE_END: Final = frozenset({"InvalidRange", "416"})
_UNCOUNTED: Final = MemberKind.FOLDER
"""A folder holds images and is none, as that of a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An archive as it was found.

    Attributes:
        name: as messages call it.
        bucket: empty for a local file.
        key: of the object, or the file's absolute path.
        etag: of the object.
        last_modified: of either.
    """

    name: str
    bucket: str
    key: str
    etag: str | None
    last_modified: dt.datetime

    def image(self, member: Member) -> ImageRef:
        """The image that `member` is."""
        key = f"{self.key}#{member.name}"
        uri = f"s3://{self.bucket}/{key}" if self.bucket else key
        return ImageRef(
            uri=escaped(uri),
            bucket=self.bucket,
            key=key,
            etag=self.etag,
            size_bytes=member.size,
            last_modified=self.last_modified,
            member=ArchiveMember(self.key, member.offset),
        )


def local_archive(path: Path, stack: ExitStack) -> TarPart:
    """The archive at `path`. Blocks. Raises `SourceError` where it can't be read, or is compressed."""
    absolute = os.path.abspath(path)
    try:
        modified = dt.datetime.fromtimestamp(os.stat(absolute).st_mtime, dt.UTC)
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror}; check the path") from error
    archive = Archive(name=str(path), bucket="", key=absolute, etag=None, last_modified=modified)
    part = TarPart(archive, _file_reader(absolute, modified), stack, block_bytes=_FILE_BLOCK_BYTES)
    part.refuse_compressed()
    return part


def archive_in_s3(client: Any, uri: str, stack: ExitStack) -> TarPart | None:
    """The archive at `uri`, or None where there is no such object. Blocks.

    Raises:
        SourceError: by its bytes it is compressed, or no archive.
        RefusedError: S3 refuses to tell.
    """
    bucket, key = parse_s3_uri(uri)
    try:
        found = client.head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        if is_gone(error):
            return None
        raise explain(error, f"reading {uri}", bucket) from error
    etag = found["ETag"].strip('"')
    archive = Archive(
        name=uri, bucket=bucket, key=key, etag=etag, last_modified=found["LastModified"].astimezone(dt.UTC)
    )
    part = TarPart(archive, _object_reader(client, archive), stack, block_bytes=_OBJECT_BLOCK_BYTES)
    if not is_tar(part.refuse_compressed()):
        raise SourceError(f"{uri} is no tar archive by its bytes; for the objects below it say --source-kind prefix")
    return part


class TarPart:
    """An archive as a part of a list. What is neither file nor folder is left out, and counted by its kind.

    Where the archive is cut or damaged, what follows is one bad line.

    Args:
        archive: which one.
        read: reads its bytes; raises `SourceError` once they aren't those of `archive` any more.
        stack: removes the temporary list of its members.
        block_bytes: to read at a time, where so many cost as much as one does.
    """

    def __init__(self, archive: Archive, read: Read, stack: ExitStack, *, block_bytes: int) -> None:
        self.name = archive.name
        self._archive = archive
        self._read = read
        self._stack = stack
        self._block_bytes = block_bytes
        self._noted: Path | None = None

    def refuse_compressed(self) -> bytes:
        """The first bytes of the archive. Blocks. Raises `SourceError` with the command that decompresses it."""
        with self._explained():
            start = self._read(0, BLOCK)
        tool = next((tool for magic, tool in _DECOMPRESSORS.items() if start.startswith(magic)), None)
        if tool is None:
            return start
        stem = _ENDING.sub("", self.name)
        plain = f"{stem}.tar" if f"{stem}.tar" != self.name else f"{stem}-plain.tar"
        name, new = shlex.quote(self.name), shlex.quote(plain)
        command = f"{tool} < {name} > {new}"
        if self._archive.bucket:
            command = f"aws s3 cp {name} - | {tool} | aws s3 cp - {new}"
        raise SourceError(
            f"{self.name} is compressed, and only plain tar archives are read; decompress it with `{command}`, and "
            f"name {plain}"
        )

    def chunks(self) -> Iterator[ListChunk]:
        """The members, some at a time."""
        images: list[ImageRef] = []
        left_out: Counter[str] = Counter()
        for entry in self._entries():
            if isinstance(entry, BadLine):
                yield ImageChunk(images, [entry], dict(left_out))
                return
            if entry.kind is MemberKind.FILE:
                images.append(self._archive.image(entry))
            elif entry.kind is not _UNCOUNTED:
                left_out[entry.kind.value] += 1
            if len(images) + left_out.total() >= CHUNK:
                yield ImageChunk(images, (), dict(left_out))
                images, left_out = [], Counter()
        if images or left_out:
            yield ImageChunk(images, (), dict(left_out))

    def _entries(self) -> Iterator[Member | BadLine]:
        """The members, read in the archive once and from then on in a temporary file: it may be gigabytes long."""
        if self._noted is not None:
            yield from _noted(self._noted)
            return
        notes = _open_notes()
        if notes is None:  # it is read again instead
            yield from self._walked()
            return
        path = Path(notes.name)
        self._stack.callback(path.unlink, missing_ok=True)
        is_complete = True
        try:
            for entry in self._walked():
                if is_complete:
                    try:
                        notes.write(_note(entry))
                    except OSError:  # the directory is full
                        is_complete = False
                yield entry
        finally:
            try:
                notes.close()
            except OSError:
                is_complete = False
        if is_complete:
            self._noted = path

    def _walked(self) -> Iterator[Member | BadLine]:
        members = walk(_buffered(self._read, self._block_bytes))
        while True:
            try:
                with self._explained():
                    member = next(members, None)
            except TarError as error:
                yield BadLine(0, str(error))
                return
            if member is None:
                return
            yield member

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of reading in words."""
        try:
            yield
        except OSError as error:
            raise SourceError(f"can't read {self.name}: {error.strerror}; check its permissions") from error
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"reading {self.name}", self._archive.bucket) from error


def _file_reader(path: str, last_modified: dt.datetime) -> Read:
    def read(offset: int, size: int) -> bytes:
        with Path(path).open("rb") as file:  # each time, as that costs less than keeping it open would
            if dt.datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, dt.UTC) != last_modified:
                raise _changed(path)
            file.seek(offset)
            return file.read(size)

    return read


def _object_reader(client: Any, archive: Archive) -> Read:
    """Reads ranges by boto3's `client`, which retries by itself but for a body that is cut."""
    named = {"Bucket": archive.bucket, "Key": archive.key, "IfMatch": f'"{archive.etag}"'}

    def read(offset: int, size: int) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = client.get_object(**named, Range=f"bytes={offset}-{offset + size - 1}")
                with answer["Body"] as body:
                    data: bytes = body.read(size)  # a server that knows no ranges would send all of it
            except ClientError as error:
                if error_code(error) in _BEHIND_THE_END:
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
    return SourceError(f"{name} has changed since it was listed; leave it alone during a run, and begin another one")


def _buffered(content: Read, block_bytes: int) -> Read:
    """Reads of a few bytes, of which those that lie close together cost one."""
    held, begin = b"", 0

    def read(offset: int, size: int) -> bytes:
        nonlocal held, begin
        if not begin <= offset <= offset + size <= begin + len(held):
            held, begin = content(offset, max(size, block_bytes)), offset
        return held[offset - begin : offset - begin + size]

    return read


def _open_notes() -> IO[str] | None:
    """A temporary file; None where none can be made."""
    try:
        return tempfile.NamedTemporaryFile("w", prefix="batchcl-", suffix=".members", delete=False)
    except OSError:
        return None


def _note(entry: Member | BadLine) -> str:
    if isinstance(entry, BadLine):
        return json.dumps([entry.reason]) + "\n"
    return json.dumps([entry.name, entry.kind, entry.offset, entry.size]) + "\n"


def _noted(path: Path) -> Iterator[Member | BadLine]:
    with path.open() as notes:
        for line in notes:
            name, *rest = json.loads(line)
            yield Member(name, MemberKind(rest[0]), *rest[1:]) if rest else BadLine(0, name)
