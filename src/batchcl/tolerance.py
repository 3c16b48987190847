"""How many failures a run may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Tolerance"]

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
