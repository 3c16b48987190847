"""Image-level labels: a linear machine over an image's likeness to landmarks, a probability for each label by itself.

An image's description (HOG and colours) is compared with a few hundred landmark images by a Gaussian kernel
(Nyström's method: Williams and Seeger, 2001) and a ridge regression gives each label a score. Each label has its own
sigmoid (Platt, 1999), fitted to scores that the images got from models which had not seen them. Two labels of one
image can therefore both be over 50, as with the real service.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batchcl.emulator.learning.features import SIDE, describe, thumbnail
from batchcl.emulator.learning.model import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["Classifier", "train_classifier"]

_PENALTY: Final = 0.1
_FOLDS: Final = 5
_LANDMARKS: Final = 800
_SHIFTS: Final = tuple((down, right) for down in (0, -4, 4) for right in (0, -4, 4))
_SHIFT_UP_TO: Final = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A trained image-level model. All arrays are float32.

    Attributes:
        labels: in the order of the columns.
        landmarks: landmarks x numbers of a description.
        lengths: squared lengths of the landmarks: landmarks.
        width: of the Gaussian, as the factor on a squared distance; one number.
        weights: landmarks x labels.
        offset: labels.
        slope: labels: the sigmoid's.
        shift: labels: the sigmoid's.
    """

    labels: tuple[str, ...]
    landmarks: NDArray[np.float32]
    lengths: NDArray[np.float32]
    width: NDArray[np.float32]
    weights: NDArray[np.float32]
    offset: NDArray[np.float32]
    slope: NDArray[np.float32]
    shift: NDArray[np.float32]

    @property
    def locates(self) -> bool:
        """Image-level labels have no boxes."""
        return False

    def detect(self, image: Image) -> list[Prediction]:
        """Every label with its probability."""
        return self.judge(describe(thumbnail(image)))

    def judge(self, description: NDArray[np.float32]) -> list[Prediction]:
        """Every label with its probability, given the image's description."""
        distances = self.lengths + description @ description - 2 * (self.landmarks @ description)
        likeness = np.exp(-self.width * np.maximum(distances, 0))
        chances = _sigmoid(self.slope * (likeness @ self.weights + self.offset) + self.shift)
        order = np.argsort(-chances, kind="stable")
        return [Prediction(self.labels[i], float(chances[i])) for i in order]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The model's numbers by name."""
        names = ("landmarks", "lengths", "width", "weights", "offset", "slope", "shift")
        return {name: getattr(self, name) for name in names}


def train_classifier(
    pictures: Sequence[NDArray[np.uint8]],
    truths: Sequence[frozenset[str]],
    *,
    seed: int,
    check: Callable[[], None],
) -> Classifier:
    """Learn from thumbnails and the labels that are on each.

    Args:
        pictures: SIDE x SIDE x 3 each.
        truths: as many; an empty one is an image with none of the labels on it.
        seed: of the landmarks and of the split into folds.
        check: called now and then; raises to stop.
    """
    labels = tuple(sorted(frozenset().union(*truths)))
    wanted = np.array([[1.0 if label in truth else -1.0 for label in labels] for truth in truths], np.float32)
    shifts = _SHIFTS if len(pictures) <= _SHIFT_UP_TO else _SHIFTS[:1]
    described = np.empty((len(shifts), len(pictures), len(describe(pictures[0]))), np.float32)
    for n, picture in enumerate(pictures):
        check()
        for s, way in enumerate(shifts):
            described[s, n] = describe(_moved(picture, *way))
    rng = np.random.default_rng(seed)
    flat = described.reshape(-1, described.shape[-1])
    landmarks = flat[np.sort(rng.permutation(len(flat))[:_LANDMARKS])]
    width = np.asarray([1 / max(float(np.median(_distances(landmarks, landmarks))), 1e-6)], np.float32)
    check()
    basis = _whitening(_likeness(landmarks, landmarks, width))
    mapped = (_likeness(flat, landmarks, width) @ basis).reshape(*described.shape[:2], -1)
    folds = rng.permutation(len(pictures)) % min(_FOLDS, len(pictures))
    unseen = np.empty_like(wanted)
    for fold in range(folds.max() + 1):
        check()
        weights, offset = _ridge(mapped[:, folds != fold], wanted[folds != fold])
        unseen[folds == fold] = mapped[0, folds == fold] @ weights + offset
    check()
    weights, offset = _ridge(mapped, wanted)
    slope, shift = _calibrate(unseen, wanted > 0)
    return Classifier(labels, landmarks, _lengths(landmarks), width, basis @ weights, offset, slope, shift)


def _distances(some: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances, rows of `some` x rows of `others`."""
    squares = _lengths(some)[:, None] + _lengths(others)[None, :]
    return np.asarray(np.maximum(squares - np.float32(2) * (some @ others.T), 0), np.float32)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float32)


def _likeness(
    some: NDArray[np.float32], others: NDArray[np.float32], width: NDArray[np.float32]
) -> NDArray[np.float32]:
    return np.asarray(np.exp(-width * _distances(some, others)), np.float32)


def _whitening(likeness: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse square root of the landmarks' own likenesses."""
    values, vectors = np.linalg.eigh(likeness.astype(np.float64))
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-6))) @ vectors.T, np.float32)


def _moved(picture: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """The picture moved by a few pixels, its border repeated."""
    if not (down or right):
        return picture
    rows = np.clip(np.arange(SIDE) - down, 0, SIDE - 1)
    columns = np.clip(np.arange(SIDE) - right, 0, SIDE - 1)
    return picture[rows][:, columns]


def _ridge(
    described: NDArray[np.float32], wanted: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and offsets of all labels at once; `described` is shifts x images x numbers."""
    from sklearn.linear_model import Ridge

    flat = described.reshape(-1, described.shape[-1])
    fitted = Ridge(alpha=_PENALTY, solver="cholesky").fit(flat, np.tile(wanted, (described.shape[0], 1)))
    coefficients = np.asarray(fitted.coef_, np.float32).reshape(wanted.shape[1], -1)
    return np.ascontiguousarray(coefficients.T), np.asarray(fitted.intercept_, np.float32).reshape(-1)


def _calibrate(
    scores: NDArray[np.float32], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A sigmoid for each label from scores of images that its model hadn't seen."""
    from sklearn.linear_model import LogisticRegression

    slope, shift = np.ones(scores.shape[1], np.float32), np.zeros(scores.shape[1], np.float32)
    for n in range(scores.shape[1]):
        if present[:, n].all():  # on every image: nothing to tell it from
            continue
        fitted = LogisticRegression(C=10.0).fit(scores[:, n : n + 1], present[:, n])
        slope[n], shift[n] = max(float(fitted.coef_[0, 0]), 1e-3), float(fitted.intercept_[0])
    return slope, shift


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(values, -30, 30)))
