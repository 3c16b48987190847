"""Object location: a linear classifier on a pyramid of HOG windows."""

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
    "NUMBERS",
    "LabelledPicture",
    "Level",
    "Locator",
    "levels",
    "overlaps",
    "sizes_for",
    "train_locator",
    "working_picture",
]

_FITS: Final = 0.65
_MISSES: Final = 0.35
_POSITIVES_PER_OBJECT: Final = 6
_NEGATIVES_PER_PICTURE: Final = 20
_HARD_PER_PICTURE: Final = 12
_MAX_WINDOWS: Final = 20_000
_INVERSE_PENALTY: Final = 0.3
_BOX_PENALTY: Final = 10.0
_FAINT: Final = 0.02
_MAX_CANDIDATES: Final = 400
_MAX_DETECTIONS: Final = 100
_SAME_LABEL: Final = 0.3
_ANY_LABEL: Final = 0.45


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
        labels: in the order of the columns; the background is one column more, the last.
        sizes: of objects, in pixels of the working picture.
        weights: NUMBERS x (labels + 1).
        offset: labels + 1.
        shapes: what the box regression adds up to for a mean object of each label: labels x 4.
        box_weights: NUMBERS x 4.
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
        """Its detections have boxes."""
        return True

    def detect(self, image: Image) -> list[Prediction]:
        """The objects that it sees, at most 100, down to a confidence of 0.02."""
        return self.judge(working_picture(image))

    def judge(self, picture: NDArray[np.uint8]) -> list[Prediction]:
        """The objects that it sees on a working picture."""
        found = [self._candidates(level) for level in levels(picture, self.sizes.tolist())]
        if not found:
            return []
        chances = np.concatenate([f[0] for f in found])
        classes = np.concatenate([f[1] for f in found])
        boxes = np.concatenate([f[2] for f in found])
        height, width = picture.shape
        boxes = np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32))
        best = np.argsort(-chances, kind="stable")[:_MAX_CANDIDATES]
        kept = _survivors(boxes[best], classes[best])
        return [
            Prediction(self.labels[classes[i]], float(chances[i]), _ratios(boxes[i], width, height))
            for i in best[kept][:_MAX_DETECTIONS]
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The model's numbers by name."""
        names = ("sizes", "weights", "offset", "shapes", "box_weights", "box_offset")
        return {name: getattr(self, name) for name in names}

    def _candidates(self, level: Level) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Confidence, label and moved box of each window that shows something."""
        chances = _softmax(level.score(self.weights) + self.offset)[:, :-1]
        classes = chances.argmax(axis=1)
        confidence = chances[np.arange(len(classes)), classes]
        chosen = np.flatnonzero(confidence >= _FAINT)
        moves = level.describe(chosen) @ self.box_weights + self.box_offset + self.shapes[classes[chosen]]
        centres = level.centres[chosen] + moves[:, :2] * np.float32(level.size)
        halves = np.exp(np.clip(moves[:, 2:], -3, 3)) * np.float32(level.size / 2)
        return confidence[chosen], classes[chosen], np.hstack([centres - halves, centres + halves])


def train_locator(pictures: Sequence[LabelledPicture], *, seed: int, check: Callable[[], None]) -> Locator:
    """Learn from working pictures and the boxes on each.

    Args:
        pictures: at least one of them with a box.
        seed: of the windows that show the ground.
        check: called now and then; raises to stop.
    """
    labels = tuple(sorted({label for p in pictures for label in p.labels}))
    sides = [float(s) for p in pictures for s in (p.boxes[:, 2:] - p.boxes[:, :2]).max(axis=1)]
    sizes = sizes_for(sides)
    rng = np.random.default_rng(seed)
    lessons = _Lessons(labels)
    for picture in pictures:
        check()
        lessons.add(picture, list(levels(picture.picture, sizes)), rng)
    shapes, box_weights, box_offset = lessons.fit_boxes()
    weights, offset = lessons.fit_classes(seed, check)
    model = Locator(labels, np.asarray(sizes, np.float32), weights, offset, shapes, box_weights, box_offset)
    for picture in pictures:
        check()
        lessons.add_mistakes(picture, list(levels(picture.picture, sizes)), model)
    weights, offset = lessons.fit_classes(seed, check)
    return Locator(labels, np.asarray(sizes, np.float32), weights, offset, shapes, box_weights, box_offset)


class _Lessons:
    """Windows with what they show; the class after the last label is the background."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._number = {label: n for n, label in enumerate(labels)}
        self._windows: list[NDArray[np.float32]] = []
        self._classes: list[NDArray[np.intp]] = []
        self._moves: list[NDArray[np.float32]] = []

    def add(self, picture: LabelledPicture, views: list[Level], rng: np.random.Generator) -> None:
        """The windows that fit an object best, and some that show none."""
        if not views:
            return
        count = len(self._number)
        fits = [overlaps(view.boxes, _squares(picture.boxes)) for view in views]
        starts = np.cumsum([0, *(len(f) for f in fits)])
        everywhere = np.concatenate(fits)
        for n, label in enumerate(picture.labels):
            order = np.argsort(-everywhere[:, n], kind="stable")[:_POSITIVES_PER_OBJECT]
            good = order[everywhere[order, n] >= min(_FITS, everywhere[order[0], n])]
            for view, chosen in _per_view(views, starts, good):
                self._take(view, chosen, self._number[label])
                self._moves[-1] = _moves(view, chosen, picture.boxes[n])
        ground = np.flatnonzero(everywhere.max(axis=1, initial=0) < _MISSES)
        drawn = np.sort(rng.permutation(ground)[:_NEGATIVES_PER_PICTURE])
        for view, chosen in _per_view(views, starts, drawn):
            self._take(view, chosen, count)

    def add_mistakes(self, picture: LabelledPicture, views: list[Level], model: Locator) -> None:
        """The windows that `model` most wrongly takes for an object."""
        if not views:
            return
        ground = np.concatenate(
            [overlaps(v.boxes, _squares(picture.boxes)).max(axis=1, initial=0) < _MISSES for v in views]
        )
        chances = np.concatenate([_softmax(v.score(model.weights) + model.offset)[:, :-1].max(axis=1) for v in views])
        starts = np.cumsum([0, *(len(v.centres) for v in views)])
        worst = np.argsort(-np.where(ground, chances, 0), kind="stable")[:_HARD_PER_PICTURE]
        worst = np.sort(worst[ground[worst]])
        for view, chosen in _per_view(views, starts, worst):
            self._take(view, chosen, len(self._number))

    def fit_classes(self, seed: int, check: Callable[[], None]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights and offsets of all labels and the background."""
        from sklearn.linear_model import LogisticRegression

        check()
        windows, classes = np.concatenate(self._windows), np.concatenate(self._classes)
        if len(classes) > _MAX_WINDOWS:
            drawn = np.sort(np.random.default_rng(seed).permutation(len(classes))[:_MAX_WINDOWS])
            windows, classes = windows[drawn], classes[drawn]
        count = len(self._number) + 1
        weights, offset = np.zeros((NUMBERS, count), np.float32), np.full(count, -20, np.float32)
        present = np.unique(classes)
        if len(present) == 1:
            offset[present] = 0
            return weights, offset
        fitted = LogisticRegression(C=_INVERSE_PENALTY, max_iter=200, tol=1e-3).fit(windows, classes)
        check()
        coefficients, intercepts = np.asarray(fitted.coef_), np.asarray(fitted.intercept_)
        if len(present) == 2:  # noqa: PLR2004 - one row tells two classes apart
            coefficients = np.vstack([-coefficients, coefficients]) / 2
            intercepts = np.append(-intercepts, intercepts) / 2
        weights[:, present], offset[present] = coefficients.T, intercepts
        return weights, offset

    def fit_boxes(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """How the windows' squares are moved onto their objects."""
        from sklearn.linear_model import Ridge

        taught = [n for n, moves in enumerate(self._moves) if len(moves)]
        moves = np.concatenate([self._moves[n] for n in taught])
        windows = np.concatenate([self._windows[n] for n in taught])
        classes = np.concatenate([self._classes[n] for n in taught])
        shapes = np.zeros((len(self._number), 4), np.float32)
        for number in np.unique(classes):
            shapes[number] = moves[classes == number].mean(axis=0)
        fitted = Ridge(alpha=_BOX_PENALTY, solver="cholesky").fit(windows, moves - shapes[classes])
        return shapes, np.asarray(fitted.coef_.T, np.float32), np.asarray(fitted.intercept_, np.float32)

    def _take(self, view: Level, chosen: NDArray[np.intp], number: int) -> None:
        self._windows.append(view.describe(chosen))
        self._classes.append(np.full(len(chosen), number, np.intp))
        self._moves.append(np.empty((0, 4), np.float32))


def _per_view(views: list[Level], starts: NDArray[Any], chosen: NDArray[Any]) -> list[tuple[Level, NDArray[np.intp]]]:
    """Windows numbered over all views, as views with their own numbers."""
    parts = []
    for n, view in enumerate(views):
        mine = chosen[(chosen >= starts[n]) & (chosen < starts[n + 1])] - starts[n]
        if len(mine):
            parts.append((view, mine))
    return parts


def _squares(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes widened to squares about their middles, as a window's square is."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.hstack([middles - halves, middles + halves])


def _moves(view: Level, chosen: NDArray[np.intp], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """From each window's square to `box`: the middle's way in sizes, the sides' logarithms."""
    middle, sides = (box[:2] + box[2:]) / 2, np.maximum(box[2:] - box[:2], 1)
    ways = (middle - view.centres[chosen]) / np.float32(view.size)
    stretches = np.broadcast_to(np.log(sides / np.float32(view.size)), ways.shape)
    return np.hstack([ways, stretches]).astype(np.float32)


def _survivors(boxes: NDArray[np.float32], classes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Non-maximum suppression, greedy; the rows come best first."""
    same = overlaps(boxes, boxes)
    limits = np.where(classes[:, None] == classes[None, :], _SAME_LABEL, _ANY_LABEL)
    clash = same > limits
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


CONTEXT: Final = 1.25
"""A window's side over the longer side of the object that it fits."""

_CELL: Final = 4
_CELLS: Final = 8
_BLOCKS: Final = _CELLS - 1
_PAD: Final = 2
_STEP: Final = 1.2
_MAX_LEVELS: Final = 9
_MAX_SIDE: Final = 384

NUMBERS: Final = _BLOCKS * _BLOCKS * BLOCK
"""Numbers that describe a window."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """All windows of one size.

    Attributes:
        blocks: the picture's HOG blocks, rows x columns x 36.
        centres: of the windows, in pixels of the working picture: windows x (x, y).
        size: longer side of the objects that these windows fit, in pixels of the working picture.
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
        """`weights` (NUMBERS x classes) on every window: windows x classes, without copying the windows."""
        rows, columns = self.shape
        parts = weights.reshape(_BLOCKS, _BLOCKS, BLOCK, -1)
        total = np.zeros((rows * columns, parts.shape[-1]), np.float32)
        for down in range(_BLOCKS):
            for right in range(_BLOCKS):
                seen = self.blocks[down : down + rows, right : right + columns].reshape(-1, BLOCK)
                total += seen @ parts[down, right]
        return total

    def describe(self, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
        """The chosen windows as vectors: chosen x NUMBERS."""
        columns = self.shape[1]
        down, right = chosen // columns, chosen % columns
        offsets = np.arange(_BLOCKS)
        rows = down[:, None, None] + offsets[None, :, None]
        cols = right[:, None, None] + offsets[None, None, :]
        return np.asarray(self.blocks[rows, cols].reshape(len(chosen), NUMBERS), np.float32)


def working_picture(image: Image) -> NDArray[np.uint8]:
    """The grey picture that windows are laid on, at most 384 pixels a side."""
    from PIL.Image import Resampling

    scale = min(1.0, _MAX_SIDE / max(image.size))
    grey = image.convert("L")
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        grey = grey.resize(size, Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(grey)


def sizes_for(longer_sides: Sequence[float]) -> tuple[float, ...]:
    """Object sizes that between them fit the objects of the training set, smallest first."""
    low, high = np.percentile(np.asarray(longer_sides, np.float64), [2, 98])
    low, high = max(8.0, float(low)), max(8.0, float(high))
    steps = min(_MAX_LEVELS, max(1, 1 + round(np.log(high / low) / np.log(_STEP))))
    return tuple(float(size) for size in np.geomspace(low, high, steps))


def levels(picture: NDArray[np.uint8], sizes: Sequence[float]) -> Iterator[Level]:
    """The windows of each size; sizes whose window is larger than the picture are left out."""
    from PIL.Image import Resampling, fromarray

    height, width = picture.shape
    for size in sizes:
        scale = _CELL * _CELLS / (CONTEXT * size)
        scaled = fromarray(picture).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Resampling.BILINEAR
        )
        grey = np.asarray(scaled, np.float32) / np.float32(255)
        border = _PAD * _CELL
        fill = [(border, border + -side % _CELL) for side in grey.shape]  # whole cells, and room for objects at the rim
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
