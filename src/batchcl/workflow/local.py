"""Labelled images on this machine: a folder for each label, or a Ground Truth manifest with paths.

Everything that can be told before an upload is told here: what is no image, too large or too small, and how many labels
there are. Blocking; call it from a worker thread.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line
from batchcl.images import MAX_BYTES_S3, ImageRef, Unfit, escaped, unfit
from batchcl.pixels import unfit_bytes

__all__ = ["Entry", "LocalDataset", "LocalImage", "Skipped", "read_local", "split_entries"]

_SOURCE: Final = "source-ref"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """A file to upload: `key` is its path below the directory, with slashes; `md5` is that of its bytes, in hex."""

    path: Path
    key: str
    size_bytes: int
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image of a dataset.

    Attributes:
        image: the file; None for an image that lies in S3 already.
        uri: where it lies in S3; None for a file.
        labels: what is on it, each once.
        attributes: the manifest line without its `source-ref`; None for a file in a folder, which has labels alone.
    """

    image: LocalImage | None
    uri: str | None
    labels: tuple[str, ...]
    attributes: dict[str, Any] | None = None

    @property
    def identity(self) -> str:
        """The same for two images that are surely the same."""
        return self.image.md5 if self.image is not None else str(self.uri)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that the service would refuse: a stable `code` for tables, a `reason` for people."""

    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """What a directory or manifest holds: entries in the order of their names or lines."""

    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()

    def labels(self) -> dict[str, int]:
        """How many images have each label, sorted by label."""
        return dict(sorted(Counter(label for entry in self.entries for label in entry.labels).items()))


def read_local(path: str | os.PathLike[str]) -> LocalDataset:
    """Read a directory with a folder for each label, or a Ground Truth manifest.

    In a directory the first folder below it is the label, however deep a file lies in it. Hidden files and folders are
    passed over. In a manifest a `source-ref` that is no `s3://` URI is a path relative to the manifest's directory;
    its labels and boxes stay as they are.

    Raises:
        SourceError: it can't be read, has no usable image, or a manifest line is broken.
    """
    place = Path(path)
    if place.is_dir():
        found = _from_folders(place)
    elif place.is_file():
        found = _from_manifest(place)
    else:
        raise SourceError(f"there is no directory or manifest {place}; check the path")
    if not found.entries:
        first = found.skipped[0] if found.skipped else None
        why = f" ({len(found.skipped)} can't: {first.path}: {first.reason})" if first else ""
        raise SourceError(f"{place} has no image that can be used{why}; a directory needs a folder for each label")
    return found


def split_entries(entries: tuple[Entry, ...], share: float) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Put a share of each label's images aside for the test; return (the rest, the test set), in their order.

    What is put aside follows from the images' bytes alone, so the same images give the same sets, and copies of an
    image never are in both. A label with two or more different images has at least one in each set, unless some of them
    lie under other labels too.

    Args:
        entries: all of them.
        share: between 0 and 1, of each label's different images.
    """
    groups: dict[tuple[str, ...], set[str]] = {}
    for entry in entries:
        groups.setdefault(entry.labels, set()).add(entry.identity)
    aside: set[str] = set()
    for identities in groups.values():
        ordered = sorted(identities, key=lambda each: hashlib.sha256(each.encode()).digest())
        wanted = round(share * len(ordered))
        aside.update(ordered[: min(max(wanted, 1), len(ordered) - 1)])
    return (
        tuple(entry for entry in entries if entry.identity not in aside),
        tuple(entry for entry in entries if entry.identity in aside),
    )


def _from_folders(root: Path) -> LocalDataset:
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for path in _files(root):
        parts = path.relative_to(root).parts
        if len(parts) == 1:
            skipped.append(Skipped(_shown(path), "NoLabel", "it lies in no folder, whose name would be its label"))
            continue
        image = _image(path, "/".join(parts))
        if isinstance(image, Unfit):
            skipped.append(Skipped(_shown(path), image.code, image.message))
        else:
            entries.append(Entry(image=image, uri=None, labels=(parts[0],)))
    return LocalDataset(tuple(entries), tuple(skipped))


def _from_manifest(manifest: Path) -> LocalDataset:
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    try:
        lines = manifest.read_bytes().splitlines()
    except OSError as error:
        raise SourceError(f"reading the manifest {manifest} failed: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            truth = parse_line(line)
        except SourceError as error:
            raise SourceError(f"{manifest}, line {number}: {error}") from error
        attributes = orjson.loads(truth.extra) if truth.extra else {}
        if truth.source_ref.startswith("s3://"):
            entries.append(Entry(image=None, uri=truth.source_ref, labels=truth.labels, attributes=attributes))
            continue
        path = manifest.parent / truth.source_ref
        image = _image(path, _below(path, manifest.parent, number))
        if isinstance(image, Unfit):
            skipped.append(Skipped(_shown(path), image.code, image.message))
        else:
            entries.append(Entry(image=image, uri=None, labels=truth.labels, attributes=attributes))
    return LocalDataset(tuple(entries), tuple(skipped))


def _below(path: Path, folder: Path, number: int) -> str:
    """The key of a manifest's file; one that lies elsewhere gets its line's number, so that no two collide."""
    absolute, root = (Path(os.path.abspath(each)) for each in (path, folder))  # noqa: PTH100 - links stay as they are
    if absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return f"{number:06}-{path.name}"


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _image(path: Path, key: str) -> LocalImage | Unfit:
    try:
        size = path.stat().st_size
        why = unfit(ImageRef(uri=key, bucket="-", key=key, size_bytes=size))  # as it would lie in a bucket
        if why is not None:
            return why
        with path.open("rb") as file:
            data = file.read(MAX_BYTES_S3 + 1)
    except OSError as error:
        return Unfit("Unreadable", f"it can't be read: {error.strerror or error}")
    why = unfit_bytes(data)
    if why is not None:
        return why
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()  # S3's entity tag of a plain upload
    return LocalImage(path=path, key=key, size_bytes=len(data), md5=digest)


def _shown(path: Path) -> str:
    return escaped(str(path))


def _refuse(error: OSError) -> None:
    """A folder that can't be read would lose its images silently."""
    raise SourceError(f"can't read the directory {error.filename}: {error.strerror}; allow it, or move it away")
