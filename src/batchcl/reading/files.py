"""Images on this machine's disks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from batchcl.errors import HostError, ImageError
from batchcl.images import ImageRef

__all__ = ["FileReader"]

_DEADLINE_S: Final = 60.0


class FileReader:
    """Reads local files. See `ImageReader`."""

    def carries(self, image: ImageRef) -> bool:
        """Local images do."""
        return image.local

    async def read(self, image: ImageRef) -> bytes:
        """The file's bytes."""
        try:
            with anyio.fail_after(_DEADLINE_S):
                return await anyio.to_thread.run_sync(_read_file, image.key, abandon_on_cancel=True)
        except TimeoutError as error:
            raise HostError(f"{image.key} couldn't be read within {_DEADLINE_S:.0f} s", code="Timeout") from error


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"the file can't be read: {error.strerror}", code="UnreadableFile") from error
