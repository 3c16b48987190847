"""Image-level labels: kernel ridge regression with landmarks, and an independent probability for each label.

The feature vector of an image (HOG and colours) is compared with up to 800 landmark images by a Gaussian kernel
(Nyström approximation: Williams and Seeger, 2001). Ridge regression gives each label a score, and a sigmoid per label
(Platt, 1999) a probability. The sigmoids are fitted to out-of-fold scores. Two labels of one image can therefore both
be over 50, as with the real service.
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

# Measured on handwritten digits (`emulator.digits`): after training on 500, 97 % of 300 others are right. Penalties of
# 0.01 to 1, colour weights of 0 to 1 (`features`) and 400 to 1,600 landmarks change that by less than a point; 200
# landmarks cost two. After training on 120, shifted copies raise it from 87 % to 92 %.
_PENALTY: Final = 0.1
_FOLDS: Final = 5
_LANDMARKS: Final = 800
_SHIFT: Final = 4
"""Pixels by which pictures are shifted, with their border repeated."""
_SHIFTS: Final = tuple((down, right) for down in (0, -_SHIFT, _SHIFT) for right in (0, -_SHIFT, _SHIFT))
_MAX_IMAGES_SHIFTED: Final = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A trained image-level model. All arrays are float32.

    Attributes:
        labels: in the order of the columns.
        landmarks: feature vectors: landmarks x features.
        lengths: their squared lengths: landmarks.
        width: of the Gaussian, as the factor of a squared distance; one number.
        weights: landmarks x labels.
        offset: labels.
        slope: of the sigmoids: labels.
        shift: of the sigmoids: labels.
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
        """Always False: image-level labels have no boxes."""
        return False

    def detect(self, image: Image) -> list[Prediction]:
        """All labels with their probabilities."""
        return self.predict(describe(thumbnail(image)))

    def predict(self, description: NDArray[np.float32]) -> list[Prediction]:
        """All labels with their probabilities, for a feature vector."""
        distances = self.lengths + description @ description - 2 * (self.landmarks @ description)
        similarity = np.exp(-self.width * np.maximum(distances, 0))
        probabilities = _sigmoid(self.slope * (similarity @ self.weights + self.offset) + self.shift)
        order = np.argsort(-probabilities, kind="stable")
        return [Prediction(self.labels[i], float(probabilities[i])) for i in order]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parameters of the model by name."""
        names = ("landmarks", "lengths", "width", "weights", "offset", "slope", "shift")
        return {name: getattr(self, name) for name in names}


def train_classifier(
    pictures: Sequence[NDArray[np.uint8]],
    truths: Sequence[frozenset[str]],
    *,
    seed: int,
    check: Callable[[], None],
) -> Classifier:
    """Train with thumbnails and the labels of each.

    Args:
        pictures: SIDE x SIDE x 3 each.
        truths: labels of each picture; may be empty.
        seed: of the landmarks and the split into folds.
        check: called regularly; raises to abort the training.
    """
    labels = tuple(sorted(frozenset().union(*truths)))
    wanted = np.array([[1.0 if label in truth else -1.0 for label in labels] for truth in truths], np.float32)
    shifts = _SHIFTS if len(pictures) <= _MAX_IMAGES_SHIFTED else _SHIFTS[:1]
    described = np.empty((len(shifts), len(pictures), len(describe(pictures[0]))), np.float32)
    for n, picture in enumerate(pictures):
        check()
        wide = np.pad(picture, ((_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), mode="edge")
        for s, (down, right) in enumerate(shifts):
            top, left = _SHIFT - down, _SHIFT - right
            described[s, n] = describe(np.ascontiguousarray(wide[top : top + SIDE, left : left + SIDE]))
    rng = np.random.default_rng(seed)
    flat = described.reshape(-1, described.shape[-1])
    landmarks = flat[np.sort(rng.permutation(len(flat))[:_LANDMARKS])]
    width = np.asarray([1 / max(float(np.median(_distances(landmarks, landmarks))), 1e-6)], np.float32)
    check()
    basis = _whitening(_similarity(landmarks, landmarks, width))
    mapped = (_similarity(flat, landmarks, width) @ basis).reshape(*described.shape[:2], -1)
    folds = rng.permutation(len(pictures)) % min(_FOLDS, len(pictures))
    out_of_fold = np.empty_like(wanted)
    for fold in range(folds.max() + 1):
        check()
        weights, offset = _ridge(mapped[:, folds != fold], wanted[folds != fold])
        out_of_fold[folds == fold] = mapped[0, folds == fold] @ weights + offset
    check()
    weights, offset = _ridge(mapped, wanted)
    slope, shift = _calibrate(out_of_fold, wanted > 0)
    return Classifier(labels, landmarks, _lengths(landmarks), width, basis @ weights, offset, slope, shift)


def _distances(some: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances, rows of `some` x rows of `others`."""
    squares = _lengths(some)[:, None] + _lengths(others)[None, :]
    return np.asarray(np.maximum(squares - np.float32(2) * (some @ others.T), 0), np.float32)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float32)


def _similarity(
    some: NDArray[np.float32], others: NDArray[np.float32], width: NDArray[np.float32]
) -> NDArray[np.float32]:
    return np.asarray(np.exp(-width * _distances(some, others)), np.float32)


def _whitening(similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse square root of the similarity matrix of the landmarks."""
    values, vectors = np.linalg.eigh(similarity.astype(np.float64))
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-6))) @ vectors.T, np.float32)


def _ridge(
    described: NDArray[np.float32], wanted: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and offsets of all labels; `described` is shifts x images x features."""
    from sklearn.linear_model import Ridge

    flat = described.reshape(-1, described.shape[-1])
    fitted = Ridge(alpha=_PENALTY, solver="cholesky").fit(flat, np.tile(wanted, (described.shape[0], 1)))
    coefficients = np.asarray(fitted.coef_, np.float32).reshape(wanted.shape[1], -1)
    return np.ascontiguousarray(coefficients.T), np.asarray(fitted.intercept_, np.float32).reshape(-1)


def _calibrate(
    scores: NDArray[np.float32], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slope and shift of a sigmoid for each label, from out-of-fold scores."""
    from sklearn.linear_model import LogisticRegression

    slope, shift = np.ones(scores.shape[1], np.float32), np.zeros(scores.shape[1], np.float32)
    for n in range(scores.shape[1]):
        if present[:, n].all():  # on every image: no negatives to fit to
            continue
        fitted = LogisticRegression(C=10.0).fit(scores[:, n : n + 1], present[:, n])
        slope[n], shift[n] = max(float(fitted.coef_[0, 0]), 1e-3), float(fitted.intercept_[0])
    return slope, shift


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(values, -30, 30)))
