"""Reads labelled local images: a directory with a folder per label, a Ground Truth manifest, or a CSV file.

All checks that are possible before an upload happen here: files that are not images, or too large or too small, and the
labels. Blocking; call it from a worker thread.
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
from typing import Any

import orjson

from batchcl.annotations import FORMATS, annotation_format, labelled_files
from batchcl.errors import ErrorCode, SourceError
from batchcl.groundtruth import GroundTruth, parse_line
from batchcl.image_header import check_bytes
from batchcl.images import MAX_BYTES_S3, ImageRef, SkipReason, check_limits, escape_name
from batchcl.sources.base import parse_s3_uri
from batchcl.sources.files import open_list
from batchcl.sources.text_lists import check_length, numbered_lines, skip_mark
from batchcl.workflow.manifest import MAX_LINES, check_line, is_unfinished

__all__ = [
    "DatasetEntry",
    "LocalDataset",
    "LocalImage",
    "Skipped",
    "check_file",
    "local_image",
    "read_local",
    "split_entries",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """A file to upload: `key` is its path relative to the directory, with slashes; `md5` is in hex."""

    path: Path
    key: str
    size_bytes: int
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One image of a dataset.

    Attributes:
        image: the local file; None for an image that is already in S3.
        uri: its URI in S3; None for a local file.
        labels: its labels, without duplicates.
        attributes: the manifest line without `source-ref`; None if there are only labels (folders, CSV).
        kind: `train` or `test`, if the directory is divided; else None.
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
        """Equal for identical images: the MD5 of a file, or the URI."""
        return self.image.md5 if self.image is not None else str(self.uri)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or line that can't be used: a stable `code` for programs and a `reason` for people."""

    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """The images of a directory, manifest or CSV file.

    Attributes:
        entries: in the order of their paths or lines.
        skipped: files and lines that the service would reject.
        hidden: number of hidden files and folders, which are ignored.
        divided: whether the entries are divided into a training and a test dataset; see `DatasetEntry.kind`.
    """

    entries: tuple[DatasetEntry, ...]
    skipped: tuple[Skipped, ...] = ()
    hidden: int = 0
    divided: bool = False

    def labels(self, kind: str | None = None) -> dict[str, int]:
        """Number of images per label, sorted by label; only of the dataset `kind` if given."""
        entries = [entry for entry in self.entries if kind in {None, entry.kind}]
        return dict(sorted(Counter(label for entry in entries for label in entry.labels).items()))

    def remarks(self) -> list[str]:
        """Warnings about what the service accepts but is probably a mistake."""
        return [*self._similar_labels(), *self._duplicates(), *self._labels_of_one_dataset(), *self._hidden_files()]

    def _similar_labels(self) -> Iterator[str]:
        spellings: dict[str, list[str]] = {}
        for label in self.labels():
            plain = "".join(unicodedata.normalize("NFKC", label).casefold().split()).replace("_", "").replace("-", "")
            spellings.setdefault(plain, []).append(label)
        for labels in spellings.values():
            if len(labels) > 1:
                names = ", ".join(map(repr, labels))
                yield f"{len(labels)} labels differ only in case, spaces or Unicode form: {names}"

    def _duplicates(self) -> Iterator[str]:
        copies: dict[str, list[DatasetEntry]] = {}
        for entry in self.entries:
            copies.setdefault(entry.identity, []).append(entry)
        labels = [same for same in copies.values() if len({entry.labels for entry in same}) > 1]
        if labels:
            first = _pair(labels[0], lambda entry: entry.labels)
            yield f"identical images with different labels: {len(labels):,}, for example {first}"
        kinds = [same for same in copies.values() if len({entry.kind for entry in same}) > 1]
        if kinds:
            first = _pair(kinds[0], lambda entry: entry.kind)
            yield f"identical images in both datasets: {len(kinds):,}, for example {first}"

    def _labels_of_one_dataset(self) -> Iterator[str]:
        if self.divided:
            train, test = self.labels("train"), self.labels("test")
            for which, only in (("test", test.keys() - train.keys()), ("training", train.keys() - test.keys())):
                if only:
                    yield f"labels that only the {which} dataset has: {', '.join(map(repr, sorted(only)))}"

    def _hidden_files(self) -> Iterator[str]:
        if self.hidden:
            yield f"hidden files and folders ignored: {self.hidden:,}"


def _pair(entries: Sequence[DatasetEntry], by: Callable[[DatasetEntry], object]) -> str:
    """The names of two of the entries that differ in `by`."""
    other = next(entry for entry in entries if by(entry) != by(entries[0]))
    return f"{entries[0].name} and {other.name}"


def read_local(path: str | os.PathLike[str]) -> LocalDataset:
    """Read a directory with a folder per label, a Ground Truth manifest, or AWS's CSV format `image,label,…`.

    In a directory, the first folder of a path is the label, at any depth. If the directory has only the folders
    `train` and `test`, with the labels' folders in them, these are the two datasets. Hidden files and folders are
    ignored and counted. In a manifest or CSV file, an image without `s3://` is a path relative to the file's directory.
    The labels and boxes of a manifest are kept, in the form that Custom Labels accepts.

    Raises:
        SourceError: the path can't be read or has no image that can be used.
    """
    location = Path(path)
    if location.is_dir():
        local = _from_folders(location)
    elif location.is_file():
        local = _from_list(location)
    else:
        raise SourceError(
            f"reading {location} failed: no such directory or file. Check the path.", code=ErrorCode.SOURCE_NOT_FOUND
        )
    if not local.entries:
        first = local.skipped[0] if local.skipped else None
        reason = f": {len(local.skipped)} can't be used: {first.path}: {first.reason}" if first else ""
        advice = ". A directory needs a folder for each label." if location.is_dir() else ""
        raise SourceError(f"{location} has no image that can be used{reason}{advice}", code=ErrorCode.UNUSABLE_IMAGES)
    return local


def check_file(manifest: Path, name: str) -> tuple[list[str], list[str]]:
    """Check a manifest whose lines are used unchanged: returns the errors, and the lines that must be converted first.

    Args:
        manifest: a local copy.
        name: of the manifest, for error messages.

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
        raise SourceError(_several_buckets(name, sorted(buckets)), code=ErrorCode.UNSUITABLE_DATASET)
    return bad, unfinished


def _several_buckets(name: str, buckets: Sequence[str]) -> str:
    return (
        f"the images of {name} are in {len(buckets)} buckets: {', '.join(buckets)}. A dataset can only have images of "
        "one bucket: copy them to one."
    )


def split_entries(
    entries: tuple[DatasetEntry, ...], share: float
) -> tuple[tuple[DatasetEntry, ...], tuple[DatasetEntry, ...]]:
    """Split a share of each label's images off for testing; returns (training entries, test entries), in order.

    The split depends on the images' bytes only: the same images give the same split, and copies of an image are never
    in both parts. A label with two or more different images has at least one in each part, unless some of them have
    other labels, too.

    Args:
        entries: all entries.
        share: of each label's different images, between 0 and 1.
    """
    groups: dict[tuple[str, ...], set[str]] = {}
    for entry in entries:
        groups.setdefault(entry.labels, set()).add(entry.identity)
    test: set[str] = set()
    for identities in groups.values():
        ordered = sorted(identities, key=lambda each: hashlib.sha256(each.encode()).digest())
        count = round(share * len(ordered))
        test.update(ordered[: min(max(count, 1), len(ordered) - 1)])
    return (
        tuple(entry for entry in entries if entry.identity not in test),
        tuple(entry for entry in entries if entry.identity in test),
    )


def _from_folders(root: Path) -> LocalDataset:
    entries: list[DatasetEntry] = []
    skipped: list[Skipped] = []
    labelled = labelled_files(root)
    for file in labelled.files:
        if labelled.divided and len(file.parts) > 1 and file.kind is None:
            reason = "it is not in the folder train or test, the only datasets of a project"
            skipped.append(Skipped(_shown(file.path), "NoDataset", reason))
            continue
        if file.label is None:
            skipped.append(
                Skipped(_shown(file.path), "NoLabel", "it is not in a folder, whose name would be its label")
            )
            continue
        image = local_image(file.path, "/".join(file.parts))
        if isinstance(image, SkipReason):
            skipped.append(Skipped(_shown(file.path), image.code, image.message))
        else:
            entries.append(DatasetEntry(image=image, uri=None, labels=(file.label,), kind=file.kind))
    return LocalDataset(tuple(entries), tuple(skipped), labelled.hidden, labelled.divided)


def _from_list(path: Path) -> LocalDataset:
    if (form := annotation_format(path, str(path))) is not None:
        raise SourceError(
            f"reading {path} failed: it is a file of {FORMATS[form]}, not a manifest. Create the dataset without "
            "images, and add them with `batchcl dataset update DATASET --from FILE`.",
            code=ErrorCode.INVALID_ANNOTATIONS,
        )
    entries: list[DatasetEntry] = []
    skipped: list[Skipped] = []
    buckets: Counter[str] = Counter()
    for number, line in _lines(path):
        location = f"{_shown(path)}, line {number}"
        try:
            reference, labels, attributes = line()
            bucket = None
            if reference.startswith("s3://"):
                bucket, _ = parse_s3_uri(reference)
        except SourceError as error:
            skipped.append(Skipped(location, "BadLine", str(error)))
            continue
        if bucket is not None:
            buckets[bucket] += 1
            entries.append(DatasetEntry(image=None, uri=reference, labels=labels, attributes=attributes))
            continue
        file = path.parent / reference
        image = local_image(file, _key(file, path.parent, number))
        if isinstance(image, SkipReason):
            skipped.append(Skipped(_shown(file), image.code, image.message))
        else:
            entries.append(DatasetEntry(image=image, uri=None, labels=labels, attributes=attributes))
    if len(buckets) > 1:
        counts = [f"{bucket} ({count:,} images)" for bucket, count in buckets.most_common()]
        raise SourceError(_several_buckets(str(path), counts), code=ErrorCode.UNSUITABLE_DATASET)
    if len(entries) > MAX_LINES:
        raise SourceError(
            f"{path} has {len(entries):,} images; a dataset can have at most {MAX_LINES:,}. Remove some.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )
    return LocalDataset(tuple(entries), tuple(skipped))


_Line = Callable[[], tuple[str, tuple[str, ...], dict[str, Any] | None]]
"""Returns the image, its labels and its attributes, or raises `SourceError`."""


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
                raise SourceError(f"reading {path} failed: line {reader.line_num}: {error}. Correct it.") from error


def _manifest_line(line: bytes) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    check_length(line)
    truth = parse_line(line)
    attributes = orjson.loads(truth.extra) if truth.extra else {}
    check_line(truth, attributes)
    return truth.source_ref, truth.labels, attributes


def _csv_row(row: Sequence[str]) -> tuple[str, tuple[str, ...], None]:
    image, *labels = row
    unique = tuple(dict.fromkeys(label for label in labels if label))
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        raise SourceError("it is not UTF-8 text") from error
    if not image or not unique:
        raise SourceError(f"{','.join(row)[:80]!r} is neither a JSON line nor image,label[,label…]")
    check_line(GroundTruth(source_ref=image, labels=unique, task="classification"), {})
    return image, unique, None


def _key(path: Path, folder: Path, number: int) -> str:
    """The key of a file in a manifest. Files outside its folder get the line number, so that keys are unique."""
    absolute, root = (Path(os.path.abspath(each)) for each in (path, folder))
    if absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return f"{number:06}-{path.name}"


def local_image(path: str | os.PathLike[str], key: str) -> LocalImage | SkipReason:
    """Read and check a file that would be uploaded to `key`; returns why it can't be used otherwise. Blocks."""
    path = Path(path)
    try:
        size = path.stat().st_size
        reason = check_limits(ImageRef(uri=key, bucket="-", key=key, size_bytes=size))  # limits of images in S3
        if reason is not None:
            return reason
        with path.open("rb") as file:
            data = file.read(MAX_BYTES_S3 + 1)
    except OSError as error:
        return SkipReason("Unreadable", f"reading it failed: {error.strerror or error}")
    reason = check_bytes(data)
    if reason is not None:
        return reason
    digest = hashlib.md5(
        data, usedforsecurity=False
    ).hexdigest()  # as S3's entity tag of an unencrypted upload in one part
    return LocalImage(path=path, key=key, size_bytes=len(data), md5=digest)


def _shown(path: Path) -> str:
    return escape_name(str(path))
