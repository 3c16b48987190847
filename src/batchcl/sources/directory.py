"""A local directory as a source, recursively."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import dropwhile, islice
from pathlib import Path

import anyio.to_thread

from batchcl.errors import ErrorCode, SourceError
from batchcl.images import ImageRef, Position
from batchcl.sources.base import PAGE, SourceCheck, local_image
from batchcl.sources.deduplication import NO_NAMES

__all__ = ["DirectorySource"]


class DirectorySource:
    """Every file below a directory: first a folder's files by name, then its folders by name.

    Links to files are followed; links to directories are not, because they may form cycles. Folders in `leave_out` are
    excluded, because they belong to the output root.
    """

    repeats = NO_NAMES
    exhaustive = False
    """Links to directories and the output root are skipped."""

    def __init__(self, path: str, *, leave_out: Sequence[Path] = (), is_explicit: bool = False) -> None:
        self.is_explicit = is_explicit
        self.description = path
        self._root = Path(os.path.abspath(path))
        self._leave_out = leave_out

    async def check(self) -> SourceCheck:
        """See `Source`. Raises `SourceError` if the directory does not exist or can't be read."""
        try:
            with os.scandir(self._root):
                folders = tuple(f"{folder}/" for folder in self._leave_out if self._is_inside(folder))
                return SourceCheck(excluded_folders=folders)
        except OSError as error:
            raise SourceError(
                f"can't read the directory {self._root}: {error.strerror}; check the path",
                code=ErrorCode.UNREADABLE_SOURCE,
            ) from error

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """See `Source`."""
        files = self._files() if after is None else self._files_after(after.key)
        while page := await anyio.to_thread.run_sync(lambda: list(islice(files, PAGE)), abandon_on_cancel=True):
            yield page

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """See `Source`; true for all paths below the directory, including those that are skipped."""
        root = os.fspath(self._root).rstrip("/") + "/"
        return [image.local and image.key.startswith(root) for image in images]

    def _is_excluded(self, folder: Path) -> bool:
        """Whether `folder` is one of those to exclude, possibly by another path."""
        return any(_is_same(folder, each) for each in self._leave_out)

    def _is_inside(self, folder: Path) -> bool:
        return any(_is_same(each, self._root) for each in folder.parents)

    def _files_after(self, key: str) -> Iterator[ImageRef]:
        last = self._sort_key(key)
        return dropwhile(lambda image: self._sort_key(image.key) <= last, self._files())

    def _sort_key(self, path: str) -> list[tuple[bool, str]]:
        """Sorts paths in the order of `_files`: a folder's files before its folders."""
        *folders, name = Path(path).relative_to(self._root).parts
        return [*((True, folder) for folder in folders), (False, name)]

    def _files(self) -> Iterator[ImageRef]:
        for folder, folders, names in os.walk(self._root, onerror=_raise_source_error):
            folders[:] = sorted(name for name in folders if not self._is_excluded(Path(folder, name)))
            for name in sorted(names):
                yield local_image(os.path.join(folder, name))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False  # one of them does not exist


def _raise_source_error(error: OSError) -> None:
    """By default, `os.walk` skips folders that can't be read."""
    raise SourceError(
        f"can't read the directory {error.filename}: {error.strerror}; change its permissions, or name other sources",
        code=ErrorCode.UNREADABLE_SOURCE,
    )
