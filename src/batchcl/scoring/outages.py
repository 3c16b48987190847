"""Telling an outage of the service from images that fail: when no image gets an answer, none of them is at fault."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Outages"]

DISTINCT_IMAGES: Final = 10
"""So many images in a row without an answer: it isn't them."""

PATIENCE_S: Final = 15 * 60.0
PATIENCE_AT_START_S: Final = 60.0
"""A service that never answered this run is more likely misnamed than out of order."""


class Outages:
    """Counts transient errors since the last answer. Pure: the time is given."""

    def __init__(self) -> None:
        self._images: set[str] = set()
        self._since = math.inf
        self._ever_answered = False

    def answered(self) -> None:
        """The service has given a verdict on some image."""
        self._ever_answered = True
        if self._images:
            self._images.clear()
            self._since = math.inf

    def unanswered(self, uri: str, now: float) -> bool:
        """The call for an image ended in a transient error; whether the service is out of order, rather than that."""
        self._since = min(self._since, now)
        if len(self._images) < DISTINCT_IMAGES:
            self._images.add(uri)
        return len(self._images) >= DISTINCT_IMAGES

    def lasted_s(self, now: float) -> float:
        """Seconds since the first error of the row."""
        return max(0.0, now - self._since)

    def is_hopeless(self, now: float) -> bool:
        """Whether waiting on costs more than it promises."""
        return self.lasted_s(now) > (PATIENCE_S if self._ever_answered else PATIENCE_AT_START_S)
