"""What every list of images offers, and the helpers that more than one kind needs."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from batchcl.errors import SourceError
from batchcl.images import APPLE_DOUBLE, ImageRef, Position, check_limits, escaped
from batchcl.sources.repeats import HashSet

__all__ = [
    "IMAGE_STARTS",
    "NO_BAD_LABELS",
    "PAGE",
    "BadLabel",
    "BadLabels",
    "BadLine",
    "Source",
    "SourceCheck",
    "local_image",
    "name_of",
    "named_images",
    "parse_s3_uri",
    "referred_image",
    "refuse_arn",
    "refuse_url",
    "s3_image",
]

IMAGE_STARTS: Final = (b"\xff\xd8\xff", b"\x89PNG")
"""What JPEG and PNG files begin with."""

_ARN_COLONS: Final = 5

PAGE: Final = 1000
"""Images a page, as ListObjectsV2 has it."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line, or the row of a table, that names no image.

    Attributes:
        number: from 1, as editors count; where it isn't known, 0.
        reason: why.
        file: which one, where the source has several; otherwise empty.
    """

    number: int
    reason: str
    file: str = ""

    def place(self, source: str) -> str:
        """Where to look for it."""
        named = self.file or source
        return f"{named} line {self.number}" if self.number else named


@dataclass(frozen=True, slots=True)
class BadLabel:
    """An image that can be scored, with a label that can't be used: `number` of its line from 1, and `reason`."""

    image: ImageRef
    reason: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class BadLabels:
    """How many images have a label that can't be used, and where and why the first one can't."""

    count: int = 0
    first: str = ""

    def __add__(self, other: BadLabels) -> BadLabels:
        return BadLabels(self.count + other.count, self.first or other.first)


NO_BAD_LABELS: Final = BadLabels()


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """What a look at the source told before a call was spent.

    Attributes:
        buckets: the S3 buckets that its images lie in.
        bad_lines: the lines that will be left out, at most the first hundred.
        bad_count: how many there are.
        digest: of a list file's content, by which a resumed run knows that it is the same list.
        lines: lines or rows of a list that aren't blank: its images, each as often as it is named, the bad lines, and
            what is left out. None where the source is no list.
        left_out: what the list names that is no image to score, such as an inventory's delete markers: kind → count.
        left_out_folders: folders that don't belong to the source, being the output root's.
        bad_labels: images of which a label can't be used, with the first reason; they are scored all the same.
    """

    buckets: frozenset[str] = frozenset()
    bad_lines: tuple[BadLine, ...] = ()
    bad_count: int = 0
    digest: str | None = None
    lines: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_folders: tuple[str, ...] = ()
    bad_labels: BadLabels = NO_BAD_LABELS


class Source(Protocol):
    """A list of images. Reading it twice gives the same images, or those that have come since."""

    @property
    def description(self) -> str:
        """The source as the user named it."""
        ...

    async def check(self) -> SourceCheck:
        """Look at the source before anything is spent; raises `SourceError` or another refusal."""
        ...

    def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The images in pages of about a thousand, from behind `after`; memory stays that of a page.

        An image comes as often as the source names it, which is once where it isn't among `repeats`.
        """
        ...

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each of `images`, whether the source may name it too, judged by its name alone.

        A no is certain, and stays true while the source is read; a yes need not be. Versions aren't looked at.
        """
        ...

    @property
    def exhaustive(self) -> bool:
        """Whether the source names every image that there is of those that it may name.

        So does a prefix: what another listing brings and this one may name, this one has named.
        """
        ...

    @property
    def is_explicit(self) -> bool:
        """Whether the user wants each image that it names, so that a name excludes none."""
        ...

    @property
    def repeats(self) -> HashSet:
        """The images that come more than once, by `name_of`, and perhaps some that don't; known after `check`."""
        ...


def name_of(image: ImageRef) -> str:
    """What makes an image the same image within a source."""
    return image.uri if image.version_id is None else f"{image.uri}\0{image.version_id}"


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """(bucket, key) of `s3://bucket/key`; the key literally. Raises `SourceError`."""
    refuse_arn(uri)
    bucket, slash, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not slash or not key:
        raise SourceError(f"{uri!r} is not s3://bucket/key")
    return bucket, key


def s3_image(uri: str, *, extra: str | None = None) -> ImageRef:
    """The image at `s3://bucket/key`, of which only its name is known. Raises `SourceError`."""
    bucket, key = parse_s3_uri(uri)
    return ImageRef(uri=uri, bucket=bucket, key=key, extra=extra)


def local_image(path: str, *, extra: str | None = None) -> ImageRef:
    """The local file at `path` with its size and time; a file that isn't there fails when it is read. Blocks."""
    absolute = os.path.abspath(path)
    uri = escaped(absolute)
    try:
        facts = os.stat(absolute)
    except OSError:
        return ImageRef(uri=uri, bucket="", key=absolute, extra=extra)
    return ImageRef(
        uri=uri,
        bucket="",
        key=absolute,
        size_bytes=facts.st_size,
        last_modified=dt.datetime.fromtimestamp(facts.st_mtime, dt.UTC),
        extra=extra,
    )


def named_images(images: list[ImageRef]) -> list[ImageRef]:
    """`images` that were named explicitly, whose names exclude none: a file's bytes decide, and the service. Blocks."""
    return [image if check_limits(image) is None else replace(image, any_name=_may_be_image(image)) for image in images]


def _may_be_image(image: ImageRef) -> bool:
    """Whether the file begins like a PNG or JPEG; of what isn't a file of its own, the service knows."""
    if not image.local or image.member is not None:
        return not image.key.rpartition("/")[2].startswith(APPLE_DOUBLE)
    try:
        with open(image.key, "rb") as file:
            return file.read(len(max(IMAGE_STARTS, key=len))).startswith(IMAGE_STARTS)
    except (OSError, ValueError):
        return True  # reading it tells why


def refuse_arn(name: str) -> None:
    """Raise `SourceError` for an ARN in place of a bucket, as an access point or a bucket has one."""
    arn = name.removeprefix("s3://")
    if not arn.startswith("arn:"):
        return
    kind, _, rest = arn.split(":", maxsplit=_ARN_COLONS)[-1].replace(":", "/").partition("/")
    if kind == "accesspoint":
        raise SourceError(
            f"{name} is the ARN of an access point, and DetectCustomLabels takes buckets; write its alias instead, "
            f"s3://ALIAS/prefix: aws s3control get-access-point --name {rest.partition('/')[0]} --account-id ACCOUNT"
        )
    raise SourceError(f"{name} is an ARN; write s3://bucket/prefix, for an access point with its alias as the bucket")


def refuse_url(reference: str, *, what: str = "it") -> None:
    """Raise `SourceError` for a web address. The address is not shown, as it may hold a password or a signature."""
    if reference[:8].lower().startswith(("https://", "http://")):
        raise SourceError(
            f"{what} is a web address, and images on the web are not read; copy them to S3 first (aws s3 cp) and "
            "name them as s3://bucket/key"
        )


def referred_image(reference: str, folder: Path | None, *, extra: str | None = None) -> ImageRef:
    """The image that a list refers to which may come from somebody else: `s3://bucket/key`, or a path below `folder`.

    A path that leads out of the folder is refused, and so is any path where there is no folder, and an address on the
    web. Raises `SourceError`. Blocks.
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
        raise SourceError(f"{reference!r} is neither s3://bucket/key nor a path below the list")
    return local_image(os.fspath(folder / path), extra=extra)
