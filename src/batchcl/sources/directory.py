"""A local directory, recursively."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from itertools import dropwhile, islice
from pathlib import Path

import anyio.to_thread

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import PAGE, Checked, Position, local_image

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

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The files in pages."""
        files = self._files() if after is None else self._files_after(after.key)
        while page := await anyio.to_thread.run_sync(lambda: list(islice(files, PAGE))):
            yield page

    async def contains(self, image: ImageRef) -> bool:
        """Whether `image` lies below the directory."""
        path = Path(image.key)
        left_out = self._leave_out is not None and path.is_relative_to(self._leave_out)
        return image.local and path.is_relative_to(self._root) and not left_out

    @property
    def repeated(self) -> int:
        """A directory has each path once."""
        return 0

    def _files_after(self, key: str) -> Iterator[ImageRef]:
        last = self._order(key)
        return dropwhile(lambda image: self._order(image.key) <= last, self._files())

    def _order(self, path: str) -> list[tuple[bool, str]]:
        """Sorts paths as `_files` walks: a folder's files before its folders."""
        *folders, name = Path(path).relative_to(self._root).parts
        return [*((True, folder) for folder in folders), (False, name)]

    def _files(self) -> Iterator[ImageRef]:
        for folder, folders, names in os.walk(self._root, onerror=_refuse):
            folders[:] = sorted(name for name in folders if Path(folder, name) != self._leave_out)
            for name in sorted(names):
                yield local_image(os.path.join(folder, name))  # noqa: PTH118 - a Path per file costs more than the rest


def _refuse(error: OSError) -> None:
    """A folder that can't be read would lose its images silently."""
    raise SourceError(f"can't read the directory {error.filename}: {error.strerror}; allow it, or name other sources")
