"""Tar archives of images, such as WebDataset's shards: each member is an image of its own.

Its name is `path.tar#member`. Names are only names: nothing is unpacked, so `../` and a leading `/` lead nowhere.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain
from batchcl.errors import SourceError
from batchcl.images import ArchiveMember, ImageRef, escaped
from batchcl.reading.archives import content_of
from batchcl.reading.blobs import Blob, ChangedError, FileBlob, ObjectBlob
from batchcl.reading.gunzip import CutError, GrowsError
from batchcl.reading.tar import BLOCK, Member, MemberKind, Read, TarError, is_tar, walk
from batchcl.sources.base import BadLine, parse_s3_uri
from batchcl.sources.files import is_gone
from batchcl.sources.lines import CHUNK
from batchcl.sources.listed import Chunk, ImageChunk

__all__ = ["Archive", "TarPart", "archive_in_s3", "local_archive"]

_ZSTD: Final = b"\x28\xb5\x2f\xfd"
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
    """The archive at `path`. Blocks. Raises `SourceError` where it can't be looked at."""
    absolute = os.path.abspath(path)  # noqa: PTH100 - links stay as they are
    try:
        modified = dt.datetime.fromtimestamp(os.stat(absolute).st_mtime, dt.UTC)  # noqa: PTH116 - beside abspath
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror}; check the path") from error
    archive = Archive(name=str(path), bucket="", key=absolute, etag=None, last_modified=modified)
    return TarPart(archive, lambda: FileBlob(absolute, last_modified=modified), stack)


def archive_in_s3(client: Any, uri: str, stack: ExitStack) -> TarPart | None:
    """The archive at `uri`, or None where there is no such object. Blocks.

    Raises:
        SourceError: it is none by its bytes.
        RefusedError: S3 refuses to tell.
    """
    bucket, key = parse_s3_uri(uri)
    try:
        found = client.head_object(Bucket=bucket, Key=key)
        etag = found["ETag"].strip('"')
        start = content_of(ObjectBlob(client, bucket=bucket, key=key, etag=etag)).read(0, BLOCK)
    except (ClientError, BotoCoreError) as error:
        if is_gone(error):
            return None
        raise explain(error, f"reading {uri}", bucket) from error
    except (CutError, zlib.error):
        start = b""
    if not is_tar(start):
        raise SourceError(f"{uri} is no tar archive by its bytes; for the objects below it say --source-kind prefix")
    archive = Archive(
        name=uri, bucket=bucket, key=key, etag=etag, last_modified=found["LastModified"].astimezone(dt.UTC)
    )
    return TarPart(archive, lambda: ObjectBlob(client, bucket=bucket, key=key, etag=etag), stack)


class TarPart:
    """An archive as a part of a list. What is neither file nor folder is left out, and counted by its kind.

    Where the archive is cut or damaged, what follows is one bad line.

    Args:
        archive: which one.
        blob: opens its bytes, which have to be those of `archive`.
        stack: removes what was noted down.
    """

    def __init__(self, archive: Archive, blob: Callable[[], Blob], stack: ExitStack) -> None:
        self.name = archive.name
        self._archive = archive
        self._blob = blob
        self._stack = stack
        self._noted: Path | None = None

    def chunks(self) -> Iterator[Chunk]:
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
        """The members, read in the archive once and from then on in notes, as it may be gigabytes long."""
        if self._noted is not None:
            yield from _noted(self._noted)
            return
        try:
            with self._explained():
                content = content_of(self._blob())
                start = content.read(0, len(_ZSTD))
        except _Broken as error:
            yield BadLine(0, str(error))
            return
        if start == _ZSTD:
            raise SourceError(f"{self.name} is a tar archive in zstd; plain and gzip ones are read: recompress it")
        with tempfile.NamedTemporaryFile("w", prefix="batchcl-", suffix=".members", delete=False) as notes:
            path = Path(notes.name)
            self._stack.callback(path.unlink, missing_ok=True)
            for entry in self._walked(content):
                notes.write(_note(entry))
                yield entry
        self._noted = path

    def _walked(self, content: Blob) -> Iterator[Member | BadLine]:
        members = walk(_buffered(content))
        while True:
            try:
                with self._explained():
                    member = next(members, None)
            except _Broken as error:
                yield BadLine(0, str(error))
                return
            if member is None:
                return
            yield member

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors in words; `_Broken` for those that leave what came before as it is."""
        name, bucket = self.name, self._archive.bucket
        try:
            yield
        except (TarError, CutError, GrowsError) as error:
            raise _Broken(str(error)) from error
        except zlib.error as error:
            raise _Broken(f"its gzip stream is damaged: {error}") from error
        except ChangedError as error:
            raise SourceError(f"{error}; leave it alone during a run, and begin another one") from error
        except OSError as error:
            raise SourceError(f"can't read {name}: {error.strerror}; check its permissions") from error
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"reading {name}", bucket) from error


class _Broken(Exception):  # noqa: N818 - it is told as a bad line
    """From here on the archive can't be read."""


def _buffered(content: Blob) -> Read:
    """Reads of a few bytes, of which those that lie close together cost one."""
    held, begin = b"", 0

    def read(offset: int, size: int) -> bytes:
        nonlocal held, begin
        if not begin <= offset <= offset + size <= begin + len(held):
            try:
                held = content.read(offset, max(size, content.block_bytes))
            except (CutError, GrowsError, zlib.error):
                held = content.read(offset, size)  # it may be broken behind what is asked for
            begin = offset
        return held[offset - begin : offset - begin + size]

    return read


def _note(entry: Member | BadLine) -> str:
    if isinstance(entry, BadLine):
        return json.dumps([entry.reason]) + "\n"
    return json.dumps([entry.name, entry.kind, entry.offset, entry.size]) + "\n"


def _noted(path: Path) -> Iterator[Member | BadLine]:
    with path.open() as notes:
        for line in notes:
            name, *rest = json.loads(line)
            yield Member(name, MemberKind(rest[0]), *rest[1:]) if rest else BadLine(0, name)
