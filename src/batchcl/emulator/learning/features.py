"""Feature vectors of images: histograms of oriented gradients, and colours.

HOG as in Dalal and Triggs, "Histograms of oriented gradients for human detection", 2005: nine unsigned orientations,
blocks of 2x2 cells, L2-Hys normalisation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["BLOCK", "SIDE", "block_map", "cell_histograms", "describe", "thumbnail"]

SIDE: Final = 64
"""Pixels per side of the thumbnail for image-level models."""

BLOCK: Final = 36
"""Features per block: 2x2 cells of nine orientations."""

# The orientations, cells and limit of the paper. The colours are this module's own, for labels that differ by
# colour; they make no difference for digits.
_BINS: Final = 9
_CELL: Final = 8
_CLIP: Final = np.float32(0.2)
_COLOUR_GRID: Final = 4
_COLOUR_BINS: Final = 8
_COLOUR_WEIGHT: Final = np.float32(0.5)


def thumbnail(image: Image) -> NDArray[np.uint8]:
    """An RGB image resized to SIDE x SIDE x 3."""
    from PIL.Image import Resampling

    return np.asarray(image.resize((SIDE, SIDE), Resampling.BILINEAR, reducing_gap=2.0))


def describe(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The feature vector of a thumbnail: HOG, mean colours on a 4x4 grid, and a histogram of each colour."""
    colours = picture.astype(np.float32) / np.float32(255)
    grey = (colours[..., 0] + colours[..., 1] + colours[..., 2]) / np.float32(
        3
    )  # mean(axis=2) takes four times as long
    shape = block_map(cell_histograms(grey, cell=_CELL)).ravel()
    part = SIDE // _COLOUR_GRID
    grid = colours.reshape(_COLOUR_GRID, part, _COLOUR_GRID, part, 3)
    means = np.einsum("rycxk->rck", grid).ravel() / np.float32(part * part)
    histogram = [
        np.bincount(picture[..., c].ravel() // (256 // _COLOUR_BINS), minlength=_COLOUR_BINS) for c in range(3)
    ]
    spread = np.sqrt(np.concatenate(histogram).astype(np.float32) / np.float32(SIDE * SIDE))
    return np.concatenate([shape, _COLOUR_WEIGHT * means, _COLOUR_WEIGHT * spread])


def cell_histograms(grey: NDArray[np.float32], *, cell: int) -> NDArray[np.float32]:
    """Orientation histograms of each cell of `cell` x `cell` pixels: rows x columns x 9.

    Each pixel's gradient is shared between its two nearest orientations. Pixels beyond the last whole cell are
    ignored.
    """
    rows, columns = grey.shape[0] // cell, grey.shape[1] // cell
    grey = grey[: rows * cell, : columns * cell]
    dy, dx = np.zeros_like(grey), np.zeros_like(grey)
    dy[1:-1] = grey[2:] - grey[:-2]
    dx[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    strength = np.hypot(dx, dy)
    position = np.arctan2(dy, dx) * np.float32(_BINS / np.pi)
    position += (position < 0) * np.float32(_BINS)  # modulo takes ten times as long
    lower = np.floor(position).astype(np.intp)
    share = position - lower
    lower *= lower != _BINS  # modulo takes twice as long
    first = _first_bins(rows, columns, cell)
    upper = np.where(lower == _BINS - 1, 0, lower + 1)
    size = rows * columns * _BINS
    total = np.bincount((first + lower).ravel(), (strength * (1 - share)).ravel(), minlength=size)
    total += np.bincount((first + upper).ravel(), (strength * share).ravel(), minlength=size)
    return total.astype(np.float32).reshape(rows, columns, _BINS)


@lru_cache(maxsize=64)
def _first_bins(rows: int, columns: int, cell: int) -> NDArray[np.intp]:
    """For each pixel, the index of its cell's first orientation."""
    of_row = np.arange(rows).repeat(cell)[:, None] * columns
    return (of_row + np.arange(columns).repeat(cell)[None, :]) * _BINS


def block_map(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Overlapping blocks of 2x2 cells, each normalised: (rows - 1) x (columns - 1) x 36."""
    blocks = np.concatenate([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=2)
    blocks = np.minimum(_unit(blocks), _CLIP)
    return np.asarray(_unit(blocks), np.float32)


def _unit(blocks: Any) -> Any:
    length = np.sqrt(np.einsum("...i,...i->...", blocks, blocks) + np.float32(1e-4))
    return blocks / length[..., None]
