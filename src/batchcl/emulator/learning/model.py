"""The interface of trained models, and the selection of the predictions that DetectCustomLabels returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from batchcl.emulator.protocol import float32

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["Box", "Prediction", "Predictor", "select"]


class Box(NamedTuple):
    """A box as ratios of the upright image's width and height."""

    left: float
    top: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Intersection over union, 0 to 1."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        if across <= 0 or down <= 0:
            return 0.0
        common = across * down
        return common / (self.width * self.height + other.width * other.height - common)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted label; `confidence` is 0 to 1, `box` is None for image-level labels."""

    label: str
    confidence: float
    box: Box | None = None

    @property
    def percent(self) -> float:
        """The confidence in the API: 0 to 100, as a 32-bit float."""
        return float32(min(100.0, self.confidence * 100))


class Predictor(Protocol):
    """A trained model."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it was trained with."""
        ...

    @property
    def locates(self) -> bool:
        """Whether its predictions have boxes."""
        ...

    def detect(self, image: Image) -> list[Prediction]:
        """All predictions for an upright RGB image, by descending confidence, whatever the threshold."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its parameters by name, to be stored."""
        ...


def select(
    detections: Iterable[Prediction],
    *,
    thresholds: Mapping[str, float],
    min_confidence: float | None,
    max_results: int | None,
) -> list[Prediction]:
    """The predictions that DetectCustomLabels returns, by descending confidence.

    Args:
        detections: all predictions of the model.
        thresholds: assumed threshold of each label, 0 to 1.
        min_confidence: 0 to 100, as a 32-bit float; replaces all thresholds if it is given.
        max_results: maximum number; None for no limit.
    """
    kept = [
        d
        for d in detections
        if (d.confidence >= thresholds[d.label] if min_confidence is None else d.percent >= min_confidence)
    ]
    kept.sort(key=lambda d: -d.confidence)
    return kept if max_results is None else kept[:max_results]
