"""What a run, and each of its sessions, came to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["SessionRecord", "Summary", "rate"]


Status = Literal["done", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What one session of a run spent: a process, from its start to its end.

    Attributes:
        number: of the session, from 0; resumptions, retries and recoveries by other runs each have the next one.
        round: 0, or the number of the retry.
        calls: DetectCustomLabels calls, the throttled ones included.
        throttled: calls that were refused for capacity.
        images: that cost a call and have their outcome.
        seconds: from the first call to the last row; 0 without a call.
        images_per_second: `images` in `seconds`.
        cost_usd: what the model cost while this session had it running, at least; None where the session didn't start
            it.
    """

    number: int
    round: int = 0
    calls: int = 0
    throttled: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    cost_usd: float | None = None

    @classmethod
    def of(cls, number: int, progress: Mapping[str, Any]) -> SessionRecord:
        """From the counters of a heartbeat."""
        images, seconds = _number(progress, "images"), _number(progress, "seconds")
        return cls(
            number=number,
            round=int(_number(progress, "round")),
            calls=int(_number(progress, "calls")),
            throttled=int(_number(progress, "throttled")),
            images=int(images),
            seconds=seconds,
            images_per_second=rate(images, seconds),
            cost_usd=None if progress.get("cost_usd") is None else _number(progress, "cost_usd"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to.

    Attributes:
        status: `done` when every image of the list has its row, `stopped` when not.
        reason: why it stopped.
        calls: DetectCustomLabels calls of all sessions, the throttled ones included.
        throttled: of all sessions, as `seconds`, `images_per_second` and `cost_usd` are.
        seconds: each session's from its first call to its last row.
        cost_usd: what the model cost while this run had it running, at least; None where no session started it.
        sessions: what each session spent, in order. One that was killed counts up to its last heartbeat.
        min_confidence: that was asked for; None where it was left to the model.
        tolerated: whether failures stayed within `max_failures`.
        bad_lines: lines of the lists that name no image and were left out.
        repeated: images that the sources named more than once, beyond the first time.
        known: images left out by `--incremental`, as their version has a result.
        known_failed: images left out by `--incremental`, as their version has a permanent failure.
        retryable: failed images that `batchcl retry` scores again, as they may succeed; None while the run, or its
            retry, isn't done.
        fittable: failed and skipped images that may be scored with `--fit`; likewise.
        filtered: images left out by the filters.
        filtered_by: which filter → how many of them.
        left_out: lines of lists that name something that is no image to score: what → how many.
        lines: lines and rows of all lists; None where a source is no list, or the list isn't complete.
        round: 0, or the number of the retry that this is the summary of.
    """

    run_id: str
    status: Status
    planned: int
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
    tolerated: bool = True
    min_confidence: float | None = None
    cost_usd: float | None = None
    bad_lines: int = 0
    repeated: int = 0
    known: int = 0
    known_failed: int = 0
    retryable: int | None = None
    fittable: int | None = None
    filtered: int = 0
    filtered_by: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    lines: int | None = None
    round: int = 0
    reason: str | None = None
    sessions: tuple[SessionRecord, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def rate(images: float, seconds: float) -> float:
    """Images per second; 0 where no time has passed."""
    return round(images / seconds, 3) if seconds > 0 else 0.0


def _number(progress: Mapping[str, Any], name: str) -> float:
    value = progress.get(name)
    return value if isinstance(value, int | float) else 0
