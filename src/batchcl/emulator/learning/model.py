"""What every trained model can do, and how its answers are chosen from what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batchcl.emulator.protocol import float32

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["Box", "Prediction", "Predictor", "select"]

from typing import Any, NamedTuple


class Box(NamedTuple):
    """A rectangle as ratios of the upright image's width and height."""

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
    """One label that a model sees: `confidence` 0 to 1; `box` only from object location."""

    label: str
    confidence: float
    box: Box | None = None

    @property
    def percent(self) -> float:
        """The confidence as the API has it: 0 to 100, of 32 bits."""
        return float32(min(100.0, self.confidence * 100))


class Predictor(Protocol):
    """A trained model."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What it was trained to see."""
        ...

    @property
    def locates(self) -> bool:
        """Whether its detections have boxes."""
        ...

    def detect(self, image: Image) -> list[Prediction]:
        """Everything that it sees in an upright RGB image, highest confidence first, whatever the threshold."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its numbers, to be kept."""
        ...


def select(
    detections: Iterable[Prediction],
    *,
    thresholds: Mapping[str, float],
    min_confidence: float | None,
    max_results: int | None,
) -> list[Prediction]:
    """What DetectCustomLabels returns of `detections`, highest confidence first.

    Args:
        detections: what the model sees.
        thresholds: each label's assumed threshold, 0 to 1.
        min_confidence: in percent, of 32 bits; given, it stands for all thresholds; 0 lets everything through.
        max_results: at most so many.
    """
    kept = [
        d
        for d in detections
        if (d.confidence >= thresholds[d.label] if min_confidence is None else d.percent >= min_confidence)
    ]
    kept.sort(key=lambda d: -d.confidence)
    return kept if max_results is None else kept[:max_results]
