"""What became of one image."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Literal

from batchcl.errors import CallError
from batchcl.images import ImageRef, Unfit

__all__ = ["Counts", "Detection", "Failed", "Label", "Outcome", "Scored", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Label:
    """One label of one image.

    Attributes:
        name: as the model was trained with.
        confidence: 0 to 100.
        box: (left, top, width, height) as ratios of the upright image; None for an image-level label.
        polygon: ((x, y), …) as ratios; None where the service gave none.
    """

    name: str
    confidence: float
    box: tuple[float, float, float, float] | None = None
    polygon: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """A good answer to one call: the labels as the service ordered them.

    `read_s` went by before the call went out, as the image's bytes had to be read.
    """

    labels: tuple[Label, ...]
    request_id: str
    read_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The service answered. `latency_ms` is that of the call that did, `attempts` counts the failed ones too.

    `fitted` says what was changed before the image was sent; None where it went as it was.
    """

    image: ImageRef
    labels: tuple[Label, ...]
    attempts: int
    latency_ms: float
    request_id: str
    scored_at: dt.datetime
    fitted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The image has no answer: `failed` after calls that didn't help, `skipped` without any call."""

    image: ImageRef
    status: Literal["failed", "skipped"]
    code: str
    message: str
    attempts: int
    failed_at: dt.datetime


Outcome = Scored | Failed


def failed(image: ImageRef, error: CallError, *, attempts: int, at: dt.datetime) -> Failed:
    """`error` ended the image after so many attempts."""
    return Failed(image=image, status="failed", code=error.code, message=str(error), attempts=attempts, failed_at=at)


def skipped(image: ImageRef, reason: Unfit, *, at: dt.datetime) -> Failed:
    """The image wasn't called for."""
    return Failed(image=image, status="skipped", code=reason.code, message=reason.message, attempts=0, failed_at=at)


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of so many images."""

    scored: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.scored + other.scored, self.failed + other.failed, self.skipped + other.skipped)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.scored - other.scored, self.failed - other.failed, self.skipped - other.skipped)

    @property
    def done(self) -> int:
        """All of them."""
        return self.scored + self.failed + self.skipped
