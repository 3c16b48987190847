"""Opens the sources that a user named. The format of a local file is detected by its content, not by its name."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import translate
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from batchcl.aws.buckets import BucketChecks
from batchcl.aws.session import Aws
from batchcl.choices import SourceKind, Transport
from batchcl.errors import ErrorCode, SourceError
from batchcl.images import ImageRef, Position
from batchcl.runs.layout import FOLDERS
from batchcl.sources.base import (
    INVENTORY_MANIFEST,
    Columns,
    Source,
    SourceCheck,
    local_image,
    refuse_arn,
    refuse_url,
    s3_image,
)
from batchcl.sources.deduplication import NO_NAMES

if TYPE_CHECKING:
    from batchcl.sources.list_source import ListPart, ListSource
    from batchcl.sources.storage import S3Storage

__all__ = ["ImageSource", "ListOptions", "is_read_once", "open_sources"]

_LIST_EXTENSION: Final = re.compile(
    r"\.(txt|csv|tsv|json|jsonl|ndjson|manifest|parquet|orc|list|lst)(\.(gz|zst))?$|/symlink\.txt$", re.IGNORECASE
)
"""Names of S3 objects that are opened as lists; other names, except those of archives, are prefixes."""

_ARCHIVE_EXTENSION: Final = re.compile(r"\.(tar(\.(gz|zst))?|tgz)$", re.IGNORECASE)

_WILDCARD: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """How sources are opened and lists are read.

    Attributes:
        kind: the format of all sources, instead of detecting it.
        columns: for tables: the columns that name the image.
        uri_field: for JSON Lines: the field that names the image.
        attribute: for manifests: the label attribute to read.
        all_versions: for inventories: keep versions other than the latest.
        as_of: for inventories: choose the newest one of this day or earlier.
        any_extension: for prefixes, directories, archives and inventories: accept any file name extension.
        skip_bad_lines: skip lines that don't name an image.
    """

    kind: SourceKind | None = None
    columns: Columns = field(default_factory=Columns)
    uri_field: str | None = None
    attribute: str | None = None
    all_versions: bool = False
    as_of: str | None = None
    any_extension: bool = False
    skip_bad_lines: bool = False


@dataclass(frozen=True, slots=True)
class _ListFile:
    """A local list file or copy; its paths are relative to `folder`, None if it must not name local files."""

    label: str
    path: Path
    folder: Path | None


async def open_sources(
    names: Sequence[str],
    stack: ExitStack,
    *,
    aws: Aws,
    region: str,
    options: ListOptions | None = None,
    out: str | None = None,
    transport: Transport = Transport.AIOHTTP,
    buckets: BucketChecks | None = None,
) -> list[Source]:
    """The source for each name, in order.

    Args:
        names: `s3://bucket/prefix`, directories, files, globs of list files or archives, or `-` for a list on
            standard input.
        stack: removes temporary copies when it closes.
        aws: for S3.
        region: the model's region, where buckets are expected.
        options: how lists are read.
        out: the output root, an absolute path or `s3://bucket[/prefix]`; its files are excluded from all sources.
        transport: for the listings of prefixes.
        buckets: finds the region of buckets; by default a new one for `region`.

    Raises:
        SourceError: a name does not exist or is not a list of images.
    """
    if list(names).count("-") > 1:
        raise SourceError(
            "- is given twice: standard input can be read only once; remove one", code=ErrorCode.INVALID_ARGUMENT
        )
    opener = _SourceOpener(
        stack,
        aws=aws,
        region=region,
        options=options or ListOptions(),
        out=out,
        transport=transport,
        buckets=buckets or BucketChecks(aws, region=region),
    )
    return [await opener.open(name) for name in names]


class ImageSource:
    """A single image."""

    exhaustive = False
    is_explicit = True
    repeats = NO_NAMES

    def __init__(self, name: str) -> None:
        self.description = name

    async def check(self) -> SourceCheck:
        """See `Source`; a missing image fails when it is scored."""
        return SourceCheck(buckets=frozenset({self._image().bucket} - {""}))

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """See `Source`; one page with one image."""
        if after is None:
            yield [await anyio.to_thread.run_sync(self._image)]

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """See `Source`."""
        own = self._image()
        return [(image.bucket, image.key) == (own.bucket, own.key) for image in images]

    def _image(self) -> ImageRef:
        return s3_image(self.description) if self.description.startswith("s3://") else local_image(self.description)


class _SourceOpener:
    def __init__(
        self,
        stack: ExitStack,
        *,
        aws: Aws,
        region: str,
        options: ListOptions,
        out: str | None,
        transport: Transport,
        buckets: BucketChecks,
    ) -> None:
        self._stack = stack
        self._aws = aws
        self._region = region
        self._options = options
        self._out = out
        self._transport = transport
        self._buckets = buckets

    @cached_property
    def _s3(self) -> S3Storage:
        from batchcl.sources.storage import S3Storage

        return S3Storage(self._aws, self._stack, region=self._region)

    async def open(self, name: str) -> Source:
        kind = self._options.kind
        refuse_arn(name)
        if name.startswith("s3://"):
            return await self._open_s3(name)
        refuse_url(name, what="a source")
        if kind is SourceKind.PREFIX:
            raise SourceError(
                f"{name} is not an S3 prefix; write s3://bucket/prefix", code=ErrorCode.UNSUPPORTED_SOURCE
            )
        if kind is SourceKind.DIRECTORY:
            return await anyio.to_thread.run_sync(self._directory, name, abandon_on_cancel=True)
        if kind is SourceKind.IMAGE:
            return ImageSource(name)
        if kind is SourceKind.INVENTORY:
            return await self._inventory(name)
        return await self._open_local(name)

    async def _open_local(self, name: str) -> Source:
        """A local name whose kind is not given, or is that of a list file."""
        if await anyio.to_thread.run_sync(is_read_once, name, abandon_on_cancel=True):
            from batchcl.sources.files import spool_pipe, spool_stdin

            spool = partial(spool_stdin, self._stack) if name == "-" else partial(spool_pipe, Path(name), self._stack)
            path = await anyio.to_thread.run_sync(spool, abandon_on_cancel=True)
            label = "standard input" if name == "-" else name
            return await self._list_of_files(label, [_ListFile(label, path, Path.cwd())])
        path_kind = await anyio.to_thread.run_sync(_local_path_kind, name, abandon_on_cancel=True)
        if path_kind is _LocalPathKind.FOLDER:
            if self._options.as_of is not None or await anyio.to_thread.run_sync(
                _contains_inventories, name, abandon_on_cancel=True
            ):
                return await self._inventory(name)
            return await anyio.to_thread.run_sync(self._directory, name, abandon_on_cancel=True)
        if path_kind is _LocalPathKind.GLOB:
            return await self._list_of_files(
                name, await anyio.to_thread.run_sync(_matching_files, name, abandon_on_cancel=True)
            )
        return await self._list_of_files(name, [_local_file(name)])

    async def _open_s3(self, name: str) -> Source:
        kind, options = self._options.kind, self._options
        if not name.removeprefix("s3://").partition("/")[0]:
            raise SourceError(f"{name} has no bucket; write s3://bucket/prefix", code=ErrorCode.UNSUPPORTED_SOURCE)
        if kind is SourceKind.IMAGE:
            return ImageSource(name)
        if kind is SourceKind.INVENTORY or (kind is None and options.as_of is not None):
            return await self._inventory(name)
        if kind is SourceKind.TAR or (kind is None and _ARCHIVE_EXTENSION.search(name)):
            return await self._tar_archives(name)
        if kind is SourceKind.DIRECTORY:
            raise SourceError(
                f"{name} is not a local directory; remove --source-kind, or use --source-kind prefix",
                code=ErrorCode.UNSUPPORTED_SOURCE,
            )
        is_list_name = _LIST_EXTENSION.search(name) is not None
        if kind is SourceKind.PREFIX or (kind is None and not is_list_name) or name.endswith("/"):
            return await self._prefix(name)
        if _WILDCARD.search(name):
            return await self._list_of_files(name, await self._matching_object_copies(name))
        path = await self._s3.fetch(name)
        if path is None and kind is None:
            return await self._prefix(name)
        if path is None:
            raise SourceError(f"{name} does not exist; check the key", code=ErrorCode.SOURCE_NOT_FOUND)
        return await self._list_of_files(name, [_ListFile(name, path, None)])

    def _directory(self, name: str) -> Source:
        """Blocks."""
        from batchcl.sources.directory import DirectorySource

        if self._out is None or self._out.startswith("s3://"):
            return DirectorySource(name, is_explicit=self._options.any_extension)
        root, source = Path(self._out).resolve(), Path(name).resolve()
        for folder in FOLDERS:
            if source.is_relative_to(root / folder):
                raise SourceError(
                    f"{name} is inside {folder}/ of the output root {root}; name another folder",
                    code=ErrorCode.SOURCE_IN_OUTPUT_ROOT,
                )
        is_root = source == root
        return DirectorySource(
            name,
            leave_out=[root / folder for folder in FOLDERS] if is_root else [root],
            is_explicit=self._options.any_extension,
        )

    async def _prefix(self, name: str) -> Source:
        from batchcl.sources.s3_prefix import S3PrefixSource

        return S3PrefixSource(
            name,
            self._aws,
            region=await self._region_of(name),
            transport=self._transport,
            leave_out=self._output_prefixes_below(name),
            is_explicit=self._options.any_extension,
        )

    def _output_prefixes_below(self, name: str) -> tuple[str, ...]:
        """The key prefixes below the S3 prefix `name` that belong to the output root."""
        bucket, _, prefix = name.removeprefix("s3://").partition("/")
        if self._out is None or f"{self._out}/".partition(f"s3://{bucket}/")[0]:
            return ()
        root = f"{self._out}/".removeprefix(f"s3://{bucket}/")
        folders = tuple(f"{root}{folder}/" for folder in FOLDERS)
        if prefix.startswith(folders):
            raise SourceError(
                f"{name} is inside results/, failures/ or runs/ of the output root {self._out}; name another prefix",
                code=ErrorCode.SOURCE_IN_OUTPUT_ROOT,
            )
        if root.startswith(prefix) and prefix.rstrip("/") != root.rstrip("/"):
            return (root,)
        return tuple(folder for folder in folders if folder.startswith(prefix))

    async def _region_of(self, name: str) -> str:
        """The region of the bucket of an S3 URI."""
        return await self._buckets.region_of(name.removeprefix("s3://").partition("/")[0])

    async def _tar_archives(self, name: str) -> Source:
        """The archive in S3, or the archives that match a glob; if there is none, the prefix of that name."""
        from batchcl.sources.archive import archive_in_s3

        uris = await self._matching_objects(name) if _WILDCARD.search(name) else [name]
        region = await self._region_of(name)
        client = await anyio.to_thread.run_sync(lambda: self._aws.blocking_s3(region=region))
        self._stack.callback(client.close)
        parts = []
        for uri in uris:
            part = await anyio.to_thread.run_sync(archive_in_s3, client, uri, self._stack, abandon_on_cancel=True)
            if part is not None:
                parts.append(part)
        if not parts and self._options.kind is None:
            return await self._prefix(name)
        if not parts:
            raise SourceError(f"{name} does not exist; check the key", code=ErrorCode.SOURCE_NOT_FOUND)
        return self._list_source(name, parts, is_explicit=False)

    async def _matching_object_copies(self, pattern: str) -> list[_ListFile]:
        matching = await self._matching_objects(pattern)
        files = [_ListFile(uri, path, None) for uri in matching if (path := await self._s3.fetch(uri)) is not None]
        if not files:
            raise SourceError(f"no object matches {pattern}; check the pattern", code=ErrorCode.SOURCE_NOT_FOUND)
        return files

    async def _matching_objects(self, pattern: str) -> list[str]:
        literal = _WILDCARD.split(pattern, maxsplit=1)[0]
        matches = re.compile(translate(pattern)).match
        matching = [uri for uri in await self._s3.objects(literal, matches) if not uri.endswith("/")]
        if not matching:
            raise SourceError(f"no object matches {pattern}; check the pattern", code=ErrorCode.SOURCE_NOT_FOUND)
        return matching

    async def _inventory(self, name: str) -> Source:
        from batchcl.sources.inventory import open_inventory
        from batchcl.sources.storage import LocalStorage

        options = self._options
        in_s3 = name.startswith("s3://")
        parts = await open_inventory(
            name if in_s3 else _absolute(name),
            self._s3 if in_s3 else LocalStorage(),
            all_versions=options.all_versions,
            as_of=options.as_of,
        )
        return self._list_source(name, parts, is_explicit=False)

    def _list_source(self, name: str, parts: Sequence[ListPart], *, is_explicit: bool) -> ListSource:
        from batchcl.sources.list_source import ListSource

        options = self._options
        return ListSource(
            name, parts, skip_bad_lines=options.skip_bad_lines, is_explicit=is_explicit or options.any_extension
        )

    async def _list_of_files(self, name: str, files: Sequence[_ListFile]) -> Source:
        """One source of several files; the format of each is detected separately."""
        kinds = [await anyio.to_thread.run_sync(self._detected_kind, file, abandon_on_cancel=True) for file in files]
        if kinds == [SourceKind.IMAGE]:
            if name.startswith("s3://"):
                raise SourceError(
                    f"{name} has the name of a list but is an image; add --source-kind image or --source-kind prefix",
                    code=ErrorCode.UNKNOWN_LIST_FORMAT,
                )
            return ImageSource(name)
        if kinds == [SourceKind.INVENTORY]:
            return await self._inventory(name)
        parts = [
            await anyio.to_thread.run_sync(self._list_part, kind, file, abandon_on_cancel=True)
            for kind, file in zip(kinds, files, strict=True)
        ]
        return self._list_source(name, parts, is_explicit=SourceKind.TAR not in kinds)

    def _detected_kind(self, file: _ListFile) -> SourceKind:
        from batchcl.sources.format_detection import detect_kind

        if self._options.kind is not None:
            return self._options.kind
        if posixpath.basename(file.label) == "symlink.txt":
            return SourceKind.INVENTORY
        try:
            return detect_kind(
                file.label,
                file.path,
                folder=file.folder,
                wants_table=self._options.columns != Columns(),
                wants_field=self._options.uri_field is not None,
            )
        except OSError as error:
            raise SourceError(
                f"can't read {file.label}: {error.strerror}; check its permissions", code=ErrorCode.UNREADABLE_SOURCE
            ) from error

    def _list_part(self, kind: SourceKind, file: _ListFile) -> ListPart:
        from batchcl.sources.archive import local_archive
        from batchcl.sources.csv_lists import CsvPart, LabelRows, batch_row
        from batchcl.sources.format_detection import is_columnar
        from batchcl.sources.tables import TablePart, csv_header
        from batchcl.sources.text_lists import FieldParser, LinePart, ManifestParser, parse_key_line

        options = self._options
        label, path, folder = file.label, file.path, file.folder
        match kind:
            case SourceKind.TAR:
                if Path(label) != path:
                    raise SourceError(
                        f"{label} is a tar archive, from which images are read later: name the file itself, or the "
                        "object with --source-kind tar",
                        code=ErrorCode.UNSUPPORTED_SOURCE,
                    )
                return local_archive(path, self._stack)
            case SourceKind.MANIFEST:
                return LinePart(label, path, ManifestParser(folder, attribute=options.attribute))
            case SourceKind.KEYS:
                return LinePart(label, path, partial(parse_key_line, may_be_local=folder is not None))
            case SourceKind.JSON_LINES:
                if options.uri_field is None:
                    raise SourceError(
                        f"the field of {label} that names the image is not known; add --uri-field",
                        code=ErrorCode.UNKNOWN_LIST_FORMAT,
                    )
                return LinePart(label, path, FieldParser(options.uri_field, folder))
            case SourceKind.BATCH_CSV:
                return CsvPart(label, path, batch_row)
            case SourceKind.LABEL_CSV:
                return CsvPart(label, path, LabelRows(folder))
            case SourceKind.TABLE:
                if is_columnar(path):
                    return TablePart(label, path, options.columns, folder)
                return CsvPart(label, path, header=csv_header(options.columns, folder))
            case SourceKind.PREFIX | SourceKind.DIRECTORY | SourceKind.IMAGE | SourceKind.INVENTORY:
                raise SourceError(
                    f"{label} has the kind {kind}, which can't be combined with other files; name it as a SOURCE of "
                    "its own",
                    code=ErrorCode.UNSUPPORTED_SOURCE,
                )


class _LocalPathKind(Enum):
    """What a local name refers to."""

    FOLDER = "folder"
    FILE = "file"
    GLOB = "glob"


def _local_file(name: str) -> _ListFile:
    return _ListFile(name, Path(name), Path(_absolute(name)).parent)


def _absolute(name: str) -> str:
    return os.path.abspath(name)


def _matching_files(pattern: str) -> list[_ListFile]:
    """The files that match a glob. Blocks."""
    files = [_local_file(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not files:
        raise SourceError(f"no file matches {pattern}; check the pattern", code=ErrorCode.SOURCE_NOT_FOUND)
    return files


def _local_path_kind(name: str) -> _LocalPathKind:
    """What the local name refers to. Blocks. Raises `SourceError` if it does not exist."""
    if "://" in name:
        raise SourceError(
            f"can't read {name}: unknown scheme; name s3://bucket/prefix, a directory, a file, or - for stdin",
            code=ErrorCode.UNSUPPORTED_SOURCE,
        )
    try:
        path = Path(name)
        if path.is_dir():
            return _LocalPathKind.FOLDER
        path.stat()
    except FileNotFoundError as error:
        if _WILDCARD.search(name):
            return _LocalPathKind.GLOB
        raise SourceError(
            f"{name} does not exist; check the path, or write s3://bucket/prefix for S3",
            code=ErrorCode.SOURCE_NOT_FOUND,
        ) from error
    except OSError as error:
        raise SourceError(
            f"can't read {name}: {error.strerror}; check its permissions", code=ErrorCode.UNREADABLE_SOURCE
        ) from error
    return _LocalPathKind.FILE


def _contains_inventories(name: str) -> bool:
    """Whether the folder contains the dated folders of an S3 Inventory. Blocks."""
    return any(
        Path(name).glob(f"[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]-[0-9][0-9]Z/{INVENTORY_MANIFEST}")
    )


def is_read_once(name: str) -> bool:
    """Whether `name` is stdin or a pipe, which can be read only once; False if that is unknown. Blocks."""
    try:
        return name == "-" or Path(name).is_fifo()
    except OSError:
        return False
