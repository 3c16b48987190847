"""The summary of a run, of its sources, and of each of its sessions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

__all__ = ["BILLED_USES", "SessionRecord", "SourceCounts", "Summary", "rate"]


Status = Literal["done", "stopped", "postponed"]

BILLED_USES: Final = ("start", "scoring", "throttled", "idle", "tail", "stop")
"""What a billed second of the model is used for; `batchcl.lifetime.meter` says when."""

_MINUTES_FROM_S: Final = 120.0
_SHOWN: Final = 0.05
"""Less is rounded to 0.0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """Calls, time and cost of one session: one process that worked on the run.

    Attributes:
        number: of the session, from 0; each resume, retry or recovery by another run is a new session.
        round: 0, or the number of the retry.
        calls: DetectCustomLabels calls, including throttled ones.
        throttled: calls refused for capacity.
        images: images with an outcome that were called for.
        seconds: from the first call to the last row; 0 without a call.
        images_per_second: `images` divided by `seconds`.
        units: inference units of the model, such as `2` or `1:3`; None if unknown.
        cost_usd: minimum cost of the model in this session; None if the session did not start it.
        cost_by_month: `cost_usd` by UTC month, such as `2026-11`.
        billed_s: seconds in which the model was billed, by use: start, scoring, throttled, idle, tail, stop.
        start_s: seconds from the accepted start until the model was RUNNING; None if the session did not start it.
    """

    number: int
    round: int = 0
    calls: int = 0
    throttled: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    units: str | None = None
    cost_usd: float | None = None
    cost_by_month: dict[str, float] = field(default_factory=dict)
    billed_s: dict[str, float] = field(default_factory=dict)
    start_s: float | None = None

    @classmethod
    def of(cls, number: int, progress: Mapping[str, Any]) -> SessionRecord:
        """The record for the counters in a heartbeat."""
        images, seconds = _number(progress, "images"), _number(progress, "seconds")
        return cls(
            number=number,
            round=int(_number(progress, "round")),
            calls=int(_number(progress, "calls")),
            throttled=int(_number(progress, "throttled")),
            images=int(images),
            seconds=seconds,
            images_per_second=rate(images, seconds),
            units=progress.get("model_units"),
            cost_usd=None if progress.get("cost_usd") is None else _number(progress, "cost_usd"),
            cost_by_month=dict(progress.get("cost_by_month") or {}),
            billed_s=dict(progress.get("billed_s") or {}),
            start_s=progress.get("start_s"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """What became of the lines and images of the sources.

    Attributes:
        lines: lines and rows of all lists, the sum of all other counts; None if a source is not a list.
        planned: images on the work list.
        bad_lines: lines that don't name an image.
        ignored: entries that are not an image to score, such as delete markers: kind → count.
        duplicates: images that were named before.
        filtered: images excluded by filters.
        filtered_by: filter → images that it excluded; `size_unknown` if `min_size` or `max_size` can't be checked, etc.
        already_scored: images excluded by `--incremental` because their version has a result.
        already_failed: images excluded by `--incremental` because their version has a permanent failure.
    """

    lines: int | None = None
    planned: int = 0
    bad_lines: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    filtered: int = 0
    filtered_by: dict[str, int] = field(default_factory=dict)
    already_scored: int = 0
    already_failed: int = 0

    @property
    def excluded(self) -> int:
        """Lines and images that were read, and are not on the work list."""
        known = self.already_scored + self.already_failed
        return self.bad_lines + sum(self.ignored.values()) + self.duplicates + self.filtered + known

    @property
    def unread(self) -> int:
        """Lines that were not read because `--limit` was reached."""
        return 0 if self.lines is None else max(self.lines - self.planned - self.excluded, 0)

    def describe_sources(self) -> str:
        """Return `1,000 lines read = 990 planned + 10 bad`, or only the right-hand side if `lines` is None."""
        counts = {
            "planned": self.planned,
            "filtered": self.filtered,
            "duplicates": self.duplicates,
            "already scored": self.already_scored,
            "failed permanently before": self.already_failed,
            "bad": self.bad_lines,
            **self.ignored,
            "after the limit": self.unread,
        }
        parts = " + ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "planned")
        if self.lines is None:
            return parts
        return f"{self.lines:,} {'line' if self.lines == 1 else 'lines'} read = {parts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(SourceCounts):
    """The summary of a run, over all its sessions; `planned` excludes images that another run has scored since.

    Attributes:
        status: `done` if every image on the work list has a row, `postponed` if there were fewer than `min_images`, so
            that no run was recorded, else `stopped`.
        reason: why it stopped, or was postponed.
        unlabelled: scored images for which the model found no label; they are also counted as `scored`.
        calls: DetectCustomLabels calls, including throttled ones.
        throttled: calls refused for capacity.
        seconds: sum over the sessions of the time from first call to last row.
        images_per_second: images called for, divided by `seconds`.
        cost_usd: minimum cost of the model; None if no session started it.
        cost_by_month: `cost_usd` by UTC month.
        billed_s: seconds in which the model was billed, by use, of all sessions.
        sessions: the sessions in order; a killed one is counted up to its last heartbeat.
        min_confidence: the requested minimum; None for the model's own threshold.
        tolerated: whether failures stayed within `max_failures`.
        retryable: failed images that `batchcl retry` scores again; None until the run, or its retry, is done.
        fittable: failed and skipped images that `--fit` may fix; None until the run, or its retry, is done.
        round: 0, or the number of the retry that this summarizes.
    """

    run_id: str
    status: Status
    scored: int
    failed: int
    skipped: int
    calls: int
    throttled: int
    seconds: float
    images_per_second: float
    out: str
    model: str
    started_at: dt.datetime
    ended_at: dt.datetime
    unlabelled: int = 0
    tolerated: bool = True
    min_confidence: float | None = None
    cost_usd: float | None = None
    cost_by_month: dict[str, float] = field(default_factory=dict)
    billed_s: dict[str, float] = field(default_factory=dict)
    retryable: int | None = None
    fittable: int | None = None
    round: int = 0
    reason: str | None = None
    sessions: tuple[SessionRecord, ...] = ()

    def describe_bill(self) -> str:
        """Return `model: 42 min at 2 units, $5.60: scoring 38.1, … stop 0.6 min`; empty if no model was billed."""
        total_s = sum(self.billed_s.values())
        if self.cost_usd is None or not total_s:
            return ""
        units = dict.fromkeys(each.units for each in self.sessions if each.billed_s and each.units is not None)
        at = f" at {' and '.join(units)} unit{'' if [*units] == ['1'] else 's'}" if units else ""
        factor, unit = (1 / 60, "min") if total_s >= _MINUTES_FROM_S else (1.0, "s")
        longest_first = sorted(BILLED_USES, key=lambda use: -self.billed_s.get(use, 0.0))
        used = [(use, self.billed_s.get(use, 0.0) * factor) for use in longest_first]
        parts = ", ".join(f"{use} {time:,.1f}" for use, time in used if time >= _SHOWN)
        return f"model: {total_s * factor:,.0f} {unit}{at}, ${self.cost_usd:,.2f}: {parts} {unit}"

    def as_dict(self) -> dict[str, Any]:
        """All fields, for `--json`, those of the sources last."""
        values = asdict(self)
        return {name: values[name] for name in self.__annotations__} | values


def rate(images: float, seconds: float) -> float:
    """Images per second; 0 if `seconds` is 0."""
    return round(images / seconds, 3) if seconds > 0 else 0.0


def _number(progress: Mapping[str, Any], name: str) -> float:
    value = progress.get(name)
    return value if isinstance(value, int | float) else 0
