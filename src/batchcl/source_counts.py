"""Accounts for every line of the lists: planned, or excluded and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SourceCounts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """Numbers of lines and images; `lines` is the sum of the others and `unread`.

    Attributes:
        lines: lines and rows of all lists; None if a source is not a list.
        bad: lines that don't name an image.
        left_out: lines that name something other than an image to score: kind → count.
        repeated: duplicates, not counting the first occurrence.
        filtered: images excluded by filters.
        filtered_by: images excluded by each filter.
        known: images excluded by `--incremental` because they are already scored.
        known_failed: images excluded by `--incremental` because they failed permanently.
        planned: images on the work list.
    """

    lines: int | None
    bad: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    filtered: int = 0
    filtered_by: Mapping[str, int] = field(default_factory=dict)
    known: int = 0
    known_failed: int = 0
    planned: int = 0

    @property
    def unread(self) -> int:
        """Lines that were not read because `--limit` was reached."""
        known = self.known + self.known_failed
        read = self.planned + self.filtered + self.repeated + known + self.bad + sum(self.left_out.values())
        return 0 if self.lines is None else max(self.lines - read, 0)

    @property
    def leaves_out(self) -> bool:
        """Whether anything that the sources name is not on the work list."""
        return any((self.bad, *self.left_out.values(), self.repeated, self.filtered, self.known, self.known_failed))

    def __str__(self) -> str:
        """Return `1,000 lines read = 990 planned + 10 bad`, or only the right-hand side if `lines` is None."""
        counts = {
            "planned": self.planned,
            "filtered": self.filtered,
            "duplicates": self.repeated,
            "already scored": self.known,
            "failed permanently before": self.known_failed,
            "bad": self.bad,
            **self.left_out,
            "after the limit": self.unread,
        }
        parts = " + ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "planned")
        return parts if self.lines is None else f"{self.lines:,} lines read = {parts}"
