"""What became of every line of the lists: nothing is dropped silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SourceCounts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """How the lines that the sources were read from add up.

    Attributes:
        lines: lines and rows of all lists; None where a source is no list, so that there is nothing to add up to.
        bad: lines that name no image.
        left_out: lines that name something that is no image to score: what → how many.
        repeated: images that are named more than once, beyond the first time.
        filtered: images that the filters leave out.
        filtered_by: which filter → how many of them.
        known: images left out by `--incremental`, as they are scored already.
        known_failed: images left out by `--incremental`, as they failed permanently before.
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
        """Lines behind those that `--limit` asked for."""
        known = self.known + self.known_failed
        told = self.planned + self.filtered + self.repeated + known + self.bad + sum(self.left_out.values())
        return 0 if self.lines is None else max(self.lines - told, 0)

    @property
    def leaves_out(self) -> bool:
        """Whether anything that the sources name is not on the list."""
        return any((self.bad, *self.left_out.values(), self.repeated, self.filtered, self.known, self.known_failed))

    def __str__(self) -> str:
        """One line: `1,000 lines read = 990 planned + 10 bad`; without lines, what was left out."""
        counts = {
            "planned": self.planned,
            "filtered": self.filtered,
            "repeated": self.repeated,
            "already scored": self.known,
            "failed permanently before": self.known_failed,
            "bad": self.bad,
            **self.left_out,
            "behind the limit": self.unread,
        }
        parts = " + ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "planned")
        return parts if self.lines is None else f"{self.lines:,} lines read = {parts}"
