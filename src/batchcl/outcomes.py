"""What became of one image, and the table of error codes that images fail with."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import ClassVar, Final, Literal, TypeAlias

from batchcl.errors import CallError
from batchcl.images import ImageRef, SkipReason

__all__ = [
    "FAILURE_CODES",
    "PERMANENT_CODES",
    "AlreadyKnown",
    "Counts",
    "Detection",
    "Failed",
    "FailureCode",
    "Known",
    "Label",
    "Outcome",
    "Scored",
    "failed",
    "fit_may_help",
    "skipped",
]


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

    status: ClassVar[Literal["scored"]] = "scored"

    image: ImageRef
    labels: tuple[Label, ...]
    attempts: int
    latency_ms: float
    request_id: str
    scored_at: dt.datetime
    fitted: str | None = None

    @property
    def at(self) -> dt.datetime:
        """When the answer came."""
        return self.scored_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The image has no answer: `failed` after calls that didn't help, `skipped` without any call."""

    image: ImageRef
    status: Literal["failed", "skipped"]
    code: str
    message: str
    attempts: int
    failed_at: dt.datetime

    @property
    def at(self) -> dt.datetime:
        """When the image was given up."""
        return self.failed_at


Known: TypeAlias = Literal["already_scored", "already_failed"]
"""What another run made of a version of an image: it has a result, or a failure that is permanent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyKnown:
    """Another run has dealt with this version of the image since the list was made: an incremental run leaves it."""

    attempts: ClassVar[int] = 0

    image: ImageRef
    status: Known
    at: dt.datetime


Outcome = Scored | Failed | AlreadyKnown


def failed(image: ImageRef, error: CallError, *, attempts: int, at: dt.datetime) -> Failed:
    """`error` ended the image after so many attempts."""
    return Failed(image=image, status="failed", code=error.code, message=str(error), attempts=attempts, failed_at=at)


def skipped(image: ImageRef, reason: SkipReason, *, at: dt.datetime) -> Failed:
    """The image wasn't called for."""
    return Failed(image=image, status="skipped", code=reason.code, message=reason.message, attempts=0, failed_at=at)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images ended in each way; those that another run has dealt with have no row of this run."""

    scored: int = 0
    failed: int = 0
    skipped: int = 0
    already_scored: int = 0
    already_failed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def done(self) -> int:
        """All of them."""
        return sum(astuple(self))


@dataclass(frozen=True, slots=True)
class FailureCode:
    """What an error code says about the image.

    Attributes:
        reason: why the image has no result, to be read after "N images: ".
        permanent: the same version of the image fails again as long as the `--fit` setting is the same.
        fit_may_help: `--fit` may make it an image that the service accepts.
    """

    reason: str
    permanent: bool = True
    fit_may_help: bool = False


FAILURE_CODES: Final[Mapping[str, FailureCode]] = {
    "InvalidImageFormatException": FailureCode("not a PNG or JPEG, or broken", fit_may_help=True),
    "ImageTooLargeException": FailureCode("too many bytes or pixels", fit_may_help=True),
    "InvalidParameterException": FailureCode("refused by the service", permanent=False, fit_may_help=True),
    "UnsupportedExtension": FailureCode("not the name of a PNG or JPEG", fit_may_help=True),
    "EmptyFile": FailureCode("empty"),
    "TooLarge": FailureCode("too many bytes", fit_may_help=True),
    "TooManyPixels": FailureCode("too many pixels", fit_may_help=True),
    "TooFewPixels": FailureCode("too few pixels", fit_may_help=True),
    "TooLong": FailureCode("an aspect ratio over 20:1"),
    "BrokenImage": FailureCode("can't be decoded"),
    "UnknownFormat": FailureCode("not an image format that --fit knows"),
    "FolderMarker": FailureCode("a folder's placeholder"),
    "UndecodableName": FailureCode("a name that is not UTF-8"),
}

PERMANENT_CODES: Final = frozenset(code for code, about in FAILURE_CODES.items() if about.permanent)


def fit_may_help(code: str) -> bool:
    """Whether `--fit` may help an image that failed with `code` without it."""
    about = FAILURE_CODES.get(code)
    return about is not None and about.fit_may_help
