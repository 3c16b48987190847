"""The detections of images with ground truth, each right or wrong: read file by file, kept in 9 bytes each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batchcl.analysis.average_precision import matched_boxes
from batchcl.analysis.image_pairs import find_sorted
from batchcl.analysis.part_files import Batch
from batchcl.analysis.precision_recall import LabelScores
from batchcl.analysis.results import Results
from batchcl.analysis.truth import Truth

__all__ = ["JudgedDetections", "read_judged"]

_MIN_IOU: Final = 0.5
_MAX_EXAMPLES: Final = 3
_COLUMNS: Final = ("uri", "scored_at", "min_confidence", "max_results")
_BOX: Final = ("left", "top", "width", "height")


class _JudgedBatch(NamedTuple):
    """A batch, without images that the truth doesn't have. The first arrays have one value per image.

    Attributes:
        model: of the rows, by name and by ARN.
        extra: number of images that the truth doesn't have, and the first ones.
        image: number in the truth.
        scored_at: in microseconds.
        min_confidence: NaN for the model's own thresholds.
        is_full: whether the image has as many labels as the maximum that was requested.
        labels: the rows of each label in the arrays below, which have one value per detection.
        row: of the detection's image, in the arrays above.
        confidence: 0 to 100.
        correct: whether the detection is right.
    """

    model: tuple[str, str]
    extra: tuple[int, list[str]]
    image: NDArray[np.uint32]
    scored_at: NDArray[np.int64]
    min_confidence: NDArray[np.float32]
    is_full: NDArray[np.bool_]
    labels: dict[str, slice]
    row: NDArray[np.uint32]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedDetections:
    """Detections and true labels of images with both.

    Attributes:
        unit: what is judged: `image` or `box`.
        models: (name, ARN) of the models of all results, also of images without truth.
        missing: URIs of images of the truth without a result, sorted.
        extra: number of results without truth.
        extra_examples: the first ones by URI.
    """

    unit: str
    models: frozenset[tuple[str, str]]
    missing: pl.Series
    extra: int
    extra_examples: list[str]
    _batches: list[_JudgedBatch]
    _is_latest: list[NDArray[np.bool_]]
    _has_result: NDArray[np.bool_]
    _positives: pl.DataFrame

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._has_result.sum())

    @property
    def has_detections(self) -> bool:
        """Whether there are any."""
        return any(batch.confidence.size for batch in self._batches)

    @property
    def min_confidences(self) -> list[float | None]:
        """The distinct values that the images were scored with, ascending; None for the model's own thresholds."""
        values = np.unique(np.concatenate([np.zeros(0), *self._of_images("min_confidence")]))
        return [None if np.isnan(each) else float(each) for each in values]

    @property
    def full_images(self) -> int:
        """Images whose further labels are unknown, because they have as many as were requested at most."""
        return int(sum(each.sum() for each in self._of_images("is_full")))

    def labels(self) -> Iterator[tuple[str, LabelScores, float | None]]:
        """Each label of the truth or the results, its scores, and the lowest threshold that can be judged.

        Lower scores are missing for at least some images. None: they are missing, from an unknown threshold on.
        """
        positive_image = self._positives["image"].to_numpy()
        positives = _slices(self._positives["label"])
        given = [each for each in self.min_confidences if each is not None]
        known = max(given, default=0.0)
        for label in sorted({*positives, *(label for batch in self._batches for label in batch.labels)}):
            confidence, correct, image, own = self._detections(label)
            order = np.argsort(-confidence, kind="stable")
            true = positive_image[positives.get(label, slice(0, 0))]
            scores = LabelScores(
                confidence[order], correct[order], image[order], true[self._has_result[true]], self.images
            )
            if len(given) == len(self.min_confidences):
                yield label, scores, known
            else:
                yield label, scores, max(known, float(confidence[own].min())) if own.any() else None

    def _of_images(self, column: str) -> Iterator[NDArray[np.float32]]:
        for batch, is_latest in zip(self._batches, self._is_latest, strict=True):
            yield getattr(batch, column)[is_latest]

    def _detections(
        self, label: str
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.uint32], NDArray[np.bool_]]:
        """Confidence, whether it is right, image, and whether the model's own threshold was used, per detection."""
        parts = [(np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.uint32), np.zeros(0, np.bool_))]
        for batch, is_latest in zip(self._batches, self._is_latest, strict=True):
            if (rows := batch.labels.get(label)) is not None:
                row = batch.row[rows]
                kept = is_latest[row]
                row = row[kept]
                own = np.isnan(batch.min_confidence[row])
                parts.append((batch.confidence[rows][kept], batch.correct[rows][kept], batch.image[row], own))
        confidence, correct, image, own = (np.concatenate(each) for each in zip(*parts, strict=True))
        return confidence, correct, image, own


def read_judged(results: Results, truth: Truth, *, image_level: bool = False) -> JudgedDetections:
    """Judge the detections of all images that the truth has. Blocks.

    If the truth and the results have boxes, each detected box is judged: it is right if it matches a true box of its
    label, as in `average_precision`. Images whose boxes have no known size are left out. Otherwise, or with
    `image_level`, an image has a label with its highest confidence on the image, and is right if the truth has it too.
    Of several versions of an image, the latest result is used.
    """
    if not image_level and truth.images["detection"].any():
        judged = _read(results, _truth_of_boxes(truth), by_box=True)
        if judged.has_detections:
            return judged
    return _read(results, _truth_of_images(truth), by_box=False)


class _NumberedTruth(NamedTuple):
    """Truth whose images and labels have numbers.

    Attributes:
        images: `uri`, sorted; its row is the number of the image.
        positives: `image`, `label`, and for boxes `uri` and the box; sorted by image.
        hashes: of the URIs, ascending.
        numbers: of the images with these hashes.
        codes: of the labels.
        keys: image number * number of labels + label code of each of `positives`, ascending.
    """

    images: pl.DataFrame
    positives: pl.DataFrame
    hashes: NDArray[np.uint64]
    numbers: NDArray[np.int64]
    codes: dict[str, int]
    keys: NDArray[np.int64]

    @classmethod
    def of(cls, images: pl.DataFrame, positives: pl.DataFrame) -> _NumberedTruth:
        """Number the images by their order and the labels."""
        hashes = images["uri"].hash().to_numpy()
        numbers = np.argsort(hashes)
        names = positives["label"].unique().sort().to_list()
        codes = {name: code for code, name in enumerate(names)}
        code = positives["label"].cast(pl.Enum(names)).to_physical().to_numpy()
        keys = np.sort(positives["image"].to_numpy().astype(np.int64) * len(codes) + code)
        return cls(images.select("uri"), positives, hashes[numbers], numbers, codes, keys)

    def find(self, uris: pl.Series) -> NDArray[np.int64]:
        """The numbers of images, -1 for those that the truth doesn't have.

        They are compared by a 64-bit hash: of 100 million results, one is taken for one of 200,000 images of the truth
        with a probability of 1 in a million.
        """
        position, found = find_sorted(self.hashes, uris.hash().to_numpy())
        numbers = np.full(len(uris), -1)
        numbers[found] = self.numbers[position[found]]
        return numbers

    def has(self, image: NDArray[np.int64], labels: pl.Series) -> NDArray[np.bool_]:
        """For each image and label, whether the label is true."""
        names = labels.unique().cast(pl.String).to_list()
        codes = [self.codes.get(name, -1) for name in names]
        code = labels.cast(pl.String).replace_strict(names, codes, return_dtype=pl.Int64).to_numpy()
        _, found = find_sorted(self.keys, image * len(self.codes) + code)
        is_true: NDArray[np.bool_] = found & (code >= 0)
        return is_true


def _truth_of_images(truth: Truth) -> _NumberedTruth:
    images = truth.images.sort("uri").with_row_index("image")
    labels = images.select("image", label="labels").explode("label", empty_as_null=False, keep_nulls=False)
    return _NumberedTruth.of(images, labels)


def _truth_of_boxes(truth: Truth) -> _NumberedTruth:
    located = truth.images.filter("detection", ~pl.col("uri").is_in(list(truth.unsized)))
    images = located.sort("uri").with_row_index("image")
    boxes = truth.boxes.join(images.select("uri", "image"), on="uri").sort("image")
    return _NumberedTruth.of(images, boxes)


def _read(results: Results, truth: _NumberedTruth, *, by_box: bool) -> JudgedDetections:
    judge = partial(_judge, truth=truth, by_box=by_box)
    batches = list(results.map_batches(judge, columns=_COLUMNS, fields=_BOX if by_box else ()))
    image = np.concatenate([np.zeros(0, np.uint32), *(batch.image for batch in batches)])
    has_result = np.zeros(truth.images.height, np.bool_)
    has_result[image] = True
    is_latest = np.ones(image.size, np.bool_)
    if image.size > has_result.sum():
        order = np.lexsort((np.concatenate([batch.scored_at for batch in batches]), image))
        is_latest[order[:-1]] = image[order[1:]] != image[order[:-1]]
    examples = sorted(uri for batch in batches for uri in batch.extra[1])
    return JudgedDetections(
        unit="box" if by_box else "image",
        models=frozenset(batch.model for batch in batches),
        missing=truth.images["uri"].filter(pl.Series(~has_result)),
        extra=sum(batch.extra[0] for batch in batches),
        extra_examples=examples[:_MAX_EXAMPLES],
        _batches=batches,
        _is_latest=np.split(is_latest, np.cumsum([batch.image.size for batch in batches])[:-1]) if batches else [],
        _has_result=has_result,
        _positives=truth.positives.select("image", "label").sort("label"),
    )


def _judge(batch: Batch, truth: _NumberedTruth, *, by_box: bool) -> _JudgedBatch:
    number = truth.find(batch.images["uri"])
    is_known = number >= 0
    images = batch.images.filter(is_known)
    image = number[is_known]
    row_of = np.cumsum(is_known) - 1
    own = batch.detections["image"].to_numpy()
    kept = is_known[own]
    row = row_of[own[kept]]
    is_full = np.bincount(row, minlength=image.size) >= (
        images["max_results"].cast(pl.Float64).fill_null(np.inf).to_numpy()
    )
    detections = (
        batch.detections.filter(kept)
        .with_columns(pl.Series("row", row), pl.Series("image", image[row]))
        .filter(pl.col("label").is_not_null(), pl.col("confidence").is_finite())
    )
    judged = _judge_boxes(detections, images["uri"], image, truth) if by_box else _judge_images(detections, truth)
    return _JudgedBatch(
        model=(batch.model, batch.model_arn),
        extra=(batch.rows - image.size, batch.images["uri"].filter(~is_known).head(_MAX_EXAMPLES).to_list()),
        image=image.astype(np.uint32),
        scored_at=images["scored_at"].cast(pl.Int64).to_numpy(),
        min_confidence=images["min_confidence"].fill_null(np.nan).to_numpy(),
        is_full=is_full,
        labels=_slices(judged["label"]),
        row=judged["row"].to_numpy().astype(np.uint32),
        confidence=judged["confidence"].to_numpy(),
        correct=judged["correct"].to_numpy(),
    )


def _judge_images(detections: pl.DataFrame, truth: _NumberedTruth) -> pl.DataFrame:
    """`label`, `row`, `confidence` (the highest on the image) and `correct`, sorted by label."""
    ordered = detections.sort("label", "row", "confidence", descending=[False, False, True])
    is_highest = (pl.col("label") != pl.col("label").shift()) | (pl.col("row") != pl.col("row").shift())
    highest = ordered.filter(is_highest.fill_null(value=True))
    correct = truth.has(highest["image"].to_numpy(), highest["label"])
    return highest.with_columns(pl.Series("correct", correct, dtype=pl.Boolean))


def _judge_boxes(
    detections: pl.DataFrame, uris: pl.Series, image: NDArray[np.int64], truth: _NumberedTruth
) -> pl.DataFrame:
    """`label`, `row`, `confidence` and `correct` of the detections with a box, sorted by label."""
    is_here = np.zeros(truth.images.height, np.bool_)
    is_here[image] = True
    positives = truth.positives.filter(is_here[truth.positives["image"].to_numpy()])
    boxed = (
        detections.with_columns(uris.gather(detections["row"]).alias("uri"), pl.col("label").cast(pl.String))
        .drop_nulls(_BOX)
        .with_columns(pl.col(_BOX).cast(pl.Float64))
    )
    return boxed.with_columns(matched_boxes(boxed, positives, _MIN_IOU).alias("correct")).sort("label")


def _slices(sorted_labels: pl.Series) -> dict[str, slice]:
    """The rows of each label."""
    runs = sorted_labels.rle()
    ends = runs.struct.field("len").cum_sum().to_list()
    names = runs.struct.field("value").cast(pl.String)
    return {label: slice(*rows) for label, *rows in zip(names, [0, *ends], ends, strict=False)}
