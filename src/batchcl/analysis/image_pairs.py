"""Reduces the rows of two sides to counts, batch by batch, for `batchcl.analysis.compare`.

An image is its uri and version, identified by a 64-bit hash of them; two of 100 million images share a hash with a
probability of 1 : 4,000. Its labels in A are kept as the number of a label set, of which there are few. So each side
needs 8 bytes per image while the images in both are found, and these need 16 bytes each from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from batchcl.analysis.part_files import Batch

__all__ = ["BIN_WIDTH", "Origin", "PairCounts", "Rows", "SideCounts", "count_pairs", "find_sorted"]

_T = TypeVar("_T")
_Array = np.ndarray[Any, np.dtype[Any]]

BIN_WIDTH: Final = 0.1
"""Width of the bins of confidence, in percentage points."""

_BINS: Final = 1001
_KEYS_AT_ONCE: Final = 1_000_000
_NO_ETAG: Final = 0
_NO_LABEL: Final = -1
_HALF: Final = np.uint64(32)
_LOW_HALF: Final = np.uint64(2**32 - 1)
_TOP_WEIGHT: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication by it loses nothing


class Rows(Protocol):
    """Reads the rows of one side in batches, as `Results.map_batches` does."""

    def __call__(self, compute: Callable[[Batch], _T], *, columns: Sequence[str]) -> Iterator[_T]:
        """Yield `compute(batch)` for each batch, always in the same order."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What rows were scored with; `min_confidence` and `max_results` as requested, None for the model's own and all."""

    model: str
    model_arn: str
    min_confidence: float | None
    max_results: int | None


@dataclass(slots=True)
class SideCounts:
    """The counts of one side.

    Attributes:
        images: distinct images.
        origins: rows that were scored with the same settings.
        compared: images that are compared; the attributes below are about these.
        labels: label → images with it; None: images without a label.
        histograms: label → its detections in each bin of confidence.
        confidences: label → sum of its confidences.
    """

    images: int
    origins: Counter[Origin]
    compared: int = 0
    labels: Counter[str | None] = field(default_factory=Counter)
    histograms: dict[str, _Array] = field(default_factory=dict)
    confidences: Counter[str] = field(default_factory=Counter)

    def add(self, batch: _Batch) -> None:
        """Add the counts of a batch."""
        self.compared += batch.compared
        self.labels.update(dict(zip(batch.labels, batch.images_with.tolist(), strict=True)))
        if batch.unlabelled:
            self.labels[None] += batch.unlabelled
        for label, histogram, confidence in zip(batch.labels, batch.histograms, batch.confidences, strict=True):
            self.histograms[label] = self.histograms.get(label, 0) + histogram
            self.confidences[label] += confidence


@dataclass(slots=True, kw_only=True)
class PairCounts:
    """The counts of two sides.

    Attributes:
        both: images in both.
        paired: whether only these are compared.
        labels: label → images that have it in both; None: images without a label in both.
        tops: (top label in A, in B) → images in both; None for no label. The top label is that with the highest
            confidence, the first by name of equal ones.
        examples: likewise → the first URIs in B, if the labels differ.
        replaced: images in both whose ETags differ.
    """

    a: SideCounts
    b: SideCounts
    both: int
    paired: bool
    labels: Counter[str | None] = field(default_factory=Counter)
    tops: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    examples: dict[tuple[str | None, str | None], list[str]] = field(default_factory=dict)
    replaced: int = 0


def count_pairs(
    rows_a: Sequence[Rows], rows_b: Sequence[Rows], *, is_paired: Callable[[int, int, int], bool], examples: int
) -> PairCounts:
    """Count the labels of both sides. Reads the images of each side, and then their labels.

    Args:
        rows_a: of side A; each has at most one row per image and model. Of several rows of an image, the newest counts.
        rows_b: of side B, likewise.
        is_paired: gets the number of images in A, in B and in both, and returns whether only the latter are compared.
        examples: maximum number of URIs for each change of the top label.
    """
    images_a, images_b = _read_images(rows_a), _read_images(rows_b)
    common = _common(images_a.keys, images_b.keys)
    a, b = (SideCounts(len(images.keys), images.origins) for images in (images_a, images_b))
    images_a.keys = images_b.keys = common[:0]
    counts = PairCounts(a=a, b=b, both=len(common), paired=is_paired(a.images, b.images, len(common)))
    labels, sets = _Labels(), _LabelSets()
    set_of, etag_of = np.zeros(len(common), np.uint32), np.zeros(len(common), np.uint32)
    for batch in _read_labels(rows_a, images_a, common, paired=counts.paired):
        a.add(batch)
        set_of[batch.position] = sets.add(batch, labels.ids(batch.labels))
        etag_of[batch.position] = batch.etag
    for batch in _read_labels(rows_b, images_b, common, paired=counts.paired):
        b.add(batch)
        _add_pairs(counts, batch, set_of[batch.position], sets=sets, labels=labels, examples=examples)
        etag = etag_of[batch.position]
        is_replaced = (etag != batch.etag) & (etag != _NO_ETAG) & (batch.etag != _NO_ETAG)
        counts.replaced += int(np.count_nonzero(is_replaced))
    return counts


@dataclass(slots=True)
class _Images:
    """The images of one side.

    A source is a model in one of the side's `Rows`, which has at most one row of an image.

    Attributes:
        keys: hashes of all images, sorted; emptied when they are no longer needed.
        origins: rows that were scored with the same settings.
        sources: (position of the rows, ARN) → number of the source.
        repeated: hashes of the images in several sources, sorted.
        newest: number of the source with the newest row, for each of these.
    """

    keys: _Array
    origins: Counter[Origin]
    sources: dict[tuple[int, str], int]
    repeated: _Array
    newest: _Array

    def counted(self, keys: _Array, at: int, model_arn: str) -> _Array:
        """For each hash, whether the row of this source counts."""
        position, is_repeated = find_sorted(self.repeated, keys)
        counted = ~is_repeated
        counted[is_repeated] = self.newest[position[is_repeated]] == self.sources[at, model_arn]
        return counted


def _read_images(side: Sequence[Rows]) -> _Images:
    def read(batch: Batch) -> tuple[_Array, Counter[Origin]]:
        # not group_by, which starts the threads of polars' streaming engine, whichever engine is asked for
        settings = batch.images.select("min_confidence", "max_results")
        origins = {
            Origin(batch.model, batch.model_arn, *each): settings.filter(
                pl.col("min_confidence").eq_missing(each[0]), pl.col("max_results").eq_missing(each[1])
            ).height
            for each in settings.unique().iter_rows()
        }
        return _keys(batch.images), Counter(origins)

    keys, origins, sources = [np.zeros(0, np.uint64)], Counter[Origin](), dict[tuple[int, str], int]()
    for at, rows in enumerate(side):
        for found, counts in rows(read, columns=("uri", "version_id", "min_confidence", "max_results")):
            keys.append(found)
            origins += counts
            for origin in counts:
                sources.setdefault((at, origin.model_arn), len(sources))
    every = np.concatenate(keys)
    keys.clear()
    every.sort()
    is_repeat = every[1:] == every[:-1]
    repeated = _distinct(every[1:][is_repeat])
    if len(repeated):
        every = np.concatenate([every[:1], every[1:][~is_repeat]])
    newest = _newest_sources(side, sources, repeated)
    return _Images(every, origins, sources, repeated, newest)


def _newest_sources(side: Sequence[Rows], sources: Mapping[tuple[int, str], int], repeated: _Array) -> _Array:
    """For each of the images, the source with the newest row."""

    def read(batch: Batch) -> tuple[str, _Array, _Array]:
        position, is_repeated = find_sorted(repeated, _keys(batch.images))
        return batch.model_arn, position[is_repeated], batch.images["scored_at"].to_physical().to_numpy()[is_repeated]

    newest, times = np.zeros(len(repeated), np.uint16), np.full(len(repeated), np.iinfo(np.int64).min)
    for at, rows in enumerate(side if len(repeated) else ()):
        for model_arn, position, scored_at in rows(read, columns=("uri", "version_id", "scored_at")):
            is_newer = scored_at >= times[position]
            newest[position[is_newer]] = sources[at, model_arn]
            times[position[is_newer]] = scored_at[is_newer]
    return newest


def find_sorted(keys: _Array, wanted: _Array) -> tuple[_Array, _Array]:
    """The positions of the wanted hashes in the sorted ones, and whether they are there."""
    position = np.zeros(len(wanted), np.int64)
    if not len(keys):
        return position, np.zeros(len(wanted), bool)
    order = np.argsort(wanted)  # neighbours are then found in the same part of the memory
    position[order] = np.searchsorted(keys, wanted[order])
    position[position == len(keys)] = 0
    return position, keys[position] == wanted


def _common(keys_a: _Array, keys_b: _Array) -> _Array:
    """The hashes in both, sorted; as `np.intersect1d`, which needs four times the memory of its arguments."""
    chunks = np.array_split(keys_a, len(keys_a) // _KEYS_AT_ONCE + 1)
    common: _Array = np.concatenate([chunk[find_sorted(keys_b, chunk)[1]] for chunk in chunks])
    return common


def _distinct(values: _Array) -> _Array:
    """As `np.unique`, which is ten times slower on integers because it makes a hash table."""
    values = np.sort(values)
    distinct: _Array = values[np.diff(values, prepend=~values[:1]) != 0]
    return distinct


def _keys(images: pl.DataFrame) -> _Array:
    return images.select(pl.col("uri").hash(1) ^ pl.col("version_id").hash(2)).to_series().to_numpy()


@dataclass(frozen=True, slots=True)
class _Batch:
    """The compared images of a batch, and of them those in both sides.

    Attributes:
        compared: number of images.
        unlabelled: of them without a label.
        labels: names of the labels, sorted; a label's code is its position.
        images_with: number of images, for each label.
        histograms: one row for each label.
        confidences: sum for each label.
        position: of each image in both sides, in the sorted hashes.
        top: code of its top label, `_NO_LABEL` without one.
        etag: hash of its ETag, `_NO_ETAG` without one.
        uri: its URI.
        owner: for each label of such an image, the number of the image among these, ascending.
        code: and the code of the label.
    """

    compared: int
    unlabelled: int
    labels: list[str]
    images_with: _Array
    histograms: _Array
    confidences: _Array
    position: _Array
    top: _Array
    etag: _Array
    uri: pl.Series
    owner: _Array
    code: _Array


def _read_labels(side: Sequence[Rows], images: _Images, common: _Array, *, paired: bool) -> Iterator[_Batch]:
    def read(at: int, batch: Batch) -> _Batch:
        keys = _keys(batch.images)
        position, is_common = find_sorted(common, keys)
        counted = images.counted(keys, at, batch.model_arn)
        is_common &= counted
        return _reduced(batch, compared=is_common if paired else counted, is_common=is_common, position=position)

    for at, rows in enumerate(side):
        yield from rows(partial(read, at), columns=("uri", "version_id", "etag"))


def _reduced(batch: Batch, *, compared: _Array, is_common: _Array, position: _Array) -> _Batch:
    """Reduce the rows that are compared, which include those of images in both sides."""
    detections = batch.detections
    kept = detections.filter(pl.Series(compared[detections["image"].to_numpy()], dtype=pl.Boolean)).drop_nulls()
    names = kept["label"].unique().cast(pl.String).sort()
    code = kept["label"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
    image = kept["image"].to_numpy().astype(np.uint64)
    confidence = np.clip(np.nan_to_num(kept["confidence"].to_numpy().astype(np.float32)), 0, 100)
    bins = np.rint(confidence / BIN_WIDTH).astype(np.int64) + code * _BINS
    own = _distinct(image << _HALF | code.astype(np.uint64))  # an object detector finds several objects of a label
    owner, owned = (own >> _HALF).astype(np.int64), (own & _LOW_HALF).astype(np.int64)
    top = np.full(len(compared), _NO_LABEL)
    if len(image):
        # of equal confidences, the lower code, because codes are in the order of the names
        order = confidence.view(np.uint32).astype(np.uint64) << _HALF | (_LOW_HALF - code.astype(np.uint64))
        first = np.flatnonzero(np.diff(image, prepend=image[0] + np.uint64(1)))
        top[image[first]] = _LOW_HALF - (np.maximum.reduceat(order, first) & _LOW_HALF)
    etag = batch.images["etag"]
    known_etag = (etag.hash(3).to_numpy() & _LOW_HALF).astype(np.uint32) | np.uint32(1)
    in_both = is_common[owner]
    return _Batch(
        compared=int(np.count_nonzero(compared)),
        unlabelled=int(np.count_nonzero(compared & (top == _NO_LABEL))),
        labels=names.to_list(),
        images_with=np.bincount(owned, minlength=len(names)),
        histograms=np.bincount(bins, minlength=len(names) * _BINS).reshape(len(names), _BINS),
        confidences=np.bincount(code, confidence, len(names)),
        position=position[is_common],
        top=top[is_common],
        etag=np.where(etag.is_null().to_numpy(), np.uint32(_NO_ETAG), known_etag)[is_common],
        uri=batch.images["uri"].filter(pl.Series(is_common, dtype=pl.Boolean)),
        owner=(np.cumsum(is_common) - 1)[owner[in_both]],
        code=owned[in_both],
    )


class _Labels:
    """Ids of the labels of all batches; the last id, -1, stands for no label."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._ids: dict[str, int] = {}

    def ids(self, names: Sequence[str]) -> _Array:
        """The ids of these labels, and the one of no label at the end."""
        for name in names:
            if self._ids.setdefault(name, len(self.names)) == len(self.names):
                self.names.append(name)
        return np.array([*(self._ids[name] for name in names), _NO_LABEL])

    def name(self, label: int) -> str | None:
        return None if label == _NO_LABEL else self.names[label]


class _LabelSets:
    """Numbers for the sets of labels, with their top labels, of all images of A."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self.tops = np.zeros(0, np.int64)
        self.has = np.zeros((0, 0), bool)  # rows: sets, columns: labels

    def add(self, batch: _Batch, ids: _Array) -> _Array:
        """The number of the label set of each image in both sides."""
        random = pl.Series([*batch.labels, None], dtype=pl.String).hash(4).to_numpy()
        signature = random[batch.top] * _TOP_WEIGHT
        owner, first = np.unique(batch.owner, return_index=True)
        if len(owner):
            signature[owner] += np.add.reduceat(random[batch.code], first)
        signatures, example, inverse = np.unique(signature, return_index=True, return_inverse=True)
        found = [self._numbers.setdefault(each, len(self._numbers)) for each in signatures.tolist()]
        numbers = np.array(found, np.uint32)
        self._grow(len(self._numbers), int(ids.max(initial=0)) + 1)
        self.tops[numbers] = ids[batch.top[example]]
        set_at = np.full(len(signature), -1)
        set_at[example] = np.arange(len(example))
        of_example = set_at[batch.owner] >= 0
        self.has[numbers[set_at[batch.owner[of_example]]], ids[batch.code[of_example]]] = True
        return numbers[inverse]

    def _grow(self, sets: int, labels: int) -> None:
        rows, columns = self.has.shape
        if sets > rows or labels > columns:
            more_rows = max(sets, 2 * rows) - rows if sets > rows else 0
            self.has = np.pad(self.has, ((0, more_rows), (0, max(labels - columns, 0))))
            self.tops = np.pad(self.tops, (0, more_rows))


def _add_pairs(
    counts: PairCounts, batch: _Batch, set_in_a: _Array, *, sets: _LabelSets, labels: _Labels, examples: int
) -> None:
    """Add a batch of B to what is known of the images in both sides."""
    ids = labels.ids(batch.labels)
    known = ids[batch.code] < sets.has.shape[1]
    owner, code = batch.owner[known], batch.code[known]
    is_in_both = sets.has[set_in_a[owner], ids[code]]
    in_both = np.bincount(code[is_in_both], minlength=len(batch.labels))
    counts.labels.update(dict(zip(batch.labels, in_both.tolist(), strict=True)))
    top_a, top_b = sets.tops[set_in_a], ids[batch.top]
    if neither := int(np.count_nonzero((top_a == _NO_LABEL) & (top_b == _NO_LABEL))):
        counts.labels[None] += neither
    key = (top_a + 1) * (len(labels.names) + 1) + top_b + 1
    keys, times = np.unique(key, return_counts=True)
    tops = {
        each: (labels.name(each // (len(labels.names) + 1) - 1), labels.name(each % (len(labels.names) + 1) - 1))
        for each in keys.tolist()
    }
    counts.tops.update({tops[each]: images for each, images in zip(keys.tolist(), times.tolist(), strict=True)})
    wanted = [each for each, (a, b) in tops.items() if a != b and len(counts.examples.get((a, b), [])) < examples]
    for image in np.flatnonzero(np.isin(key, wanted)).tolist():
        found = counts.examples.setdefault(tops[int(key[image])], [])
        if len(found) < examples:
            found.append(batch.uri[image])
