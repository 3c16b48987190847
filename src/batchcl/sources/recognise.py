"""From what a user named to the source it is, by its content rather than by its name."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread
import orjson

from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import Checked, Position, Source, local_image, s3_image
from batchcl.sources.directory import DirectorySource
from batchcl.sources.key_list import parse_key_line
from batchcl.sources.lines import LineSource, fetch_text, first_line, spool_pipe, spool_stdin
from batchcl.sources.manifest import ManifestParser
from batchcl.sources.s3_prefix import S3PrefixSource

__all__ = ["SourceKind", "open_sources"]

_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG")


class SourceKind(StrEnum):
    """What `--source-kind` may say."""

    PREFIX = "prefix"
    DIRECTORY = "directory"
    KEYS = "keys"
    MANIFEST = "manifest"
    IMAGE = "image"


class ImageSource:
    """One image, named by itself."""

    def __init__(self, name: str) -> None:
        self.description = name

    async def check(self) -> Checked:
        """Names the bucket of an image in S3; whether the image is there shows when it is called for."""
        return Checked(buckets=frozenset({self._image().bucket} - {""}))

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """One page of one."""
        if after is None:
            yield [await anyio.to_thread.run_sync(self._image)]

    async def contains(self, image: ImageRef) -> bool:
        """Whether it is this one."""
        own = self._image()
        return (image.bucket, image.key, image.version_id) == (own.bucket, own.key, None)

    def _image(self) -> ImageRef:
        return s3_image(self.description) if self.description.startswith("s3://") else local_image(self.description)

    @property
    def repeated(self) -> int:
        """One image is named once."""
        return 0


async def open_sources(
    names: Sequence[str],
    stack: ExitStack,
    *,
    aws: Aws,
    region: str,
    kind: SourceKind | None = None,
    skip_bad_lines: bool = False,
    leave_out: Path | None = None,
) -> list[Source]:
    """The source behind each name, in order.

    Args:
        names: `s3://bucket/prefix`, directories, files, or `-` for a key list on standard input.
        stack: removes temporary copies when it closes.
        aws: for S3.
        region: where buckets are expected: the model's.
        kind: overrides the recognition, for all names.
        skip_bad_lines: leave lines out that name no image.
        leave_out: a directory whose files belong to no source: the output root.

    Raises:
        SourceError: a name leads nowhere or to something that isn't a list of images.
    """
    if list(names).count("-") > 1:
        raise SourceError("standard input can be read once: name - only once")
    opened: list[Source] = []
    for name in names:
        if name.startswith("s3://") and kind in {None, SourceKind.PREFIX}:
            if not name.removeprefix("s3://").partition("/")[0]:
                raise SourceError(f"{name} names no bucket; write s3://bucket/prefix")
            opened.append(S3PrefixSource(name, aws, region=region))
            continue
        if name.startswith("s3://") and kind is SourceKind.IMAGE:
            opened.append(ImageSource(name))
            continue
        if name.startswith("s3://"):
            path = await fetch_text(name, aws, region=region)
            stack.callback(path.unlink, missing_ok=True)
            folder = None
        elif name == "-" or await anyio.to_thread.run_sync(_is_pipe, name):
            path = await anyio.to_thread.run_sync(spool_stdin if name == "-" else partial(spool_pipe, Path(name)))
            stack.callback(path.unlink, missing_ok=True)
            folder = Path.cwd()
        else:
            path = Path(name)
            folder = path.absolute().parent
        found = kind
        if found is None:
            found = await anyio.to_thread.run_sync(_recognise, name, path)
        opened.append(_open(found, name, path, folder, skip_bad_lines=skip_bad_lines, leave_out=leave_out))
    return opened


def _open(
    kind: SourceKind, name: str, path: Path, folder: Path | None, *, skip_bad_lines: bool, leave_out: Path | None
) -> Source:
    label = "standard input" if name == "-" else name
    match kind:
        case SourceKind.DIRECTORY:
            return DirectorySource(name, leave_out=leave_out)
        case SourceKind.MANIFEST:
            return LineSource(label, path, ManifestParser(folder), skip_bad_lines=skip_bad_lines)
        case SourceKind.KEYS:
            return LineSource(label, path, parse_key_line, skip_bad_lines=skip_bad_lines)
        case SourceKind.IMAGE:
            return ImageSource(name)
        case SourceKind.PREFIX:
            raise SourceError(f"{name} is no S3 prefix; write s3://bucket/prefix")


def _is_pipe(name: str) -> bool:
    """Whether `name` can be read only once. Blocks; what can't be looked at is left to those who read it."""
    try:
        return Path(name).is_fifo()
    except OSError:
        return False


def _recognise(name: str, path: Path) -> SourceKind:
    """The kind of a local file or directory. Blocks."""
    if "://" in name:
        raise SourceError(f"can't read {name}: a source is s3://bucket/prefix, a directory, a file, or - for stdin")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return SourceKind.DIRECTORY
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(_MAGIC):
            return SourceKind.IMAGE
        line = first_line(path)
    except FileNotFoundError as error:
        raise SourceError(f"there is no {name}; check the path, or write s3://bucket/prefix for S3") from error
    except OSError as error:
        raise SourceError(f"can't read {name}: {error.strerror}; check its permissions") from error
    return _kind_of_line(name, line)


def _kind_of_line(name: str, line: bytes) -> SourceKind:
    if not line:
        raise SourceError(f"{name} is empty; it names no image")
    if b"\0" in line:
        raise SourceError(f"{name} is neither text nor a PNG or JPEG image; name a list of images or a directory")
    if not line.lstrip().startswith(b"{"):
        return SourceKind.KEYS
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        entry = None
    if isinstance(entry, dict) and "source-ref" in entry:
        return SourceKind.MANIFEST
    raise SourceError(
        f"{name} starts like a manifest, but its first line is no JSON object with a source-ref; mend it, or say "
        "what it is with --source-kind manifest or --source-kind keys"
    )
