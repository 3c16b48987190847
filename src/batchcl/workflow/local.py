"""Labelled images on this machine: a folder for each label, or a Ground Truth manifest with paths.

Everything that can be told before an upload is told here: what is no image, too large or too small, and how many labels
there are. Blocking; call it from a worker thread.
"""

from __future__ import annotations

import csv
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import GroundTruth, parse_line
from batchcl.image_header import check_bytes
from batchcl.images import EXTENSIONS, MAX_BYTES_S3, ImageRef, SkipReason, check_limits, escaped, suffix_of
from batchcl.sources.base import parse_s3_uri
from batchcl.sources.files import open_list
from batchcl.sources.text_lists import check_length, numbered_lines, skip_mark
from batchcl.workflow.manifest import MAX_LINES, check_line, is_unfinished

__all__ = ["DatasetEntry", "LocalDataset", "LocalImage", "Skipped", "check_file", "read_local", "split_entries"]

_KINDS: Final = {"train": "train", "training": "train", "test": "test", "testing": "test"}
"""Folders of a directory that is divided."""

_IN_A_LABEL: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """A file to upload: `key` is its path below the directory, with slashes; `md5` is that of its bytes, in hex."""

    path: Path
    key: str
    size_bytes: int
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One image of a dataset.

    Attributes:
        image: the file; None for an image that lies in S3 already.
        uri: where it lies in S3; None for a file.
        labels: what is on it, each once.
        attributes: the manifest line without its `source-ref`; None for a file in a folder, which has labels alone.
        kind: `train` or `test`, where a directory is divided so.
    """

    image: LocalImage | None
    uri: str | None
    labels: tuple[str, ...]
    attributes: dict[str, Any] | None = None
    kind: str | None = None

    @property
    def name(self) -> str:
        """The file's key, or the URI."""
        return str(self.uri) if self.image is None else self.image.key

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
    """What a directory or manifest holds.

    Attributes:
        entries: in the order of their names or lines.
        skipped: what the service would refuse.
        hidden: hidden files and folders, which are left out.
        divided: whether the entries are divided into a training and a test dataset, as their `kind` says.
    """

    entries: tuple[DatasetEntry, ...]
    skipped: tuple[Skipped, ...] = ()
    hidden: int = 0
    divided: bool = False

    def labels(self, kind: str | None = None) -> dict[str, int]:
        """How many images have each label, sorted by label; of the dataset `kind` alone where it is given."""
        entries = [entry for entry in self.entries if kind in {None, entry.kind}]
        return dict(sorted(Counter(label for entry in entries for label in entry.labels).items()))

    def remarks(self) -> list[str]:
        """What the service takes, but was hardly meant, a sentence each."""
        return [*self._alike(), *self._copies(), *self._only_in_test(), *self._left_out()]

    def _alike(self) -> Iterator[str]:
        spellings: dict[str, list[str]] = {}
        for label in self.labels():
            plain = "".join(unicodedata.normalize("NFKC", label).casefold().split()).replace("_", "").replace("-", "")
            spellings.setdefault(plain, []).append(label)
        for labels in spellings.values():
            if len(labels) > 1:
                named = ", ".join(map(repr, labels))
                yield f"the labels {named} differ only in case, spaces or Unicode form; they are {len(labels)} labels"

    def _copies(self) -> Iterator[str]:
        places: dict[str, list[DatasetEntry]] = {}
        for entry in self.entries:
            places.setdefault(entry.identity, []).append(entry)
        labels = [same for same in places.values() if len({entry.labels for entry in same}) > 1]
        if labels:
            first = _pair(labels[0], lambda entry: entry.labels)
            yield f"identical pictures under more than one label: {len(labels):,}, such as {first}"
        kinds = [same for same in places.values() if len({entry.kind for entry in same}) > 1]
        if kinds:
            first = _pair(kinds[0], lambda entry: entry.kind)
            yield f"identical pictures in both datasets: {len(kinds):,}, such as {first}"

    def _only_in_test(self) -> Iterator[str]:
        if self.divided:
            train, test = self.labels("train"), self.labels("test")
            for which, only in (("test", test.keys() - train.keys()), ("training", train.keys() - test.keys())):
                if only:
                    yield f"only the {which} dataset has {', '.join(map(repr, sorted(only)))}"

    def _left_out(self) -> Iterator[str]:
        if self.hidden:
            yield f"hidden files and folders that are left out: {self.hidden:,}"


def _pair(entries: Sequence[DatasetEntry], by: Callable[[DatasetEntry], object]) -> str:
    """Two entries that differ."""
    other = next(entry for entry in entries if by(entry) != by(entries[0]))
    return f"{entries[0].name} and {other.name}"


def read_local(path: str | os.PathLike[str]) -> LocalDataset:
    """Read a directory with a folder for each label, a Ground Truth manifest, or AWS's CSV `image,label,…`.

    In a directory the first folder below it is the label, however deep a file lies in it. Where there are only the
    folders `train` and `test`, with such folders in them, these are the two datasets. Hidden files and folders are left
    out and counted. In a manifest or CSV an image that is no `s3://` URI is a path relative to its directory. Labels
    and boxes of a manifest stay as they are, in the form that Custom Labels takes.

    Raises:
        SourceError: it can't be read or has no usable image.
    """
    place = Path(path)
    if place.is_dir():
        found = _from_folders(place)
    elif place.is_file():
        found = _from_list(place)
    else:
        raise SourceError(f"there is no directory or manifest {place}; check the path")
    if not found.entries:
        first = found.skipped[0] if found.skipped else None
        why = f" ({len(found.skipped)} can't: {first.path}: {first.reason})" if first else ""
        advice = "; a directory needs a folder for each label" if place.is_dir() else ""
        raise SourceError(f"{place} has no image that can be used{why}{advice}")
    return found


def check_file(manifest: Path, name: str) -> tuple[list[str], list[str]]:
    """What is wrong with lines of a manifest of which the service takes each as it is, and which it doesn't take so.

    Raises:
        SourceError: it can't be read, or its images are in several buckets.
    """
    bad: list[str] = []
    unfinished: list[str] = []
    buckets: set[str] = set()
    with open_list(manifest, name) as file:
        skip_mark(file, name)
        for number, line in numbered_lines(file):
            if not line.strip():
                continue
            try:
                reference, _, attributes = _manifest_line(line)
                buckets.add(parse_s3_uri(reference)[0])
            except SourceError as error:
                bad.append(f"line {number}: {error}")
                continue
            if is_unfinished(attributes):
                unfinished.append(f"line {number}")
    if len(buckets) > 1:
        raise SourceError(_in_several_buckets(name, sorted(buckets)))
    return bad, unfinished


def _in_several_buckets(name: str, buckets: Sequence[str]) -> str:
    return (
        f"the images of {name} are in {len(buckets)} buckets: {', '.join(buckets)}; a dataset takes images of one "
        "bucket: copy them into one"
    )


def split_entries(
    entries: tuple[DatasetEntry, ...], share: float
) -> tuple[tuple[DatasetEntry, ...], tuple[DatasetEntry, ...]]:
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
    entries: list[DatasetEntry] = []
    skipped: list[Skipped] = []
    files, hidden = _files(root)
    places = [path.relative_to(root).parts for path in files]
    divided = _is_divided(places)
    for path, parts in zip(files, places, strict=True):
        *folders, _ = parts
        kind = _KINDS.get(folders.pop(0).lower()) if divided and folders else None
        if divided and len(parts) > 1 and kind is None:
            reason = "it lies beside train and test, which are all the datasets that a project has"
            skipped.append(Skipped(_shown(path), "NoDataset", reason))
            continue
        if not folders:
            skipped.append(Skipped(_shown(path), "NoLabel", "it lies in no folder, whose name would be its label"))
            continue
        image = _image(path, "/".join(parts))
        if isinstance(image, SkipReason):
            skipped.append(Skipped(_shown(path), image.code, image.message))
        else:
            entries.append(DatasetEntry(image=image, uri=None, labels=(folders[0],), kind=kind))
    return LocalDataset(tuple(entries), tuple(skipped), hidden, divided)


def _is_divided(places: Sequence[tuple[str, ...]]) -> bool:
    """Whether images lie in `train/<label>` and `test/<label>`, so that the first folder is no label."""
    inside = [parts for parts in places if len(parts) > 1 and parts[0].lower() in _KINDS]
    are_labels = any(len(parts) == _IN_A_LABEL and suffix_of(parts[1]) in EXTENSIONS for parts in inside)
    return {_KINDS[parts[0].lower()] for parts in inside} == {"train", "test"} and not are_labels


def _from_list(path: Path) -> LocalDataset:
    entries: list[DatasetEntry] = []
    skipped: list[Skipped] = []
    buckets: Counter[str] = Counter()
    for number, line in _lines(path):
        place = f"{_shown(path)}, line {number}"
        try:
            reference, labels, attributes = line()
            bucket = None
            if reference.startswith("s3://"):
                bucket, _ = parse_s3_uri(reference)
        except SourceError as error:
            skipped.append(Skipped(place, "BadLine", str(error)))
            continue
        if bucket is not None:
            buckets[bucket] += 1
            entries.append(DatasetEntry(image=None, uri=reference, labels=labels, attributes=attributes))
            continue
        file = path.parent / reference
        image = _image(file, _below(file, path.parent, number))
        if isinstance(image, SkipReason):
            skipped.append(Skipped(_shown(file), image.code, image.message))
        else:
            entries.append(DatasetEntry(image=image, uri=None, labels=labels, attributes=attributes))
    if len(buckets) > 1:
        named = [f"{bucket} ({count:,} images)" for bucket, count in buckets.most_common()]
        raise SourceError(_in_several_buckets(str(path), named))
    if len(entries) > MAX_LINES:
        raise SourceError(f"{path} has {len(entries):,} images, and a dataset takes {MAX_LINES:,}; leave some out")
    return LocalDataset(tuple(entries), tuple(skipped))


_Line = Callable[[], tuple[str, tuple[str, ...], dict[str, Any] | None]]
"""Gives the image, its labels and its attributes, or raises `SourceError`."""


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    """The lines of a manifest, or the rows of a CSV."""
    with open_list(path, str(path)) as file:
        skip_mark(file, str(path))
        is_manifest = file.peek(1).lstrip()[:1] in {b"{", b"["}
        if is_manifest:
            for number, line in numbered_lines(file):
                if line.strip():
                    yield number, partial(_manifest_line, line)
        else:
            reader = csv.reader(line.decode("utf-8", "surrogateescape") for line in file)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, partial(_csv_row, row)
            except csv.Error as error:
                raise SourceError(f"{path}, line {reader.line_num}: {error}; correct it") from error


def _manifest_line(line: bytes) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    check_length(line)
    truth = parse_line(line)
    attributes = orjson.loads(truth.extra) if truth.extra else {}
    check_line(truth, attributes)
    return truth.source_ref, truth.labels, attributes


def _csv_row(row: Sequence[str]) -> tuple[str, tuple[str, ...], None]:
    image, *labels = row
    named = tuple(dict.fromkeys(label for label in labels if label))
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        raise SourceError("it is not UTF-8 text") from error
    if not image or not named:
        raise SourceError(f"{','.join(row)[:80]!r} is neither a manifest's JSON nor image,label")
    check_line(GroundTruth(source_ref=image, labels=named, task="classification"), {})
    return image, named, None


def _below(path: Path, folder: Path, number: int) -> str:
    """The key of a manifest's file; one that lies elsewhere gets its line's number, so that no two collide."""
    absolute, root = (Path(os.path.abspath(each)) for each in (path, folder))
    if absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return f"{number:06}-{path.name}"


def _files(root: Path) -> tuple[list[Path], int]:
    """The files below, by their folders, and how many hidden files and folders are left out."""
    found: list[Path] = []
    hidden = 0
    for folder, folders, names in os.walk(root, onerror=_refuse):
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += (Path(folder, name) for name in sorted(names) if not name.startswith("."))
    return found, hidden


def _image(path: Path, key: str) -> LocalImage | SkipReason:
    try:
        size = path.stat().st_size
        why = check_limits(ImageRef(uri=key, bucket="-", key=key, size_bytes=size))  # as it would lie in a bucket
        if why is not None:
            return why
        with path.open("rb") as file:
            data = file.read(MAX_BYTES_S3 + 1)
    except OSError as error:
        return SkipReason("Unreadable", f"it can't be read: {error.strerror or error}")
    why = check_bytes(data)
    if why is not None:
        return why
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()  # S3's entity tag of a plain upload
    return LocalImage(path=path, key=key, size_bytes=len(data), md5=digest)


def _shown(path: Path) -> str:
    return escaped(str(path))


def _refuse(error: OSError) -> None:
    """A folder that can't be read would lose its images silently."""
    raise SourceError(f"can't read the directory {error.filename}: {error.strerror}; allow it, or move it away")
