"""Reduces the rows of two sides to counts, batch by batch, for `batchcl.analysis.compare`.

An image is its uri and version, identified by a 64-bit hash of them; two of 100 million images share a hash with a
probability of 1 : 4,000. Its labels are reduced to a number for the set of labels and the top label. So each side needs
8 bytes per image while the images in both are found, and these need 16 bytes each from then on.
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

__all__ = ["BIN_WIDTH", "LabelSet", "Origin", "PairCounts", "Rows", "SideCounts", "count_pairs"]

_T = TypeVar("_T")
_Array = np.ndarray[Any, np.dtype[Any]]

BIN_WIDTH: Final = 0.1
"""Width of the bins of confidence, in percentage points."""

_BINS: Final = 1001
_NO_ETAG: Final = 0
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


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of an image, and that with the highest confidence (the first by name of equal ones); None without."""

    labels: frozenset[str] = frozenset()
    top: str | None = None


@dataclass(slots=True)
class SideCounts:
    """The counts of one side.

    Attributes:
        images: distinct images.
        origins: rows that were scored with the same settings.
        compared: images that are compared; the attributes below are about these.
        sets: number of a label set → images.
        histograms: label → its detections in each bin of confidence.
        confidences: label → sum of its confidences.
    """

    images: int
    origins: Counter[Origin]
    compared: int = 0
    sets: Counter[int] = field(default_factory=Counter)
    histograms: dict[str, _Array] = field(default_factory=dict)
    confidences: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class PairCounts:
    """The counts of two sides.

    Attributes:
        both: images in both.
        paired: whether only these are compared.
        sets: the label sets; their positions are their numbers.
        pairs: (number in A, number in B) → images in both.
        replaced: images in both whose ETags differ.
        examples: (top label in A, in B) → the first URIs in B of images in both, of top labels that differ.
    """

    a: SideCounts
    b: SideCounts
    both: int
    paired: bool
    sets: list[LabelSet]
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    replaced: int = 0
    examples: dict[tuple[str | None, str | None], list[str]] = field(default_factory=dict)


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
    common = np.intersect1d(images_a.keys, images_b.keys, assume_unique=True)
    a, b = (SideCounts(len(images.keys), images.origins) for images in (images_a, images_b))
    paired = is_paired(a.images, b.images, len(common))
    numbers = _Numbers()
    set_of, etag_of = np.zeros(len(common), np.uint32), np.zeros(len(common), np.uint32)
    for batch in _read_labels(rows_a, images_a, common, paired=paired):
        set_of[batch.position] = numbers.add(batch, a)[batch.code]
        etag_of[batch.position] = batch.etag
    counts = PairCounts(a=a, b=b, both=len(common), paired=paired, sets=numbers.sets)
    for batch in _read_labels(rows_b, images_b, common, paired=paired):
        before, after = set_of[batch.position], numbers.add(batch, b)[batch.code]
        counts.pairs.update(_count_values(before, after))
        etag = etag_of[batch.position]
        replaced = (etag != batch.etag) & (etag != _NO_ETAG) & (batch.etag != _NO_ETAG)
        counts.replaced += int(np.count_nonzero(replaced))
        for tops, uris in _changed_tops(numbers.sets, before, after, batch.uri, examples):
            found = counts.examples.setdefault(tops, [])
            found += uris[: examples - len(found)]
    return counts


@dataclass(slots=True)
class _Images:
    """The images of one side.

    A source is a model in one of the side's `Rows`, which has at most one row of an image.

    Attributes:
        keys: hashes of all images, sorted.
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
        position, is_repeated = _find(self.repeated, keys)
        counted = ~is_repeated
        counted[is_repeated] = self.newest[position[is_repeated]] == self.sources[at, model_arn]
        return counted


def _read_images(side: Sequence[Rows]) -> _Images:
    def read(batch: Batch) -> tuple[_Array, Counter[Origin]]:
        settings = batch.images.group_by("min_confidence", "max_results").len()
        origins = {
            Origin(batch.model, batch.model_arn, min_confidence, max_results): count
            for min_confidence, max_results, count in settings.iter_rows()
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
    repeated = np.unique(every[1:][is_repeat])
    if len(repeated):
        every = np.concatenate([every[:1], every[1:][~is_repeat]])
    newest = _newest_sources(side, sources, repeated)
    return _Images(every, origins, sources, repeated, newest)


def _newest_sources(side: Sequence[Rows], sources: Mapping[tuple[int, str], int], repeated: _Array) -> _Array:
    """For each of the images, the source with the newest row."""

    def read(batch: Batch) -> tuple[str, _Array, _Array]:
        position, is_repeated = _find(repeated, _keys(batch.images))
        return batch.model_arn, position[is_repeated], batch.images["scored_at"].to_physical().to_numpy()[is_repeated]

    newest, times = np.zeros(len(repeated), np.uint16), np.full(len(repeated), np.iinfo(np.int64).min)
    for at, rows in enumerate(side if len(repeated) else ()):
        for model_arn, position, scored_at in rows(read, columns=("uri", "version_id", "scored_at")):
            is_newer = scored_at >= times[position]
            newest[position[is_newer]] = sources[at, model_arn]
            times[position[is_newer]] = scored_at[is_newer]
    return newest


def _find(keys: _Array, wanted: _Array) -> tuple[_Array, _Array]:
    """The positions of the wanted hashes in the sorted ones, and whether they are there."""
    position = np.searchsorted(keys, wanted)
    if not len(keys):
        return position, np.zeros(len(wanted), bool)
    position[position == len(keys)] = 0
    return position, keys[position] == wanted


def _keys(images: pl.DataFrame) -> _Array:
    return images.select(pl.col("uri").hash(1) ^ pl.col("version_id").hash(2)).to_series().to_numpy()


@dataclass(frozen=True, slots=True)
class _Batch:
    """The compared images of a batch, and of them those in both sides.

    Attributes:
        signatures: of the label sets of the batch.
        sets: these label sets.
        images: of each of them.
        histograms: one row per label of the batch.
        confidences: sum for each label.
        labels: the labels of the batch.
        position: of the images in both, in the sorted hashes.
        code: position of the label set of each of these.
        etag: hash of their ETags, `_NO_ETAG` without one.
        uri: of these.
    """

    signatures: _Array
    sets: list[LabelSet]
    images: _Array
    labels: list[str]
    histograms: _Array
    confidences: _Array
    position: _Array
    code: _Array
    etag: _Array
    uri: pl.Series


def _read_labels(side: Sequence[Rows], images: _Images, common: _Array, *, paired: bool) -> Iterator[_Batch]:
    def read(at: int, batch: Batch) -> _Batch:
        keys = _keys(batch.images)
        position, is_common = _find(common, keys)
        counted = images.counted(keys, at, batch.model_arn)
        is_common &= counted
        etag = batch.images["etag"]
        known_etag = (etag.hash(3).to_numpy() & _LOW_HALF).astype(np.uint32) | np.uint32(1)
        return _reduced(
            batch.detections,
            compared=is_common if paired else counted,
            is_common=is_common,
            position=position[is_common],
            etag=np.where(etag.is_null().to_numpy(), np.uint32(_NO_ETAG), known_etag)[is_common],
            uri=batch.images["uri"].filter(pl.Series(is_common)),
        )

    for at, rows in enumerate(side):
        yield from rows(partial(read, at), columns=("uri", "version_id", "etag"))


def _reduced(detections: pl.DataFrame, *, compared: _Array, is_common: _Array, **common: Any) -> _Batch:
    """Reduce the detections of the compared images, which include those in both sides."""
    kept = detections.filter(pl.Series(compared[detections["image"].to_numpy()], dtype=pl.Boolean)).drop_nulls()
    names = kept["label"].unique().cast(pl.String).sort()
    code = kept["label"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.uint64)
    image = kept["image"].to_numpy().astype(np.uint64)
    confidence = np.clip(np.nan_to_num(kept["confidence"].to_numpy().astype(np.float32)), 0, 100)
    signature = np.zeros(len(compared), np.uint64)
    owned = np.unique(image << _HALF | code)  # an object detector finds several objects of a label
    owner, first = np.unique(owned >> _HALF, return_index=True)
    top = np.zeros(len(compared), np.uint64)
    if len(owner):
        random = names.hash(4).to_numpy()
        label = (owned & _LOW_HALF).astype(np.int64)
        # of equal confidences, the lower code, because codes are in the order of the names
        order = confidence.view(np.uint32).astype(np.uint64) << _HALF | (_LOW_HALF - code)
        best = np.maximum.reduceat(order, np.flatnonzero(np.diff(image, prepend=np.uint64(2**63))))
        top[owner] = _LOW_HALF - (best & _LOW_HALF)
        signature[owner] = np.add.reduceat(random[label], first) + _TOP_WEIGHT * random[top[owner].astype(np.int64)]
    images = np.flatnonzero(compared)
    signatures, example, inverse, times = np.unique(
        signature[images], return_index=True, return_inverse=True, return_counts=True
    )
    set_of = np.zeros(len(compared), np.int64)
    set_of[images] = inverse
    bins = np.rint(confidence / BIN_WIDTH).astype(np.int64) + code.astype(np.int64) * _BINS
    return _Batch(
        signatures=signatures,
        sets=[_label_set(names, owned, int(images[each]), top) for each in example],
        images=times,
        labels=names.to_list(),
        histograms=np.bincount(bins, minlength=len(names) * _BINS).reshape(len(names), _BINS),
        confidences=np.bincount(code.astype(np.int64), confidence, len(names)),
        code=set_of[is_common],
        **common,
    )


def _label_set(names: pl.Series, owned: _Array, image: int, top: _Array) -> LabelSet:
    low, high = np.searchsorted(owned, np.array([image, image + 1], np.uint64) << _HALF)
    if low == high:
        return LabelSet()
    labels = [names[int(code)] for code in owned[low:high] & _LOW_HALF]
    return LabelSet(frozenset(labels), names[int(top[image])])


class _Numbers:
    """Numbers for the label sets of all batches."""

    def __init__(self) -> None:
        self.sets: list[LabelSet] = []
        self._of_signature: dict[int, int] = {}

    def add(self, batch: _Batch, side: SideCounts) -> _Array:
        """Add the counts of a batch to those of its side. Returns the numbers of its label sets."""
        numbers = np.zeros(len(batch.sets), np.uint32)
        for at, (signature, each) in enumerate(zip(batch.signatures.tolist(), batch.sets, strict=True)):
            number = self._of_signature.setdefault(signature, len(self.sets))
            if number == len(self.sets):
                self.sets.append(each)
            numbers[at] = number
            side.sets[number] += int(batch.images[at])
        side.compared += int(batch.images.sum())
        for label, histogram, confidence in zip(batch.labels, batch.histograms, batch.confidences, strict=True):
            side.histograms[label] = side.histograms.get(label, 0) + histogram
            side.confidences[label] += confidence
        return numbers


def _count_values(before: _Array, after: _Array) -> dict[tuple[int, int], int]:
    pairs, images = np.unique(before.astype(np.uint64) << _HALF | after, return_counts=True)
    keys = zip((pairs >> _HALF).tolist(), (pairs & _LOW_HALF).tolist(), strict=True)
    return dict(zip(keys, images.tolist(), strict=True))


def _changed_tops(
    sets: Sequence[LabelSet], before: _Array, after: _Array, uri: pl.Series, examples: int
) -> Iterator[tuple[tuple[str | None, str | None], list[str]]]:
    """The first URIs for each change of the top label."""
    differs = before != after
    tops = pl.Series([each.top for each in sets], dtype=pl.String)
    frame = pl.DataFrame(
        {"a": tops.gather(before[differs]), "b": tops.gather(after[differs]), "uri": uri.filter(pl.Series(differs))}
    )
    changed = frame.filter(pl.col("a").ne_missing(pl.col("b")))
    for a, b, uris in changed.group_by("a", "b", maintain_order=True).agg(pl.col("uri").head(examples)).iter_rows():
        yield (a, b), uris
