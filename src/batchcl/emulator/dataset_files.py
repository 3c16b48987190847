"""What is in a dataset: its entries on disk and, for the datasets in use, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from batchcl.emulator.manifest import BAD_SHARE, MAX_ENTRIES, MAX_LABELS, ManifestEntry, review

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchcl.emulator.records import StoredDataset
    from batchcl.emulator.state import EmulatorState

__all__ = ["Contents", "DatasetFiles", "contents_of", "gather"]

_AT_HAND: Final = 4

_NOTHING: Final = "The manifest file extension or contents are invalid."
_TOO_MANY_ROWS: Final = "The manifest file has too many rows."
_TOO_MANY_BAD: Final = "The manifest file has too many terminal errors."
_TOO_MANY_LABELS: Final = "The manifest file has too many labels."


@dataclass(frozen=True, slots=True)
class Contents:
    """Entries for a dataset; `refusal` is the service's message where they can't be one."""

    entries: tuple[ManifestEntry, ...]
    refusal: str | None = None


async def contents_of(lines: Sequence[bytes], *, kept: Sequence[ManifestEntry] = ()) -> Contents:
    """What `lines` make of a dataset that has `kept`; of an image that both name, the line's is the valid one.

    Lines that no dataset can hold are left out, as are all but the first of several lines of one image. More than a
    fifth of such lines is a refusal (Custom Labels guide, "Terminal errors").
    """
    if not lines:
        return Contents(tuple(kept), _NOTHING)
    if len(lines) > MAX_ENTRIES:
        return Contents(tuple(kept), _TOO_MANY_ROWS)
    return await anyio.to_thread.run_sync(gather, lines, kept)


def gather(lines: Sequence[bytes], kept: Sequence[ManifestEntry] = ()) -> Contents:
    """`contents_of`, blocking, and without its limits on the number of lines."""
    new: dict[str, ManifestEntry] = {}
    bad = 0
    for line in lines:
        entry = review(line)
        if entry.unfit is not None or entry.source_ref is None or entry.source_ref in new:
            bad += 1
        else:
            new[entry.source_ref] = entry
    together = {str(e.source_ref): e for e in kept} | new
    entries = tuple(together.values())
    if bad > BAD_SHARE * max(1, len(lines)):
        return Contents(tuple(kept), _TOO_MANY_BAD)
    if len(entries) > MAX_ENTRIES:
        return Contents(tuple(kept), _TOO_MANY_ROWS)
    if len(labels_of(entries)) > MAX_LABELS:
        return Contents(tuple(kept), _TOO_MANY_LABELS)
    return Contents(entries)


def labels_of(entries: Iterable[ManifestEntry]) -> set[str]:
    """Every label of the entries."""
    return {label for e in entries if e.truth is not None for label in e.truth.labels}


class DatasetFiles:
    """Reads and writes datasets' entries; those of the last few datasets stay in memory."""

    def __init__(self, state: EmulatorState) -> None:
        self._state = state
        self._at_hand: dict[str, tuple[ManifestEntry, ...]] = {}

    def write(self, dataset: StoredDataset, entries: Iterable[ManifestEntry]) -> None:
        """Replace a dataset's entries and its counts; the caller saves the state."""
        kept = tuple(entries)
        self._state.write_manifest(dataset.arn, b"".join(e.line + b"\n" for e in kept))
        dataset.entries = len(kept)
        dataset.labeled_entries = sum(e.labeled for e in kept)
        dataset.error_entries = sum(bool(e.errors) for e in kept)
        dataset.labels = len(labels_of(kept))
        self._keep(dataset.arn, kept)

    async def read(self, dataset: StoredDataset) -> tuple[ManifestEntry, ...]:
        """A dataset's entries in its order."""
        found = self._at_hand.get(dataset.arn)
        if found is None:
            manifest = self._state.read_manifest(dataset.arn)
            found = (await anyio.to_thread.run_sync(gather, manifest.splitlines())).entries
            self._keep(dataset.arn, found)
        return found

    def _keep(self, arn: str, entries: tuple[ManifestEntry, ...]) -> None:
        self._at_hand.pop(arn, None)
        self._at_hand[arn] = entries
        while len(self._at_hand) > _AT_HAND:
            del self._at_hand[next(iter(self._at_hand))]
