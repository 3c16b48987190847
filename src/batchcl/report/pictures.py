"""Pictures of scored images for people: read from disk or S3, upright, with their stored labels. No call is made."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import polars as pl

from batchcl.arns import ModelArn
from batchcl.aws.errors import code_of
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.cores import usable_cores
from batchcl.errors import BatchclError, CallError, ErrorCode, FatalCallError, ImageError, RefusedError, SourceError
from batchcl.extras import require_extra
from batchcl.image_header import read_header
from batchcl.images import MAX_BYTES_FITTABLE, ImageRef
from batchcl.imaging.draw import annotate
from batchcl.loaders.files import FileReader
from batchcl.loaders.s3_objects import ObjectReader
from batchcl.outcomes import Label
from batchcl.sources.archive import TarPart, archive_in_s3, local_archive
from batchcl.sources.base import local_image
from batchcl.sources.list_source import ImageChunk

__all__ = ["PICTURE_COLUMNS", "Picture", "fetch_pictures"]

PICTURE_COLUMNS: Final = (
    "model_arn",
    "uri",
    "bucket",
    "key",
    "version_id",
    "etag",
    "size_bytes",
    "last_modified",
    "labels",
)
"""The columns of `Results.images()` that `fetch_pictures` needs."""

_BATCH_PER_TASK: Final = 2
_MEMBER: Final = re.compile(r"\.tar(?=#)", re.IGNORECASE)
_NO_LABEL: Final = "(none)"
_CHANGED: Final = "has changed since it was scored, so its labels may not apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The picture of one image, or why there is none.

    Attributes:
        row: number of the image's row in the frame.
        jpeg: the file's bytes; empty if there is no picture.
        width: of the file in pixels.
        height: of the file in pixels.
        note: what to tell a person who looks at it, such as that the image has changed since it was scored.
        error: why there is no picture, in one sentence; empty if there is one.
    """

    row: int
    jpeg: bytes = field(default=b"", repr=False)
    width: int = 0
    height: int = 0
    note: str = ""
    error: str = ""


async def fetch_pictures(
    rows: pl.DataFrame,
    *,
    aws: Aws,
    max_px: int | None,
    draw: bool,
    quality: int,
    concurrency: int,
    has_caption: bool = False,
) -> AsyncGenerator[Picture]:
    """Read the images of `rows` and yield their pictures as JPEG, in the order of the rows.

    An image that is missing, denied, corrupt or too large yields a `Picture` with an error. If an image has changed
    since it was scored (another entity tag, or another size or time of a file), the picture has a note. S3 objects are
    read in the stored version, if there is one. At most `concurrency` images are in memory, decoded ones at most one
    per CPU core, and the pictures of twice as many.

    Args:
        rows: rows of `Results.images()` with `PICTURE_COLUMNS`.
        aws: for images in S3.
        max_px: maximum of the longer side, without the caption; None for the image's size.
        draw: draw boxes, polygons and names into the picture; a small image is then enlarged up to `max_px`, so that
            text fits.
        quality: of the JPEG, 1 to 95.
        concurrency: images that are read or drawn at the same time.
        has_caption: with `draw`: add a caption with the image-level labels and the note.

    Raises:
        UsageError: Pillow is not installed.
        CredentialsError: an image is in S3, and there are no credentials.
        RefusedError: no image can be read until the configuration changes.
    """
    require_extra("images", "drawing pictures")
    async with AsyncExitStack() as stack:
        source = await _open_source(stack, rows, aws, connections=concurrency)
        processors = anyio.CapacityLimiter(min(concurrency, usable_cores()))
        render = partial(_render, max_px=max_px, draw=draw, quality=quality, has_caption=has_caption)

        async def fetch(number: int) -> Picture:
            row = rows.row(number, named=True)
            try:
                data, note = await source.read(row)
                jpeg = await anyio.to_thread.run_sync(render, data, row, note, limiter=processors)
            except FatalCallError as error:
                raise RefusedError(f"reading {row['uri']} failed: {error}", code=code_of(error)) from error
            except CallError as error:
                return Picture(row=number, error=str(error))
            header = read_header(jpeg)
            assert header is not None
            return Picture(row=number, jpeg=jpeg, width=header.width, height=header.height, note=note)

        size = _BATCH_PER_TASK * concurrency
        for begin in range(0, rows.height, size):  # in batches, because no task may run while the caller does
            batch = range(begin, min(begin + size, rows.height))
            for picture in await gather(fetch, batch, at_once=concurrency):
                yield picture


def _render(
    data: bytes, row: Mapping[str, Any], note: str, *, max_px: int | None, draw: bool, quality: int, has_caption: bool
) -> bytes:
    labels = _labels(row["labels"]) if draw else []
    notes = [] if labels or not has_caption else [_NO_LABEL]
    return annotate(
        data,
        labels,
        kind="JPEG",
        quality=quality,
        max_px=max_px,
        has_caption=draw and has_caption,
        notes=[*notes, *([note] if note else [])] if draw and has_caption else (),
    )


def _labels(stored: list[dict[str, Any]]) -> list[Label]:
    """The labels of a row, the most confident first."""
    labels = [
        Label(
            each["name"],
            each["confidence"],
            None if each["left"] is None else (each["left"], each["top"], each["width"], each["height"]),
            each["polygon"] and tuple((point["x"], point["y"]) for point in each["polygon"]),
        )
        for each in stored
    ]
    return sorted(labels, key=lambda label: -label.confidence)


async def _open_source(stack: AsyncExitStack, rows: pl.DataFrame, aws: Aws, *, connections: int) -> _Source:
    region, objects = aws.region, None
    if (rows["bucket"] != "").any():
        if aws.settings.connection.is_signed:
            await aws.credentials.current()
        region = aws.settings.region or ModelArn.parse(rows["model_arn"][0]).region
        objects = ObjectReader(await stack.enter_async_context(aws.s3(region=region, connections=connections)))
    return _Source(aws, region, objects, wanted=rows["uri"])


class _Source:
    """Reads the images of rows, with a note for those that have changed since they were scored.

    Args:
        aws: to list archives in S3.
        region: of the buckets; S3 names the region of others, and the SDK repeats the request there.
        objects: reads S3 objects; None if there are none.
        wanted: the URIs of all images that will be read.
    """

    def __init__(self, aws: Aws, region: str, objects: ObjectReader | None, *, wanted: Collection[str]) -> None:
        self._aws = aws
        self._region = region
        self._objects = objects
        self._files = FileReader()
        self._wanted = frozenset(wanted)
        self._members: dict[str, dict[str, ImageRef] | BatchclError] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def read(self, row: Mapping[str, Any]) -> tuple[bytes, str]:
        """The bytes of the image and the note.

        Raises:
            CallError: it can't be read.
        """
        if not row["bucket"]:
            return await self._read_local(row)
        if (archive := _MEMBER.search(row["key"])) is not None:
            return await self._read_member(row, f"s3://{row['bucket']}/{row['key'][: archive.end()]}")
        assert self._objects is not None
        image = ImageRef(uri=row["uri"], bucket=row["bucket"], key=row["key"], version_id=row["version_id"])
        data, etag = await self._objects.read_with_etag(image)
        if row["version_id"] is not None:
            return data, ""
        same_tag = None in {row["etag"], etag} or row["etag"] == etag
        same_size = row["size_bytes"] in {None, len(data)}
        return data, "" if same_tag and same_size else f"the object {_CHANGED}"

    async def _read_local(self, row: Mapping[str, Any]) -> tuple[bytes, str]:
        image = await anyio.to_thread.run_sync(local_image, row["key"], abandon_on_cancel=True)
        if image.size_bytes is None and (archive := _MEMBER.search(row["key"])) is not None:
            return await self._read_member(row, row["key"][: archive.end()])
        _check_size(image)
        data = await self._files.read(image)
        known = row["size_bytes"], row["last_modified"]
        now = image.size_bytes, image.last_modified
        is_same = all(before in {None, after} for before, after in zip(known, now, strict=True))
        return data, "" if is_same else f"the file {_CHANGED}"

    async def _read_member(self, row: Mapping[str, Any], archive: str) -> tuple[bytes, str]:
        async with self._locks[archive]:
            if archive not in self._members:
                self._members[archive] = await anyio.to_thread.run_sync(self._find_members, archive)
        members = self._members[archive]
        if isinstance(members, BatchclError):
            raise ImageError(str(members), code="UnreadableArchive") from members
        image = members.get(row["uri"])
        if image is None:
            raise ImageError(f"the archive {archive} has no such member", code="NoSuchMember")
        _check_size(image)
        reader = self._files if image.local else self._objects
        assert reader is not None
        tag = ("etag", "last_modified")[image.local]
        is_same = row[tag] in {None, getattr(image, tag)} and row["size_bytes"] in {None, image.size_bytes}
        return await reader.read(image), "" if is_same else f"the archive {_CHANGED}"

    def _find_members(self, archive: str) -> dict[str, ImageRef] | BatchclError:
        """The wanted members by URI, found by the archive's headers; reading ends at the last one. Blocks."""
        missing = {uri for uri in self._wanted if uri.startswith(f"{archive}#")}
        found: dict[str, ImageRef] = {}
        try:
            with ExitStack() as stack:
                for chunk in self._open_archive(archive, stack).chunks():
                    assert isinstance(chunk, ImageChunk)
                    found |= {image.uri: image for image in chunk.parsed if image.uri in missing}
                    missing -= found.keys()
                    if not missing:
                        break
        except BatchclError as error:
            return error
        return found

    def _open_archive(self, archive: str, stack: ExitStack) -> TarPart:
        if not archive.startswith("s3://"):
            return local_archive(Path(archive), stack)
        part = archive_in_s3(self._aws.blocking_s3(region=self._region), archive, stack)
        if part is None:
            raise SourceError(f"{archive} does not exist", code=ErrorCode.SOURCE_NOT_FOUND)
        return part


def _check_size(image: ImageRef) -> None:
    if (image.size_bytes or 0) > MAX_BYTES_FITTABLE:
        raise ImageError(
            f"it has {image.size_bytes:,} bytes; the limit is {MAX_BYTES_FITTABLE:,} bytes", code="TooLarge"
        )
