"""The windows that an object-location model looks through: every place of a small pyramid of sizes.

A window is a square of 8x8 HOG cells, a quarter larger than the object that it fits, so that it sees some ground
around it. At each level the picture is scaled to make a window 32 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from batchcl.emulator.learning.features import BLOCK, block_map, cell_histograms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["NUMBERS", "Level", "levels", "overlaps", "sizes_for", "working_picture"]

CONTEXT: Final = 1.25
"""A window's side over the longer side of the object that it fits."""

_CELL: Final = 4
_CELLS: Final = 8
_BLOCKS: Final = _CELLS - 1
_PAD: Final = 2
_STEP: Final = 1.2
_MOST_LEVELS: Final = 9
_MOST_SIDE: Final = 384

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
    from PIL.Image import Resampling  # noqa: PLC0415 - an extra, and slow to import

    scale = min(1.0, _MOST_SIDE / max(image.size))
    grey = image.convert("L")
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        grey = grey.resize(size, Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(grey)


def sizes_for(longer_sides: Sequence[float]) -> tuple[float, ...]:
    """Object sizes that between them fit the objects of the training set, smallest first."""
    low, high = np.percentile(np.asarray(longer_sides, np.float64), [2, 98])
    low, high = max(8.0, float(low)), max(8.0, float(high))
    steps = min(_MOST_LEVELS, max(1, 1 + round(np.log(high / low) / np.log(_STEP))))
    return tuple(float(size) for size in np.geomspace(low, high, steps))


def levels(picture: NDArray[np.uint8], sizes: Sequence[float]) -> Iterator[Level]:
    """The windows of each size; sizes whose window is larger than the picture are left out."""
    from PIL.Image import Resampling, fromarray  # noqa: PLC0415 - an extra, and slow to import

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
