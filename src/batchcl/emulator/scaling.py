"""How many inference units a model has in service, when it may have more than its least.

AWS doesn't publish its rule. This one tracks a target, a step at a time: what was offered in a period (throttled
calls count, too) against what the units take.
"""

from __future__ import annotations

from typing import Final

__all__ = ["AutoScaler"]

_BUSY: Final = 0.9
_IDLE: Final = 0.6


class AutoScaler:
    """Moves the units between their bounds. Pure arithmetic on a given `now`, in seconds.

    Args:
        least: MinInferenceUnits, with which it begins.
        most: MaxInferenceUnits.
        tps_per_unit: calls a second of one unit.
        period_s: how long is looked at before each step.
        now: when the model began to run.
    """

    __slots__ = ("_least", "_most", "_offered", "_period_s", "_start", "_tps_per_unit", "units")

    def __init__(self, *, least: int, most: int, tps_per_unit: float, period_s: float, now: float) -> None:
        self._least, self._most = least, most
        self._tps_per_unit, self._period_s = tps_per_unit, period_s
        self._start = now
        self._offered = 0
        self.units = least

    def offer(self) -> None:
        """Count a call, let through or not, since `advance`."""
        self._offered += 1

    def advance(self, now: float) -> list[tuple[float, int]]:
        """When the units changed up to `now`, and to how many.

        One more comes where a period asked for over 90 % of them, one goes where 60 % of the others would have done.
        """
        changes: list[tuple[float, int]] = []
        while now - self._start >= self._period_s:
            self._start += self._period_s
            wanted = self._offered / self._period_s / self._tps_per_unit
            self._offered = 0
            if wanted > _BUSY * self.units and self.units < self._most:
                self.units += 1
            elif wanted < _IDLE * (self.units - 1) and self.units > self._least:
                self.units -= 1
            else:
                if wanted == 0:  # nothing was asked for since: the periods that follow change nothing either
                    self._start += (now - self._start) // self._period_s * self._period_s
                continue
            changes.append((self._start, self.units))
        return changes
