"""Times, durations, counts, inference units and failure tolerances as people write them."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

from batchcl.errors import UsageError

__all__ = [
    "MAX_INT32",
    "MAX_UNITS",
    "Tolerance",
    "Units",
    "confidence_hint",
    "counted",
    "duration_text",
    "moment_of",
    "seconds_of",
]

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNIT_SECONDS: Final = (86_400, 3600, 60, 1)


MAX_INT32: Final = 2**31 - 1
"""The largest integer of the API, in whose model integers have 32 bits."""

MAX_UNITS: Final = 5
"""Inference units that one model can have. Source: the service's default quota."""

_LEAST_SHARE: Final = 0.1
"""A smaller one was hardly meant as a share of 1."""


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def confidence_hint(min_confidence: float | None) -> str | None:
    """A question where a smallest confidence looks like a share, though confidences are 0 to 100; else None."""
    if min_confidence is None or not _LEAST_SHARE <= min_confidence <= 1:
        return None
    return (
        f"--min-confidence {min_confidence:g} is {min_confidence:g} %, as confidences are 0 to 100; "
        f"was {100 * min_confidence:g} intended?"
    )


def seconds_of(duration: str) -> float:
    """The seconds of `6h`, `90m`, `45s`, `7d` or `1h30m`. Raises `UsageError`."""
    found = _DURATION.fullmatch(duration)
    if found is None or not any(found.groups()):
        raise UsageError(f"{duration!r} is no duration; write it like 6h, 90m, 45s or 1h30m")
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), _UNIT_SECONDS, strict=True))


def duration_text(duration: dt.timedelta) -> str:
    """`duration` as `seconds_of` reads it, such as `1h30m`. Raises `UsageError` for a negative one."""
    if duration < dt.timedelta(0):
        raise UsageError(f"{duration} is negative; use a positive duration")
    left, parts = duration, []
    for unit, seconds in zip("dhm", _UNIT_SECONDS, strict=False):
        count, left = divmod(left, dt.timedelta(seconds=seconds))
        if count:
            parts.append(f"{count}{unit}")
    if left or not parts:
        parts.append(f"{left.total_seconds():.6f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)


def moment_of(text: str, *, now: dt.datetime) -> dt.datetime:
    """The moment, in UTC, of a duration before `now` (`24h`), a day (its midnight), or a day and time.

    What names no zone is UTC. Raises `UsageError`.
    """
    try:
        if _DURATION.fullmatch(text) is not None:
            return now - dt.timedelta(seconds=seconds_of(text))
        moment = dt.datetime.fromisoformat(text)
        return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except (UsageError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is neither a duration before now, such as 24h or 7d, nor a day or time in UTC, such as "
            "2026-11-20 or 2026-11-20T06:00"
        ) from error


_TOLERANCE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How many images may fail before the run's exit code says so: a count, or a share of the images called for."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str | int) -> Tolerance:
        """Read `20` or `0.5%`. Raises ValueError."""
        found = _TOLERANCE.fullmatch(str(text))
        if found is None:
            raise ValueError(f"{text!r} is no tolerance; write a count such as 20 or a share such as 0.5%")
        if found["percent"]:
            percent = float(found["number"])
            if percent > 100:  # noqa: PLR2004
                raise ValueError(f"{text!r} is more than 100%")
            return cls(percent=percent)
        if not found["number"].isdigit():
            raise ValueError(f"{text!r} is no count; write a whole number, or a share such as 0.5%")
        return cls(count=int(found["number"]))

    def exceeded(self, *, failed: int, scored: int) -> bool:
        """Whether `failed` images are too many; skipped ones cost no call and don't count."""
        if self.percent is not None:
            return failed > (failed + scored) * self.percent / 100
        return failed > (self.count or 0)


@dataclass(frozen=True, slots=True)
class Units:
    """Inference units to start a model with; `maximum` turns on the service's auto-scaling."""

    minimum: int
    maximum: int | None = None

    @classmethod
    def parse(cls, text: str) -> Units:
        """Read `MIN` or `MIN:MAX`; raises `UsageError`."""
        low, colon, high = text.partition(":")
        try:
            units = cls(int(low), int(high) if colon else None)
        except ValueError:
            raise UsageError(f"{text!r} are not inference units; write MIN or MIN:MAX, such as 2 or 1:3") from None
        highest = units.minimum if units.maximum is None else units.maximum
        if not 1 <= units.minimum <= highest <= MAX_UNITS:
            raise UsageError(f"inference units {text!r} are out of range: 1 <= MIN <= MAX <= {MAX_UNITS}")
        return units

    def __str__(self) -> str:
        return str(self.minimum) if self.maximum is None else f"{self.minimum}:{self.maximum}"

    @property
    def words(self) -> str:
        """`1 inference unit`, `2 inference units`, `1:3 inference units`."""
        return f"{self} inference unit{'' if str(self) == '1' else 's'}"
