"""Preprocessing with `--fit`: changes images so that the service accepts them, and sends them as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread

from batchcl.aws.session import Aws
from batchcl.cores import usable_cores
from batchcl.errors import ImageError
from batchcl.images import (
    FITTABLE_EXTENSIONS,
    MAX_BYTES_S3,
    ArchiveMember,
    ImageReader,
    ImageRef,
    SkipReason,
    extension_of,
)
from batchcl.imaging.fit import fit, is_within_limits
from batchcl.loaders.base import Prepared
from batchcl.loaders.s3_objects import open_object_reader
from batchcl.outcomes import fit_may_help

__all__ = ["FittingReader", "open_fitting_reader"]

_Key = tuple[str, str | None, ArchiveMember | None]

_HELD_BYTES: Final = 256 * 1024 * 1024
"""Maximum size of prepared images in memory; a few more may be in preparation."""


class FittingReader:
    """Changes images and reads the changed ones: both a `Preparer` and an `ImageReader`.

    Images that are sent as bytes anyway are prepared before their call. Those in S3 are prepared only if their name or
    size shows that the service does not accept them, or after it has refused them.

    Args:
        inner: reads the images that are sent as bytes anyway.
        objects: reads the other ones from S3.
        processors: images changed concurrently; by default as many as the process may use CPU cores.
    """

    def __init__(
        self,
        inner: ImageReader,
        objects: ImageReader,
        *,
        processors: int | None = None,
        max_held_bytes: int = _HELD_BYTES,
    ) -> None:
        self._inner = inner
        self._objects = objects
        self._max_held_bytes = max_held_bytes
        self._ready: dict[_Key, bytes] = {}
        self._held_bytes = 0
        self._processors = anyio.CapacityLimiter(processors or usable_cores())

    def accepts(self, image: ImageRef) -> bool:
        """Whether the image was changed, or is sent as bytes anyway."""
        return _key(image) in self._ready or self._inner.accepts(image)

    async def read(self, image: ImageRef) -> bytes:
        """The changed bytes, or the original ones."""
        ready = self._ready.get(_key(image))
        return await self._inner.read(image) if ready is None else ready

    def needs_preparation(self, image: ImageRef) -> bool:
        """See `Preparer`."""
        if self._inner.accepts(image):
            return True
        is_fittable = extension_of(image.key.rpartition("/")[2]) in FITTABLE_EXTENSIONS
        return is_fittable or (image.size_bytes or 0) > MAX_BYTES_S3

    def may_fix(self, error: ImageError) -> bool:
        """See `Preparer`."""
        return fit_may_help(error.code)

    def has_capacity(self) -> bool:
        """See `Preparer`."""
        return self._held_bytes < self._max_held_bytes

    async def prepare(self, image: ImageRef) -> Prepared | SkipReason:
        """Read the image, and change it if necessary; see `Preparer`."""
        is_sent_as_bytes = self._inner.accepts(image)
        data = await (self._inner if is_sent_as_bytes else self._objects).read(image)
        if not is_sent_as_bytes and is_within_limits(data, limit_bytes=MAX_BYTES_S3):
            return Prepared()
        try:
            fitted = await anyio.to_thread.run_sync(fit, data, limiter=self._processors, abandon_on_cancel=True)
        except ImageError as error:
            return SkipReason(error.code, str(error))
        if fitted is not None:
            self._hold(image, fitted.data)
        elif image.bucket:
            self._hold(image, data)  # so that it is not fetched twice; a local file is cheap to read again
        return Prepared(None if fitted is None else fitted.note)

    def release(self, image: ImageRef) -> None:
        """Free the changed bytes."""
        self._held_bytes -= len(self._ready.pop(_key(image), b""))

    def _hold(self, image: ImageRef, data: bytes) -> None:
        self._ready[_key(image)] = data
        self._held_bytes += len(data)


@asynccontextmanager
async def open_fitting_reader(inner: ImageReader, aws: Aws, *, region: str) -> AsyncIterator[FittingReader]:
    """Open a reader that fits the images of `inner` and those in S3 in `region`; it is closed after the block."""
    async with open_object_reader(aws, region=region) as objects:
        yield FittingReader(inner, objects)


def _key(image: ImageRef) -> _Key:
    return image.uri, image.version_id, image.member
