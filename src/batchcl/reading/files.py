"""Images on this machine's disks."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from batchcl.errors import ImageError
from batchcl.images import ImageRef

__all__ = ["FileReader"]


class FileReader:
    """Reads local files. See `ImageReader`."""

    def carries(self, image: ImageRef) -> bool:
        """Local images do."""
        return image.local

    async def read(self, image: ImageRef) -> bytes:
        """The file's bytes."""
        return await anyio.to_thread.run_sync(_read_file, image.key, abandon_on_cancel=True)


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"the file can't be read: {error.strerror}", code="UnreadableFile") from error
