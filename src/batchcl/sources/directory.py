"""A local directory, recursively."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path

import anyio.to_thread

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import PAGE, Checked, local_image

__all__ = ["DirectorySource"]


class DirectorySource:
    """Every file below a directory, in the order of their paths.

    Links to files are followed, links to directories are not, as they may lead in circles. Files below `leave_out`
    (the output root, when it lies inside) don't belong to the source.
    """

    def __init__(self, path: str, *, leave_out: Path | None = None) -> None:
        self.description = path
        self._root = Path(path).absolute()
        self._leave_out = leave_out

    async def check(self) -> Checked:
        """Raises `SourceError` where the directory is missing or may not be read."""
        try:
            with os.scandir(self._root):
                return Checked()
        except OSError as error:
            raise SourceError(f"can't read the directory {self._root}: {error.strerror}; check the path") from error

    async def pages(self) -> AsyncIterator[list[ImageRef]]:
        """The files in pages."""
        files = self._files()
        while page := await anyio.to_thread.run_sync(lambda: list(islice(files, PAGE))):
            yield page

    def _files(self) -> Iterator[ImageRef]:
        for folder, folders, names in os.walk(self._root, onerror=_refuse):
            folders[:] = sorted(name for name in folders if Path(folder, name) != self._leave_out)
            for name in sorted(names):
                yield local_image(os.path.join(folder, name))  # noqa: PTH118 - a Path per file costs more than the rest


def _refuse(error: OSError) -> None:
    """A folder that can't be read would lose its images silently."""
    raise SourceError(f"can't read the directory {error.filename}: {error.strerror}; allow it, or name other sources")
