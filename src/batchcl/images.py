"""Images to score, and the service's limits on name and size.

Source of the limits: Custom Labels guide, "Guidelines and quotas": PNG and JPEG, at most 15 MB from S3 and 4 MB as
bytes, 64 to 4096 pixels a side, aspect ratio at most 20:1. Name and size are checked here, before a call is spent;
pixels and corrupt files are checked by the service.
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
    "escape_name",
    "extension_of",
    "no_pause",
]

EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png"})
"""Extensions of JPEG and PNG files. A name without an extension is accepted: only the bytes show the format."""

FITTABLE_EXTENSIONS: Final = frozenset({".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"})
"""Extensions of files that `--fit` converts to PNG or JPEG."""

APPLE_DOUBLE: Final = "._"
"""Prefix of the files in which macOS stores the attributes of another file."""

MAX_BYTES_S3: Final = 15 * 1024 * 1024
"""Largest image that the service reads from S3."""

MAX_BYTES_INLINE: Final = 4 * 1024 * 1024
"""Largest image sent as bytes."""

MAX_BYTES_FITTABLE: Final = 100 * 1024 * 1024
"""Largest file that is read in order to shrink it; limits memory."""


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """An image's position in an archive.

    Attributes:
        archive: the archive's key, or its path.
        offset: of the image's first byte, in the decompressed archive.
    """

    archive: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """The location of one image, and what its listing states about it.

    Attributes:
        uri: `s3://bucket/key` or the path of a local file; for an archive's member followed by `#` and its name.
        bucket: the S3 bucket; empty for a local file.
        key: the S3 key, never decoded or normalised; for a local file its path; for an archive's member the archive's
            key or path, `#` and the member's name.
        version_id: the S3 version, if the list names one.
        etag: the S3 entity tag without quotes, if the list names one; for a member its archive's.
        size_bytes: None if the list does not state it.
        last_modified: in UTC; None if the list does not state it; for a member its archive's.
        extra: the image's other fields in a manifest, as JSON.
        region: of the bucket, if it differs from the model's; else None.
        member: position in an archive; None for a separate file or object.
        any_extension: its extension is not checked, because a list names it or the user asked for that.
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
    any_extension: bool = False

    @property
    def local(self) -> bool:
        """Whether the image is a local file, or in a local archive."""
        return not self.bucket

    @property
    def inline(self) -> bool:
        """Whether the image is sent as bytes, because the service can't fetch it."""
        return not self.bucket or self.region is not None or self.member is not None


@dataclass(frozen=True, slots=True)
class SkipReason:
    """Why an image is skipped: a stable `code` for tables, and a `message`."""

    code: str
    message: str


def check_limits(image: ImageRef, *, fit: bool = False) -> SkipReason | None:
    """Check name and size of `image` against the service's limits: why it is skipped, or None.

    Uses the listing only; pixels, the actual format and truncation are not checked. `fit` accepts what can be shrunk or
    converted. The extension is not checked for an image with `any_extension`.
    """
    if not image.key.isascii() and not _encodable(image.key):
        return SkipReason("UndecodableName", "the file's name is not valid UTF-8; rename it")
    if image.key.endswith("/"):
        return SkipReason("FolderMarker", "a folder's placeholder, not an image")
    name = image.key.rpartition("/")[2]  # pathlib interns each key, and takes ten times as long
    if image.member is not None:
        name = image.key[len(image.member.archive) + 1 :].rpartition("/")[2]
    if not image.any_extension and (reason := _check_name(name, fit=fit)) is not None:
        return reason
    return None if image.size_bytes is None else _check_size(image, image.size_bytes, fit=fit)


def _check_name(name: str, *, fit: bool) -> SkipReason | None:
    suffix = extension_of(name)
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
        return SkipReason("TooLarge", f"{size:,} bytes; --fit shrinks files of up to {MAX_BYTES_FITTABLE:,} bytes")
    if size > limit and not fit:
        transfer = "sent as bytes" if image.inline else "read from S3"
        return SkipReason("TooLarge", f"{size:,} bytes; the limit for images {transfer} is {limit:,} bytes")
    return None


def escape_name(name: str) -> str:
    """`name` as printable text: bytes of a local name that are not valid UTF-8 are escaped."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def extension_of(name: str) -> str:
    """A file name's extension with the dot, in lower case; empty if the last dot is its first or last character."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_extension(suffix: str) -> bool:
    """Whether `suffix` is a file type, not part of a name such as `scan 12.05.2026`."""
    return suffix[1:].isascii() and suffix[1:].isalnum() and any(c.isalpha() for c in suffix)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a source has been read: its first `count` images, the last of which has this `key`.

    Reading resumes by `count` in a list file, and by `key` in a bucket or directory, whose images may change meanwhile.
    """

    count: int
    key: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Progress of writing a run's work list.

    Attributes:
        source: number of the source, from 0.
        position: of the last image read from it.
        taken: images that passed the filters so far.
        duplicates: duplicates so far.
        already_scored: images excluded so far because their version has a result.
        already_failed: images excluded so far because their version has a permanent failure.
        filtered: images excluded so far by filters: the filter's name → count.
        cut: the largest rank in the sample, found before the first image; None without a sample.
    """

    source: int
    position: Position
    taken: int
    duplicates: int = 0
    already_scored: int = 0
    already_failed: int = 0
    filtered: Mapping[str, int] = field(default_factory=dict)
    cut: int | None = None


Pause: TypeAlias = Callable[[int], Awaitable[None]]
"""Awaited with the number of images read, before a source reads the next ones."""


async def no_pause(_: int) -> None:
    """Continue at once."""


class ImageReader(Protocol):
    """Reads the images that are sent to the service as bytes. Safe for concurrent use."""

    def accepts(self, image: ImageRef) -> bool:
        """Whether `image` is sent as bytes; if not, the service fetches it from S3."""
        ...

    async def read(self, image: ImageRef) -> bytes:
        """The whole image, within the reader's own deadline.

        Raises:
            ImageError: it can't be read, and a retry does not help; `code` is a stable code for the tables.
            HostError: a retry may succeed.
            FatalCallError: no image can be read until the configuration changes.
        """
        ...
