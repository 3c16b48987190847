"""Reads local images: files, and members of tar archives."""

from __future__ import annotations

import datetime as dt
import errno
import os
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from batchcl.aws.errors import is_shortage, shortage
from batchcl.errors import CallError, HostError, ImageError
from batchcl.images import ImageRef
from batchcl.loaders.base import changed_archive, whole_member

__all__ = ["FileReader"]

_DEADLINE_S: Final = 60.0
_PERMANENT_ERRNOS: Final = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV),
    }
)
"""Errors that a retry does not fix. Network file systems have many others, which are transient."""


class FileReader:
    """Reads local files and members of local archives. See `ImageReader`."""

    def accepts(self, image: ImageRef) -> bool:
        """Whether the image is local."""
        return image.local

    async def read(self, image: ImageRef) -> bytes:
        """The bytes of the file or member; raises `ImageError` if the archive has changed since it was listed."""
        try:
            with anyio.fail_after(_DEADLINE_S):
                return await anyio.to_thread.run_sync(_read, image, abandon_on_cancel=True)
        except TimeoutError as error:
            raise HostError(f"reading {image.key} took longer than {_DEADLINE_S:.0f} s", code="Timeout") from error


def _read(image: ImageRef) -> bytes:
    try:
        if image.member is None:
            return Path(image.key).read_bytes()
        with Path(image.member.archive).open("rb") as file:
            if image.last_modified not in {None, dt.datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, dt.UTC)}:
                raise changed_archive(image.member.archive)
            file.seek(image.member.offset)
            return whole_member(image, file.read(image.size_bytes or 0))
    except (OSError, MemoryError) as error:
        raise _as_call_error(error) from error


def _as_call_error(error: OSError | MemoryError) -> CallError:
    if is_shortage(error):
        return shortage(error)
    reason = f"the file can't be read: {getattr(error, 'strerror', None) or error}"
    kind = ImageError if getattr(error, "errno", None) in _PERMANENT_ERRNOS else HostError
    return kind(reason, code="UnreadableFile")
