"""The protocol of a list of images, and helpers that several kinds of list share."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Protocol

from batchcl.errors import ErrorCode, SourceError
from batchcl.images import APPLE_DOUBLE, ImageRef, Position, check_limits, escape_name

if TYPE_CHECKING:
    from batchcl.sources.deduplication import HashSet

__all__ = [
    "IMAGE_MAGIC",
    "INVENTORY_MANIFEST",
    "MEMBERS",
    "NOT_FITTING",
    "NO_BAD_LABELS",
    "PAGE",
    "BadLabel",
    "BadLabels",
    "BadLine",
    "Columns",
    "Source",
    "SourceCheck",
    "image_key",
    "local_image",
    "parse_s3_uri",
    "referenced_image",
    "refuse_arn",
    "refuse_url",
    "s3_image",
    "with_any_extension",
]

PAGE: Final = 1000
"""Images per page, as in ListObjectsV2."""

IMAGE_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG")
"""First bytes of JPEG and PNG files."""

INVENTORY_MANIFEST: Final = "manifest.json"
"""The file of an S3 Inventory that lists its data files."""

NOT_FITTING: Final = "where"
"""The kind of ignored rows of published results for which the condition is false."""

MEMBERS: Final = "members of archives"
"""The kind of ignored rows of published results that don't have the member's offset in its archive."""

_ARN_COLONS: Final = 5


class Source(Protocol):
    """A list of images. Reading it again yields the same images, or those that exist by then."""

    @property
    def description(self) -> str:
        """The source as the user named it."""
        ...

    async def check(self) -> SourceCheck:
        """Check the source before anything is spent. Raises `SourceError` or another `BatchclError`."""
        ...

    def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The images after the position `after`, in pages of about a thousand; memory is bounded by a page.

        An image is yielded as often as the source names it: once, unless it is among `repeats`.
        """
        ...

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each of `images`, whether the source may name it, judged by its name alone and not by its version.

        False is certain, and remains so while the source is read; True may be a false positive.
        """
        ...

    @property
    def exhaustive(self) -> bool:
        """Whether the source names every existing image for which `may_name` is true, as an S3 prefix does.

        An image that another listing returns, and that this source may name, is then a duplicate.
        """
        ...

    @property
    def is_explicit(self) -> bool:
        """Whether the user listed the images one by one, so that file name extensions don't exclude any."""
        ...

    @property
    def repeats(self) -> HashSet:
        """The images that are named more than once, by `image_key`, with rare false positives; set by `check`."""
        ...


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of a list, or a row of a table, that does not name an image.

    Attributes:
        number: 1-based line or row number; 0 where it is unknown.
        reason: what is wrong with it.
        file: the file, where the source has several; otherwise empty.
    """

    number: int
    reason: str
    file: str = ""

    def place(self, source: str) -> str:
        """File and line number, for messages."""
        file = self.file or source
        return f"{file} line {self.number}" if self.number else file


@dataclass(frozen=True, slots=True)
class BadLabel:
    """An image that can be scored, from a line (1-based `number`) with an unusable label."""

    image: ImageRef
    reason: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class BadLabels:
    """The number of images with an unusable label, and the line and reason of the first one."""

    count: int = 0
    first: str = ""

    def __add__(self, other: BadLabels) -> BadLabels:
        return BadLabels(self.count + other.count, self.first or other.first)


NO_BAD_LABELS: Final = BadLabels()


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """The result of `Source.check`, before any call is made.

    Attributes:
        buckets: the S3 buckets of its images.
        bad_lines: the lines that will be skipped, at most the first hundred.
        bad_count: how many lines will be skipped.
        digest: a digest of the images that a list names, by which a resumed run detects a changed list.
        lines: non-blank lines or rows of a list, which are its images (duplicates included), its bad lines and the
            rows counted in `ignored`. None where the source is not a list.
        ignored: rows that name something other than an image to score, such as delete markers: kind → count.
        excluded_folders: folders that are excluded because they belong to the output root.
        bad_labels: images with an unusable label; they are scored nevertheless.
    """

    buckets: frozenset[str] = frozenset()
    bad_lines: tuple[BadLine, ...] = ()
    bad_count: int = 0
    digest: str | None = None
    lines: int | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)
    excluded_folders: tuple[str, ...] = ()
    bad_labels: BadLabels = NO_BAD_LABELS


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of the columns that name the image: `uri` alone, or `bucket` and `key`; by default, these names."""

    uri: str | None = None
    bucket: str | None = None
    key: str | None = None

    def among(self, available: Sequence[str]) -> Columns:
        """The columns to read of the `available` ones. Raises `SourceError` if they are missing or ambiguous."""
        if len(set(available)) < len(available):
            raise SourceError(f"its columns {', '.join(available)} are not unique; rename them")
        chosen = self
        if self == Columns():
            by_uri, by_key = Columns(uri="uri"), Columns(bucket="bucket", key="key")
            chosen = by_uri if "uri" in available else by_key
        missing = [name for name in (chosen.uri, chosen.bucket, chosen.key) if name and name not in available]
        if missing:
            raise SourceError(
                f"it has no column {' or '.join(missing)}, only {', '.join(available) or 'none'}; name the column "
                "of s3://bucket/key with --uri-column, or two columns with --bucket-column and --key-column",
                code=ErrorCode.UNKNOWN_LIST_FORMAT,
            )
        return chosen

    @property
    def names(self) -> tuple[str, ...]:
        """The one or two column names."""
        return tuple(name for name in (self.uri, self.bucket, self.key) if name)


def image_key(image: ImageRef) -> str:
    """The identity of an image within a source: its URI and version."""
    return image.uri if image.version_id is None else f"{image.uri}\0{image.version_id}"


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """(bucket, key) of `s3://bucket/key`; the key is taken literally. Raises `SourceError`."""
    refuse_arn(uri)
    bucket, slash, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not slash or not key:
        raise SourceError(f"{uri!r} is not s3://bucket/key")
    return bucket, key


def s3_image(uri: str, *, extra: str | None = None) -> ImageRef:
    """The image at `s3://bucket/key`, with nothing known but its name. Raises `SourceError`."""
    bucket, key = parse_s3_uri(uri)
    return ImageRef(uri=uri, bucket=bucket, key=key, extra=extra)


def local_image(path: str, *, extra: str | None = None) -> ImageRef:
    """The local file at `path` with its size and time; a missing file fails when it is read. Blocks."""
    absolute = os.path.abspath(path)
    uri = escape_name(absolute)
    try:
        status = os.stat(absolute)
    except OSError:
        return ImageRef(uri=uri, bucket="", key=absolute, extra=extra)
    return ImageRef(
        uri=uri,
        bucket="",
        key=absolute,
        size_bytes=status.st_size,
        last_modified=dt.datetime.fromtimestamp(status.st_mtime, dt.UTC),
        extra=extra,
    )


def referenced_image(reference: str, folder: Path | None, *, extra: str | None = None) -> ImageRef:
    """The image that an untrusted list refers to: `s3://bucket/key`, or a path below `folder`. Blocks.

    Raises:
        SourceError: the path leads out of the folder, or there is no folder, or `reference` is a web address.
    """
    if reference.startswith("s3://"):
        return s3_image(reference, extra=extra)
    refuse_url(reference)
    path = PurePosixPath(reference)
    if (
        folder is None
        or not reference
        or "://" in reference
        or "\0" in reference
        or path.is_absolute()
        or ".." in path.parts
    ):
        raise SourceError(f"{reference!r} is neither s3://bucket/key nor a path below the list's directory")
    return local_image(os.fspath(folder / path), extra=extra)


def with_any_extension(images: list[ImageRef]) -> list[ImageRef]:
    """Mark explicitly named `images` so that their extensions don't exclude them. Blocks.

    For a local file, its first bytes decide whether it is an image; for an object, the service decides.
    """
    return [
        image if check_limits(image) is None else replace(image, any_extension=_may_be_image(image)) for image in images
    ]


def _may_be_image(image: ImageRef) -> bool:
    if not image.local or image.member is not None:
        return not image.key.rpartition("/")[2].startswith(APPLE_DOUBLE)
    try:
        with open(image.key, "rb") as file:
            return file.read(len(max(IMAGE_MAGIC, key=len))).startswith(IMAGE_MAGIC)
    except (OSError, ValueError):
        return True  # the loader reports the reason


def refuse_arn(name: str) -> None:
    """Raise `SourceError` for an ARN in place of a bucket, such as that of an access point."""
    arn = name.removeprefix("s3://")
    if not arn.startswith("arn:"):
        return
    resource, _, rest = arn.split(":", maxsplit=_ARN_COLONS)[-1].replace(":", "/").partition("/")
    if resource == "accesspoint":
        raise SourceError(
            f"{name} is the ARN of an access point, and DetectCustomLabels accepts only buckets; use its alias, "
            f"s3://ALIAS/prefix: aws s3control get-access-point --name {rest.partition('/')[0]} --account-id ACCOUNT",
            code=ErrorCode.UNSUPPORTED_SOURCE,
        )
    raise SourceError(
        f"{name} is an ARN; write s3://bucket/prefix (for an access point, its alias is the bucket)",
        code=ErrorCode.UNSUPPORTED_SOURCE,
    )


def refuse_url(reference: str, *, what: str = "this") -> None:
    """Raise `SourceError` for a web address, without repeating it: it may contain a password or a signature."""
    if reference[:8].lower().startswith(("https://", "http://")):
        raise SourceError(
            f"{what} is a web address, and batchcl does not download images from the web; copy them to S3 first "
            "(aws s3 cp) and name them as s3://bucket/key",
            code=ErrorCode.UNSUPPORTED_SOURCE,
        )
