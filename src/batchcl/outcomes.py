"""Outcomes of images, and the table of their failure codes."""

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
    "KnownStatus",
    "Label",
    "Outcome",
    "Scored",
    "failed",
    "fit_may_help",
    "remedy",
    "skipped",
]


@dataclass(frozen=True, slots=True)
class Label:
    """One label of one image.

    Attributes:
        name: as in the model's training data.
        confidence: 0 to 100.
        box: (left, top, width, height) as ratios of the upright image; None for an image-level label.
        polygon: ((x, y), …) as ratios; None if the service returns none.
    """

    name: str
    confidence: float
    box: tuple[float, float, float, float] | None = None
    polygon: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """The result of one call: labels in the service's order. Reading the image took `read_s` before the call."""

    labels: tuple[Label, ...]
    request_id: str
    read_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An image with a result.

    Attributes:
        attempts: calls, including failed ones.
        latency_ms: of the successful call.
        fitted: what `--fit` changed before the image was sent; None for an unchanged image.
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
        """When the image got its outcome."""
        return self.scored_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An image without a result: `failed` after calls or attempts to read it, `skipped` without any."""

    image: ImageRef
    status: Literal["failed", "skipped"]
    code: str
    message: str
    attempts: int
    failed_at: dt.datetime

    @property
    def at(self) -> dt.datetime:
        """When the image got its outcome."""
        return self.failed_at


KnownStatus: TypeAlias = Literal["already_scored", "already_failed"]
"""The outcome of an image version in another run: a result, or a permanent failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyKnown:
    """An image that an incremental run excludes: another run scored this version since the work list was written."""

    attempts: ClassVar[int] = 0

    image: ImageRef
    status: KnownStatus
    at: dt.datetime


Outcome = Scored | Failed | AlreadyKnown


def failed(image: ImageRef, error: CallError, *, attempts: int, at: dt.datetime) -> Failed:
    """The outcome of an image that failed with `error` after `attempts` calls."""
    return Failed(image=image, status="failed", code=error.code, message=str(error), attempts=attempts, failed_at=at)


def skipped(image: ImageRef, reason: SkipReason, *, at: dt.datetime) -> Failed:
    """The outcome of an image that is skipped without a call."""
    return Failed(image=image, status="skipped", code=reason.code, message=reason.message, attempts=0, failed_at=at)


@dataclass(frozen=True, slots=True)
class Counts:
    """Number of images per outcome.

    Attributes:
        already_scored: images whose row is in another run, as those of `already_failed`.
        unlabelled: scored images for which the model found no label; they are also counted as `scored`.
    """

    scored: int = 0
    failed: int = 0
    skipped: int = 0
    already_scored: int = 0
    already_failed: int = 0
    unlabelled: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(left + right for left, right in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(left - right for left, right in zip(astuple(self), astuple(other), strict=True)))

    @property
    def done(self) -> int:
        """Images with an outcome."""
        return self.scored + self.failed + self.skipped + self.already_scored + self.already_failed


@dataclass(frozen=True, slots=True)
class FailureCode:
    """The meaning of a failure code.

    Attributes:
        reason: follows "N images: " in reports.
        permanent: the same image version fails again with the same `--fit` setting.
        fit_may_help: `--fit` may convert or shrink the image so that the service accepts it.
    """

    reason: str
    permanent: bool = True
    fit_may_help: bool = False


FAILURE_CODES: Final[Mapping[str, FailureCode]] = {
    "InvalidImageFormatException": FailureCode("not a PNG or JPEG, or corrupt", fit_may_help=True),
    "ImageTooLargeException": FailureCode("too many bytes or pixels", fit_may_help=True),
    "InvalidParameterException": FailureCode("refused by the service", permanent=False, fit_may_help=True),
    "UnsupportedExtension": FailureCode("not the name of a PNG or JPEG", fit_may_help=True),
    "EmptyFile": FailureCode("empty"),
    "TooLarge": FailureCode("too many bytes", fit_may_help=True),
    "TooManyPixels": FailureCode("too many pixels", fit_may_help=True),
    "TooFewPixels": FailureCode("too few pixels", fit_may_help=True),
    "TooLong": FailureCode("an aspect ratio over 20:1"),
    "BrokenImage": FailureCode("can't be decoded"),
    "UnknownFormat": FailureCode("not an image format that --fit supports"),
    "FolderMarker": FailureCode("a folder's placeholder"),
    "UndecodableName": FailureCode("a name that is not UTF-8"),
}

PERMANENT_CODES: Final = frozenset(code for code, about in FAILURE_CODES.items() if about.permanent)


_REMEDIES: Final[Mapping[str, str]] = {
    "AccessDenied": "allow s3:GetObject on the images; `batchcl retry`",
    "AccessDeniedException": "allow s3:GetObject and rekognition:DetectCustomLabels; `batchcl retry`",
    "InvalidS3ObjectException": "make the objects readable, in the model's region; `batchcl retry`",
    "UnreadableFile": "make the files readable; `batchcl retry`",
}


def remedy(code: str, *, fit: bool) -> str:
    """What would give an image that failed with `code` a result.

    Args:
        code: an error code.
        fit: whether it failed with `--fit`.
    """
    if code in _REMEDIES:
        return _REMEDIES[code]
    about = FAILURE_CODES.get(code)
    if about is not None and about.fit_may_help and not fit:
        return "`batchcl retry --fit` may convert them"
    return "nothing: replace the images" if about is not None and about.permanent else "`batchcl retry`"


def fit_may_help(code: str) -> bool:
    """Whether `--fit` may help an image that failed with `code`."""
    about = FAILURE_CODES.get(code)
    return about is not None and about.fit_may_help
