"""Parses and formats times, durations, counts, inference units and failure tolerances."""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass
from typing import Final

from batchcl.errors import UsageError

__all__ = [
    "MAX_INT32",
    "MAX_UNITS",
    "AutoUnits",
    "Tolerance",
    "Units",
    "clock_text",
    "confidence_hint",
    "deadline_s",
    "duration_text",
    "parse_datetime",
    "parse_duration",
    "parse_units",
    "period_text",
    "pluralize",
    "rate_text",
]

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNIT_SECONDS: Final = (86_400, 3600, 60, 1)
_TIME_OF_DAY: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?Z?")
_TOLERANCE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")

MAX_INT32: Final = 2**31 - 1
"""The largest integer in the API; its service model has 32-bit integers."""

MAX_UNITS: Final = 5
"""Inference units that one model can have. Source: the service's default quota."""

_LEAST_SHARE: Final = 0.1
"""A smaller value was hardly meant as a share of 1."""


def pluralize(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def confidence_hint(min_confidence: float | None) -> str | None:
    """A hint for a minimum confidence that looks like a share of 1, as confidences are 0 to 100; else None."""
    if min_confidence is None or not _LEAST_SHARE <= min_confidence <= 1:
        return None
    return (
        f"--min-confidence {min_confidence:g} means {min_confidence:g} % (confidences are 0 to 100); "
        f"did you mean {100 * min_confidence:g}?"
    )


def parse_duration(duration: str) -> float:
    """Parse a duration such as `6h`, `90m`, `45s`, `7d` or `1h30m` into seconds. Raises `UsageError`."""
    match = _DURATION.fullmatch(duration)
    if match is None or not any(match.groups()):
        raise UsageError(f"{duration!r} is not a duration; write it like 6h, 90m, 45s or 1h30m")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), _UNIT_SECONDS, strict=True))


def deadline_s(text: str, *, now: dt.datetime) -> float:
    """Seconds from `now` to a deadline: a duration, or the next time that it is this time of day in UTC, such as 06:00.

    Raises `UsageError`.
    """
    if (match := _TIME_OF_DAY.fullmatch(text)) is not None:
        hour, minute, second = (int(part or 0) for part in match.groups())
        now = now.astimezone(dt.UTC)
        at = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        return (at - now).total_seconds() if at > now else (at + dt.timedelta(days=1) - now).total_seconds()
    try:
        return parse_duration(text)
    except UsageError as error:
        raise UsageError(
            f"{text!r} is neither a duration nor a time of day; write it like 6h, 90m or 1h30m, or like 06:00 (UTC)"
        ) from error


def duration_text(duration: dt.timedelta) -> str:
    """`duration` as `parse_duration` reads it, such as `1h30m`. Raises `UsageError` for a negative one."""
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


def clock_text(seconds: float) -> str:
    """A period as a clock shows it: `0:04:09`, from a day on `2 d 03:04`; `?` if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days:,} d {hour:02}:{minute:02}" if days else f"{hour}:{minute:02}:{second:02}"


def period_text(seconds: float) -> str:
    """A period in words: `45 s`, `4 min 10 s`, `12 min`, `3 h 20 min`, `2 d 5 h`; `?` if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 99.5:  # noqa: PLR2004 - two digits
        return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{max(0.0, seconds):.0f} s"  # noqa: PLR2004 - one digit
    minutes, second = divmod(round(seconds), 60)
    if minutes < 10:  # noqa: PLR2004 - one digit
        return f"{minutes} min {second} s" if second else f"{minutes} min"
    minutes = round(seconds / 60)
    if minutes < 100:  # noqa: PLR2004 - two digits
        return f"{minutes} min"
    hours, minute = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004 - two days
        return f"{hours} h {minute} min" if minute else f"{hours} h"
    days, hour = divmod(round(seconds / 3600), 24)
    return f"{days:,} d {hour} h" if hour else f"{days:,} d"


def rate_text(per_second: float) -> str:
    """A rate with at least two digits: `1,204/s`, `27.4/s`, `0.25/s`, `1.5/min`, `2.0/h`; `?/s` if it is not finite."""
    if not math.isfinite(per_second):
        return "?/s"
    if per_second <= 0 or per_second >= 100:  # noqa: PLR2004 - three digits
        return f"{max(0.0, per_second):,.0f}/s"
    for unit, seconds, least in (("s", 1, 0.1), ("min", 60, 1), ("h", 3600, 0)):
        if (number := per_second * seconds) >= least:
            return f"{number:.{1 if number >= 1 else 2}f}/{unit}"
    raise AssertionError


def parse_datetime(text: str, *, now: dt.datetime) -> dt.datetime:
    """Parse a duration before `now` (`24h`), a date (its midnight) or a date and time into UTC.

    Times without a zone are UTC. Raises `UsageError`.
    """
    try:
        if _DURATION.fullmatch(text) is not None:
            return now - dt.timedelta(seconds=parse_duration(text))
        moment = dt.datetime.fromisoformat(text)
        return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except (UsageError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is not a time; write a duration before now, such as 24h or 7d, or a date or time in UTC, such "
            "as 2026-11-20 or 2026-11-20T06:00"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How many images may fail before the run exits with 3: a count, or a percentage of the images called for."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str | int) -> Tolerance:
        """Parse `20` or `0.5%`. Raises ValueError."""
        match = _TOLERANCE.fullmatch(str(text))
        if match is None:
            raise ValueError(f"{text!r} is not a tolerance; write a count such as 20 or a percentage such as 0.5%")
        if match["percent"]:
            percent = float(match["number"])
            if percent > 100:  # noqa: PLR2004 - per cent
                raise ValueError(f"{text!r} is more than 100%")
            return cls(percent=percent)
        if not match["number"].isdigit():
            raise ValueError(f"{text!r} is not a count; write an integer, or a percentage such as 0.5%")
        return cls(count=int(match["number"]))

    def exceeded(self, *, failed: int, scored: int) -> bool:
        """Whether too many images failed. Skipped images cost no call and don't count."""
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
        if not 1 <= units.minimum <= units.highest <= MAX_UNITS:
            raise UsageError(f"inference units {text!r} are out of range: 1 <= MIN <= MAX <= {MAX_UNITS}")
        return units

    def __str__(self) -> str:
        return str(self.minimum) if self.maximum is None else f"{self.minimum}:{self.maximum}"

    @property
    def highest(self) -> int:
        """The largest number of units that the model may have."""
        return self.minimum if self.maximum is None else self.maximum

    @property
    def words(self) -> str:
        """`1 inference unit`, `2 inference units`, `1:3 inference units`."""
        return f"{self} inference unit{'' if str(self) == '1' else 's'}"


@dataclass(frozen=True, slots=True)
class AutoUnits:
    """As many inference units as the number of images and the deadline need, and at most `highest`."""

    highest: int = MAX_UNITS

    def __str__(self) -> str:
        return "auto" if self.highest == MAX_UNITS else f"auto:{self.highest}"

    @property
    def words(self) -> str:
        """`1 to 5 inference units`."""
        return "1 inference unit" if self.highest == 1 else f"1 to {self.highest} inference units"


def parse_units(text: str) -> Units | AutoUnits:
    """Read `MIN`, `MIN:MAX`, `auto` or `auto:MAX`; raises `UsageError`."""
    first, colon, highest = text.partition(":")
    if first != "auto":
        return Units.parse(text)
    if not colon:
        return AutoUnits()
    if not (highest.isascii() and highest.isdigit() and 1 <= int(highest) <= MAX_UNITS):
        raise UsageError(f"{text!r}: the largest number of inference units is 1 to {MAX_UNITS}, such as auto:3")
    return AutoUnits(int(highest))
