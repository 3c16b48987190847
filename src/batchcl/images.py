"""One image to score, and which images the service takes.

The rules are those of the Custom Labels guide, "Guidelines and quotas": PNG and JPEG, at most 15 MB from S3 and 4 MB as
bytes, 64 to 4096 pixels a side, aspect ratio at most 20:1. What a listing tells (name and size) is judged here before a
call is spent; what only the bytes tell (pixels, truncation) is judged by the service.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

__all__ = [
    "APPLE_DOUBLE",
    "EXTENSIONS",
    "FITTABLE_EXTENSIONS",
    "MAX_BYTES_FITTABLE",
    "MAX_BYTES_INLINE",
    "MAX_BYTES_S3",
    "ArchiveMember",
    "Bookmark",
    "ImageReader",
    "ImageRef",
    "Pause",
    "Position",
    "SkipReason",
    "check_limits",
    "escaped",
    "no_pause",
    "suffix_of",
]

EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png"})
"""Names that may hold a JPEG or PNG. A name without any extension is let through: only the bytes can tell."""

FITTABLE_EXTENSIONS: Final = frozenset({".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"})
"""Names of what can be made a PNG or JPEG."""

APPLE_DOUBLE: Final = "._"
"""Begins the names of files in which macOS keeps attributes of the file of the same name."""

MAX_BYTES_S3: Final = 15 * 1024 * 1024
"""Largest image read from S3."""

MAX_BYTES_INLINE: Final = 4 * 1024 * 1024
"""Largest image sent as bytes."""

MAX_BYTES_FITTABLE: Final = 100 * 1024 * 1024
"""Largest file that is read in order to shrink it: a guard for memory."""


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """Where in an archive an image lies.

    Attributes:
        archive: the archive's key, or its path.
        offset: of the image's first byte in the archive, decompressed where it is compressed.
    """

    archive: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where one image lies and what its listing said of it.

    Attributes:
        uri: `s3://bucket/key` or the path of a local file, either with `#` and a name for an archive's member.
        bucket: the S3 bucket; empty for a local file.
        key: the S3 key exactly as it is, never decoded or normalised; for a local file its path; for an archive's
            member that of the archive, `#` and the member's name.
        version_id: the S3 version, when the list named one.
        etag: the S3 entity tag without quotes, when the list named one; for a member its archive's.
        size_bytes: None where the list doesn't tell.
        last_modified: in UTC; None where the list doesn't tell; for a member its archive's.
        extra: what a manifest said of this image, as JSON.
        region: of the bucket, where that isn't the model's; None where it is.
        member: where in an archive it lies; None for an image that is a file or object of its own.
        any_name: whether it is an image whatever its name says, as a list names it or the user wants any.
    """

    uri: str
    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None
    size_bytes: int | None = None
    last_modified: dt.datetime | None = None
    extra: str | None = None
    region: str | None = None
    member: ArchiveMember | None = None
    any_name: bool = False

    @property
    def local(self) -> bool:
        """Whether the image lies on this machine."""
        return not self.bucket

    @property
    def inline(self) -> bool:
        """Whether the image travels as bytes, as the service can't fetch it."""
        return not self.bucket or self.region is not None or self.member is not None


@dataclass(frozen=True, slots=True)
class SkipReason:
    """Why an image is skipped: a stable `code` for tables, a `message` for people."""

    code: str
    message: str


def check_limits(image: ImageRef, *, fit: bool = False) -> SkipReason | None:
    """Why the service would surely refuse `image`, told from its listing alone, or None.

    Raises nothing and reads nothing; pixels, formats behind a wrong name and truncation are not seen here. With `fit`,
    what can be shrunk or converted is let through. A name excludes an image only where that isn't `any_name`.
    """
    if not image.key.isascii() and not _encodable(image.key):
        return SkipReason("UndecodableName", "the file's name is not valid UTF-8; rename it")
    if image.key.endswith("/"):
        return SkipReason("FolderMarker", "a folder's placeholder, not an image")
    name = image.key.rpartition("/")[2]  # pathlib would intern each key, and costs ten times as much
    if image.member is not None:
        name = image.key[len(image.member.archive) + 1 :].rpartition("/")[2]
    if not image.any_name and (reason := _check_name(name, fit=fit)) is not None:
        return reason
    return None if image.size_bytes is None else _check_size(image, image.size_bytes, fit=fit)


def _check_name(name: str, *, fit: bool) -> SkipReason | None:
    suffix = suffix_of(name)
    if name.startswith(APPLE_DOUBLE):
        return SkipReason("UnsupportedExtension", f"{name} is an AppleDouble file, in which macOS keeps attributes")
    if not suffix and name.startswith("."):
        return SkipReason("UnsupportedExtension", f"{name} is a hidden file, not a PNG or JPEG name")
    if suffix and suffix not in EXTENSIONS and not (fit and suffix in FITTABLE_EXTENSIONS) and _is_extension(suffix):
        return SkipReason("UnsupportedExtension", f"{suffix} is not a PNG or JPEG name")
    return None


def _check_size(image: ImageRef, size: int, *, fit: bool) -> SkipReason | None:
    if size == 0:
        return SkipReason("EmptyFile", "the file is empty")
    limit = MAX_BYTES_INLINE if image.inline else MAX_BYTES_S3
    if fit and size > MAX_BYTES_FITTABLE:
        return SkipReason("TooLarge", f"{size:,} bytes, and files of up to {MAX_BYTES_FITTABLE:,} are shrunk")
    if size > limit and not fit:
        way = "sent as bytes" if image.inline else "read from S3"
        return SkipReason("TooLarge", f"{size:,} bytes, and an image {way} may have {limit:,}")
    return None


def escaped(name: str) -> str:
    """`name` as text; one that isn't UTF-8, as a local name may be, in an escaped form."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def suffix_of(name: str) -> str:
    """A file name's ending from its last dot on, in lower case; none where the dot is its first or last character."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_extension(suffix: str) -> bool:
    """Whether `suffix` is a file type rather than the tail of a dotted name such as `scan 12.05.2026`."""
    return suffix[1:].isascii() and suffix[1:].isalnum() and any(c.isalpha() for c in suffix)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a source was read: its first `count` images, the last of which has this `key`.

    A list file goes on by `count`, a bucket or a directory by `key`, as images may come or go in between.
    """

    count: int
    key: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where the list of a run stands.

    Attributes:
        source: number of the source, from 0.
        position: of the last image in it.
        taken: images that passed the filters so far.
        repeated: images left out so far because they were taken already.
        known: images left out so far because their version has a result.
        known_failed: images left out so far because their version has a permanent failure.
        filtered: images left out so far by the filters: the filter's name → how many.
        cut: the largest rank of the sample, which was found before the first image; None without a sample.
    """

    source: int
    position: Position
    taken: int
    repeated: int = 0
    known: int = 0
    known_failed: int = 0
    filtered: Mapping[str, int] = field(default_factory=dict)
    cut: int | None = None


Pause: TypeAlias = Callable[[int], Awaitable[None]]
"""Awaited after so many images of a source were read, before the next ones are."""


async def no_pause(_: int) -> None:
    """Read on at once."""


class ImageReader(Protocol):
    """Reads the images that travel to the service as bytes. Safe for many concurrent callers."""

    def carries(self, image: ImageRef) -> bool:
        """Whether `image` travels as bytes, rather than as the name of an object that the service fetches itself."""
        ...

    async def read(self, image: ImageRef) -> bytes:
        """The whole bytes of an `image` that it carries, within a deadline that starts when it is the image's turn.

        Raises:
            ImageError: they can't be had, whatever the attempt; `code` is a stable word for the tables.
            HostError: the next attempt may get them. It tells nothing of the service, as that isn't asked.
            FatalCallError: nor can those of any other image, until somebody changes something.
        """
        ...
