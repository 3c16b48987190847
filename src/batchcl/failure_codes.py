"""Error codes of images: whether the same object version fails again, and whether `--fit` may help.

Codes that are not in the table say nothing about the image: another attempt may succeed. Sources: the error list of
DetectCustomLabels in the API reference, and "Guidelines and quotas" of the Custom Labels guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FAILURE_CODES", "PERMANENT_CODES", "FailureCode", "fit_may_help"]


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
