"""Object location: a linear classifier on a pyramid of HOG windows, with box regression.

An image is resized once for each object size (`Level`), and each window of 8x8 cells in it is scored for all labels and
the background. Training uses the windows that overlap an object, random background windows, and then the background
windows with the most confident false detections (hard negatives).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batchcl.emulator.learning.features import BLOCK, block_map, cell_histograms
from batchcl.emulator.learning.model import Box, Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image


__all__ = [
    "WINDOW_FEATURES",
    "LabelledPicture",
    "Level",
    "Locator",
    "levels",
    "overlaps",
    "sizes_for",
    "train_locator",
    "working_picture",
]

CONTEXT: Final = 1.25
"""Side of a window / longer side of the object that it fits."""

_CELL: Final = 4
_CELLS: Final = 8
_BLOCKS: Final = _CELLS - 1
_PAD: Final = 2
_STEP: Final = 1.2
_MAX_LEVELS: Final = 9
_MAX_SIDE: Final = 384

WINDOW_FEATURES: Final = _BLOCKS * _BLOCKS * BLOCK
"""Features per window."""

# Measured on pictures of one to three digits (`write_digits(objects=True)`): after training on 120, the mean average
# precision on 60 others is 0.88. A third or three times each of the penalties and numbers, and overlaps that differ by
# 0.1 to 0.25, change it by less than 0.05.
_OBJECT_OVERLAP: Final = 0.65
_BACKGROUND_OVERLAP: Final = 0.35
_POSITIVES_PER_OBJECT: Final = 6
_NEGATIVES_PER_PICTURE: Final = 20
_HARD_PER_PICTURE: Final = 12
_MAX_WINDOWS: Final = 20_000
_INVERSE_PENALTY: Final = 0.3
_BOX_PENALTY: Final = 10.0
_MIN_CONFIDENCE: Final = 0.02
_MAX_CANDIDATES: Final = 400
_MAX_DETECTIONS: Final = 100
_SAME_LABEL: Final = 0.3
_ANY_LABEL: Final = 0.45


def working_picture(image: Image) -> NDArray[np.uint8]:
    """The grey image that is searched, reduced to at most 384 pixels per side."""
    from PIL.Image import Resampling

    scale = min(1.0, _MAX_SIDE / max(image.size))
    grey = image.convert("L")
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        grey = grey.resize(size, Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(grey)


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """All windows of one size.

    Attributes:
        blocks: HOG blocks of the resized picture: rows x columns x 36.
        centres: of the windows, in pixels of the working picture: windows x (x, y).
        size: longer side of the objects that the windows fit, in pixels of the working picture.
    """

    blocks: NDArray[np.float32]
    centres: NDArray[np.float32]
    size: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return self.blocks.shape[0] - _BLOCKS + 1, self.blocks.shape[1] - _BLOCKS + 1

    @property
    def boxes(self) -> NDArray[np.float32]:
        """The squares that the windows fit: windows x (left, top, right, bottom)."""
        half = np.float32(self.size / 2)
        return np.hstack([self.centres - half, self.centres + half])

    def score(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """`weights` (WINDOW_FEATURES x classes) on every window: windows x classes, without copying the windows."""
        rows, columns = self.shape
        parts = weights.reshape(_BLOCKS, _BLOCKS, BLOCK, -1)
        total = np.zeros((rows * columns, parts.shape[-1]), np.float32)
        for down in range(_BLOCKS):
            for right in range(_BLOCKS):
                blocks = self.blocks[down : down + rows, right : right + columns].reshape(-1, BLOCK)
                total += blocks @ parts[down, right]
        return total

    def describe(self, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
        """The chosen windows as vectors: chosen x WINDOW_FEATURES."""
        columns = self.shape[1]
        down, right = chosen // columns, chosen % columns
        offsets = np.arange(_BLOCKS)
        rows = down[:, None, None] + offsets[None, :, None]
        cols = right[:, None, None] + offsets[None, None, :]
        return np.asarray(self.blocks[rows, cols].reshape(len(chosen), WINDOW_FEATURES), np.float32)


def sizes_for(longer_sides: Sequence[float]) -> tuple[float, ...]:
    """Object sizes that cover the objects of the training set, in ascending order, in pixels."""
    low, high = np.percentile(np.asarray(longer_sides, np.float64), [2, 98])
    low, high = max(8.0, float(low)), max(8.0, float(high))
    steps = min(_MAX_LEVELS, max(1, 1 + round(np.log(high / low) / np.log(_STEP))))
    return tuple(float(size) for size in np.geomspace(low, high, steps))


def levels(picture: NDArray[np.uint8], sizes: Sequence[float]) -> Iterator[Level]:
    """The windows of each size; sizes whose window is larger than the picture are skipped."""
    from PIL.Image import Resampling, fromarray

    height, width = picture.shape
    for size in sizes:
        scale = _CELL * _CELLS / (CONTEXT * size)
        scaled = fromarray(picture).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Resampling.BILINEAR
        )
        grey = np.asarray(scaled, np.float32) / np.float32(255)
        border = _PAD * _CELL
        fill = [
            (border, border + -side % _CELL) for side in grey.shape
        ]  # to whole cells, and with space for objects at the border
        blocks = block_map(cell_histograms(np.pad(grey, fill, mode="edge"), cell=_CELL))
        rows, columns = blocks.shape[0] - _BLOCKS + 1, blocks.shape[1] - _BLOCKS + 1
        if rows < 1 or columns < 1:
            continue
        middle = _CELLS * _CELL / 2 - border
        y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1).astype(np.float32) * _CELL + np.float32(middle)
        stretch = np.asarray([width / scaled.width, height / scaled.height], np.float32)
        yield Level(blocks, np.stack([x, y], axis=1) * stretch, size)


def overlaps(some: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of (left, top, right, bottom) rows: rows of `some` x rows of `others`."""
    corner = np.maximum(some[:, None, :2], others[None, :, :2])
    opposite = np.minimum(some[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(opposite - corner, 0), axis=2)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1) for b in (some, others)]
    joint = areas[0][:, None] + areas[1][None, :] - common
    return np.asarray(common / np.maximum(joint, np.float32(1e-6)), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPicture:
    """A working picture and its objects: `boxes` are (left, top, right, bottom) in its pixels, one per label."""

    picture: NDArray[np.uint8]
    labels: tuple[str, ...]
    boxes: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Locator:
    """A trained object-location model. All arrays are float32.

    Attributes:
        labels: in the order of the columns; the last column is the background.
        sizes: of objects, in pixels of the working picture.
        weights: WINDOW_FEATURES x (labels + 1).
        offset: labels + 1.
        shapes: mean box of each label, relative to a window; see `_moves`: labels x 4.
        box_weights: WINDOW_FEATURES x 4.
        box_offset: 4.
    """

    labels: tuple[str, ...]
    sizes: NDArray[np.float32]
    weights: NDArray[np.float32]
    offset: NDArray[np.float32]
    shapes: NDArray[np.float32]
    box_weights: NDArray[np.float32]
    box_offset: NDArray[np.float32]

    @property
    def locates(self) -> bool:
        """Always True: its predictions have boxes."""
        return True

    def detect(self, image: Image) -> list[Prediction]:
        """At most 100 objects with a confidence of at least 0.02."""
        return self.predict(working_picture(image))

    def predict(self, picture: NDArray[np.uint8]) -> list[Prediction]:
        """Like `detect`, for a working picture."""
        candidates = [self._candidates(level) for level in levels(picture, self.sizes.tolist())]
        if not candidates:
            return []
        probabilities = np.concatenate([c[0] for c in candidates])
        classes = np.concatenate([c[1] for c in candidates])
        boxes = np.concatenate([c[2] for c in candidates])
        height, width = picture.shape
        boxes = np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32))
        best = np.argsort(-probabilities, kind="stable")[:_MAX_CANDIDATES]
        kept = _survivors(boxes[best], classes[best])
        return [
            Prediction(self.labels[classes[i]], float(probabilities[i]), _ratios(boxes[i], width, height))
            for i in best[kept][:_MAX_DETECTIONS]
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parameters of the model by name."""
        names = ("sizes", "weights", "offset", "shapes", "box_weights", "box_offset")
        return {name: getattr(self, name) for name in names}

    def _candidates(self, level: Level) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Confidence, label number and regressed box of each window with a confidence of at least 0.02."""
        probabilities = _softmax(level.score(self.weights) + self.offset)[:, :-1]
        classes = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(classes)), classes]
        chosen = np.flatnonzero(confidence >= _MIN_CONFIDENCE)
        moves = level.describe(chosen) @ self.box_weights + self.box_offset + self.shapes[classes[chosen]]
        centres = level.centres[chosen] + moves[:, :2] * np.float32(level.size)
        halves = np.exp(np.clip(moves[:, 2:], -3, 3)) * np.float32(level.size / 2)
        return confidence[chosen], classes[chosen], np.hstack([centres - halves, centres + halves])


def train_locator(pictures: Sequence[LabelledPicture], *, seed: int, check: Callable[[], None]) -> Locator:
    """Train with working pictures and the boxes of each.

    Args:
        pictures: at least one of them with a box.
        seed: of the choice of background windows.
        check: called regularly; raises to abort the training.
    """
    labels = tuple(sorted({label for p in pictures for label in p.labels}))
    sides = [float(s) for p in pictures for s in (p.boxes[:, 2:] - p.boxes[:, :2]).max(axis=1)]
    sizes = sizes_for(sides)
    rng = np.random.default_rng(seed)
    training = _TrainingWindows(labels)
    for picture in pictures:
        check()
        training.add(picture, list(levels(picture.picture, sizes)), rng)
    shapes, box_weights, box_offset = training.fit_boxes()
    weights, offset = training.fit_classes(seed, check)
    model = Locator(labels, np.asarray(sizes, np.float32), weights, offset, shapes, box_weights, box_offset)
    for picture in pictures:
        check()
        training.add_hard_negatives(picture, list(levels(picture.picture, sizes)), model)
    weights, offset = training.fit_classes(seed, check)
    return Locator(labels, np.asarray(sizes, np.float32), weights, offset, shapes, box_weights, box_offset)


class _TrainingWindows:
    """Feature vectors of windows with their classes; the class after the last label is the background."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._number = {label: n for n, label in enumerate(labels)}
        self._windows: list[NDArray[np.float32]] = []
        self._classes: list[NDArray[np.intp]] = []
        self._moves: list[NDArray[np.float32]] = []

    def add(self, picture: LabelledPicture, pyramid: list[Level], rng: np.random.Generator) -> None:
        """Add the windows that fit each object best, and random windows without an object."""
        if not pyramid:
            return
        count = len(self._number)
        fits = [overlaps(level.boxes, _squares(picture.boxes)) for level in pyramid]
        starts = np.cumsum([0, *(len(f) for f in fits)])
        overlap = np.concatenate(fits)
        for n, label in enumerate(picture.labels):
            order = np.argsort(-overlap[:, n], kind="stable")[:_POSITIVES_PER_OBJECT]
            good = order[overlap[order, n] >= min(_OBJECT_OVERLAP, overlap[order[0], n])]
            for level, chosen in _per_level(pyramid, starts, good):
                self._take(level, chosen, self._number[label])
                self._moves[-1] = _moves(level, chosen, picture.boxes[n])
        background = np.flatnonzero(overlap.max(axis=1, initial=0) < _BACKGROUND_OVERLAP)
        drawn = np.sort(rng.permutation(background)[:_NEGATIVES_PER_PICTURE])
        for level, chosen in _per_level(pyramid, starts, drawn):
            self._take(level, chosen, count)

    def add_hard_negatives(self, picture: LabelledPicture, pyramid: list[Level], model: Locator) -> None:
        """Add the windows without an object for which `model` is most confident (hard negatives)."""
        if not pyramid:
            return
        background = np.concatenate(
            [overlaps(v.boxes, _squares(picture.boxes)).max(axis=1, initial=0) < _BACKGROUND_OVERLAP for v in pyramid]
        )
        probabilities = np.concatenate(
            [_softmax(v.score(model.weights) + model.offset)[:, :-1].max(axis=1) for v in pyramid]
        )
        starts = np.cumsum([0, *(len(v.centres) for v in pyramid)])
        worst = np.argsort(-np.where(background, probabilities, 0), kind="stable")[:_HARD_PER_PICTURE]
        worst = np.sort(worst[background[worst]])
        for level, chosen in _per_level(pyramid, starts, worst):
            self._take(level, chosen, len(self._number))

    def fit_classes(self, seed: int, check: Callable[[], None]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights and offsets of all labels and the background."""
        from sklearn.linear_model import LogisticRegression

        check()
        windows, classes = np.concatenate(self._windows), np.concatenate(self._classes)
        if len(classes) > _MAX_WINDOWS:
            drawn = np.sort(np.random.default_rng(seed).permutation(len(classes))[:_MAX_WINDOWS])
            windows, classes = windows[drawn], classes[drawn]
        count = len(self._number) + 1
        weights, offset = np.zeros((WINDOW_FEATURES, count), np.float32), np.full(count, -20, np.float32)
        present = np.unique(classes)
        if len(present) == 1:
            offset[present] = 0
            return weights, offset
        fitted = LogisticRegression(C=_INVERSE_PENALTY, max_iter=200, tol=1e-3).fit(windows, classes)
        check()
        coefficients, intercepts = np.asarray(fitted.coef_), np.asarray(fitted.intercept_)
        if len(present) == 2:  # noqa: PLR2004 - for two classes there is one row
            coefficients = np.vstack([-coefficients, coefficients]) / 2
            intercepts = np.append(-intercepts, intercepts) / 2
        weights[:, present], offset[present] = coefficients.T, intercepts
        return weights, offset

    def fit_boxes(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Shapes, weights and offsets of the box regression."""
        from sklearn.linear_model import Ridge

        with_moves = [n for n, moves in enumerate(self._moves) if len(moves)]
        moves = np.concatenate([self._moves[n] for n in with_moves])
        windows = np.concatenate([self._windows[n] for n in with_moves])
        classes = np.concatenate([self._classes[n] for n in with_moves])
        shapes = np.zeros((len(self._number), 4), np.float32)
        for number in np.unique(classes):
            shapes[number] = moves[classes == number].mean(axis=0)
        fitted = Ridge(alpha=_BOX_PENALTY, solver="cholesky").fit(windows, moves - shapes[classes])
        return shapes, np.asarray(fitted.coef_.T, np.float32), np.asarray(fitted.intercept_, np.float32)

    def _take(self, level: Level, chosen: NDArray[np.intp], number: int) -> None:
        self._windows.append(level.describe(chosen))
        self._classes.append(np.full(len(chosen), number, np.intp))
        self._moves.append(np.empty((0, 4), np.float32))


def _per_level(
    pyramid: list[Level], starts: NDArray[Any], chosen: NDArray[Any]
) -> list[tuple[Level, NDArray[np.intp]]]:
    """Group window numbers that count over all levels by level, numbered within it."""
    parts = []
    for n, level in enumerate(pyramid):
        mine = chosen[(chosen >= starts[n]) & (chosen < starts[n + 1])] - starts[n]
        if len(mine):
            parts.append((level, mine))
    return parts


def _squares(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes extended to squares around their centres, to be compared with windows."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.hstack([middles - halves, middles + halves])


def _moves(level: Level, chosen: NDArray[np.intp], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """The regression targets from each window to `box`: shift of the centre / size, log(sides / size)."""
    centre, sides = (box[:2] + box[2:]) / 2, np.maximum(box[2:] - box[:2], 1)
    shifts = (centre - level.centres[chosen]) / np.float32(level.size)
    stretches = np.broadcast_to(np.log(sides / np.float32(level.size)), shifts.shape)
    return np.hstack([shifts, stretches]).astype(np.float32)


def _survivors(boxes: NDArray[np.float32], classes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Greedy non-maximum suppression; the rows are sorted by confidence. Returns the rows that are kept."""
    overlap = overlaps(boxes, boxes)
    limits = np.where(classes[:, None] == classes[None, :], _SAME_LABEL, _ANY_LABEL)
    clash = overlap > limits
    alive = np.ones(len(boxes), bool)
    kept = []
    for n in range(len(boxes)):
        if alive[n]:
            kept.append(n)
            alive &= ~clash[n]
    return np.asarray(kept, np.intp)


def _ratios(box: NDArray[np.float32], width: int, height: int) -> Box:
    left, top, right, bottom = (float(v) for v in box)
    return Box(left / width, top / height, (right - left) / width, (bottom - top) / height)


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
