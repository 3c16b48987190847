"""How long the service takes for an image."""

from __future__ import annotations

import math
import random
from typing import Final

__all__ = ["Latency"]

_P99: Final = 2.3263478740408408
"""Where 99 % of a standard normal distribution lie below."""


class Latency:
    """Latencies of a log-normal distribution, the same for the same seed.

    Args:
        median_s: seconds; 0 for none.
        p99_s: what 99 of 100 stay under; at most the median, every latency is the median.
        seed: of the draws.
    """

    def __init__(self, *, median_s: float, p99_s: float, seed: int) -> None:
        self._median_s = median_s
        self._sigma = math.log(p99_s / median_s) / _P99 if median_s > 0 and p99_s > median_s else 0.0
        self._random = random.Random(f"latency {seed}")  # noqa: S311 - a simulation, not a secret

    def draw(self) -> float:
        """The next one, in seconds."""
        if not self._sigma:
            return self._median_s
        return self._median_s * math.exp(self._random.gauss(0.0, self._sigma))
