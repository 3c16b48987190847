"""The entries of datasets: checked manifest lines, kept on disk and, for recently used datasets, in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from batchcl.emulator.manifest import BAD_SHARE, MAX_LABELS, ManifestEntry, validate_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchcl.emulator.records import StoredDataset
    from batchcl.emulator.state import EmulatorState

__all__ = ["Contents", "DatasetFiles", "contents_of"]

_MAX_CACHED: Final = 4

_EMPTY: Final = "The manifest file extension or contents are invalid."
_TOO_MANY_ROWS: Final = "The manifest file has too many rows."
_TOO_MANY_BAD: Final = "The manifest file has too many terminal errors."
_TOO_MANY_LABELS: Final = "The manifest file has too many labels."


@dataclass(frozen=True, slots=True)
class Contents:
    """Entries for a dataset; `refusal` is the service's error message if they can't be used."""

    entries: tuple[ManifestEntry, ...]
    refusal: str | None = None


async def contents_of(lines: Sequence[bytes], *, most: int, kept: Sequence[ManifestEntry] = ()) -> Contents:
    """The at most `most` entries of a dataset with the entries `kept` after `lines` were added, replacing by image.

    Lines that a dataset can't hold are dropped, and so are all but the first line of an image. If these are more than
    a fifth, the lines are refused (Custom Labels guide, "Terminal errors").
    """
    if not lines:
        return Contents(tuple(kept), _EMPTY)
    if len(lines) > most:
        return Contents(tuple(kept), _TOO_MANY_ROWS)
    return await anyio.to_thread.run_sync(_gather, lines, kept, most)


def _gather(lines: Sequence[bytes], kept: Sequence[ManifestEntry] = (), most: float = math.inf) -> Contents:
    new: dict[str, ManifestEntry] = {}
    bad = 0
    for line in lines:
        entry = validate_line(line)
        if entry.unfit is not None or entry.source_ref is None or entry.source_ref in new:
            bad += 1
        else:
            new[entry.source_ref] = entry
    merged = {str(e.source_ref): e for e in kept} | new
    entries = tuple(merged.values())
    if bad > BAD_SHARE * max(1, len(lines)):
        return Contents(tuple(kept), _TOO_MANY_BAD)
    if len(entries) > most:
        return Contents(tuple(kept), _TOO_MANY_ROWS)
    if len(labels_of(entries)) > MAX_LABELS:
        return Contents(tuple(kept), _TOO_MANY_LABELS)
    return Contents(entries)


def labels_of(entries: Iterable[ManifestEntry]) -> set[str]:
    """All labels of the entries."""
    return {label for e in entries if e.truth is not None for label in e.truth.labels}


class DatasetFiles:
    """Reads and writes the entries of datasets, with a cache of the four datasets used last."""

    def __init__(self, state: EmulatorState) -> None:
        self._state = state
        self._cache: dict[str, tuple[ManifestEntry, ...]] = {}

    def write(self, dataset: StoredDataset, entries: Iterable[ManifestEntry]) -> None:
        """Replace a dataset's entries and its counts; the caller saves the state."""
        kept = tuple(entries)
        self._state.write_manifest(dataset.arn, b"".join(e.line + b"\n" for e in kept))
        dataset.entries = len(kept)
        dataset.labeled_entries = sum(e.labeled for e in kept)
        dataset.error_entries = sum(bool(e.errors) for e in kept)
        dataset.labels = len(labels_of(kept))
        self._put(dataset.arn, kept)

    async def read(self, dataset: StoredDataset) -> tuple[ManifestEntry, ...]:
        """The entries of a dataset, in order."""
        entries = self._cache.get(dataset.arn)
        if entries is None:
            manifest = self._state.read_manifest(dataset.arn)
            entries = (await anyio.to_thread.run_sync(_gather, manifest.splitlines())).entries
            self._put(dataset.arn, entries)
        return entries

    def _put(self, arn: str, entries: tuple[ManifestEntry, ...]) -> None:
        self._cache.pop(arn, None)
        self._cache[arn] = entries
        while len(self._cache) > _MAX_CACHED:
            del self._cache[next(iter(self._cache))]
