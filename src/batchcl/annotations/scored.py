"""Scored images as the writers of annotation files take them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from xml.sax.saxutils import quoteattr

import orjson

from batchcl.errors import ErrorCode, UsageError

__all__ = ["ImageWriter", "ScoredBox", "ScoredImage", "ScoredLabel", "UnwritableError", "check_xml", "json_text", "xml"]

_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Outside of Char in XML 1.0, section 2.2."""


class UnwritableError(ValueError):
    """An image can't be written in a format; the message is the reason."""


@dataclass(frozen=True, slots=True)
class ScoredBox:
    """A box as ratios of the upright image."""

    left: float
    top: float
    width: float
    height: float

    def scaled(self, size: tuple[int, int], *, decimals: int = 2) -> tuple[float, float, float, float]:
        """Left, top, width and height for an image of this width and height; what is outside of it is cut off."""
        wide, high = size
        left, top = (min(max(side, 0.0), 1.0) for side in (self.left, self.top))
        right, bottom = min(self.left + self.width, 1.0), min(self.top + self.height, 1.0)
        sides = (left * wide, top * high, max(right - left, 0.0) * wide, max(bottom - top, 0.0) * high)
        first, second, third, fourth = (round(side, decimals) for side in sides)
        return first, second, third, fourth


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """A label with its confidence, 0 to 100; `box` is None for a label of the whole image."""

    name: str
    confidence: float
    box: ScoredBox | None

    @property
    def score(self) -> float:
        """The confidence as 0 to 1."""
        return round(self.confidence / 100, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredImage:
    """One row of results.

    Attributes:
        name: the image's name in the file: its URI, or relative to a folder.
        uri: as in results.
        version_id: of the S3 object, if results have it.
        model: `project@version`.
        model_arn: its ARN.
        run_id: of the run that scored it.
        date: start date of the run.
        scored_at: in UTC.
        size: (width, height) of the upright image in pixels; None for formats that don't need it.
        labels: the most confident first.
    """

    name: str
    uri: str
    version_id: str | None
    model: str
    model_arn: str
    run_id: str
    date: dt.date
    scored_at: dt.datetime
    size: tuple[int, int] | None
    labels: Sequence[ScoredLabel]


class ImageWriter(Protocol):
    """Writes the files of one format. `add` receives all rows of an image, which are several only for some formats."""

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """Write an image; raises `UnwritableError`."""
        ...

    def close(self) -> None:
        """Complete and close the files."""
        ...


def json_text(value: object) -> str:
    """`value` as compact JSON."""
    return orjson.dumps(value).decode()


def xml(text: object) -> str:
    """`text` as a quoted XML attribute; raises `UnwritableError` for characters that XML can't have."""
    plain = str(text)
    if _NOT_XML.search(plain):
        raise UnwritableError(f"{plain!r} has characters that XML can't have")
    return quoteattr(plain, {"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})


def check_xml(labels: Sequence[str]) -> None:
    """Raise `UsageError` for a label that XML can't have."""
    for label in labels:
        try:
            xml(label)
        except UnwritableError as error:
            raise UsageError(f"the label {error}; export another format", code=ErrorCode.NOT_EXPORTABLE) from error
