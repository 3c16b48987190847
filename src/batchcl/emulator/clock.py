"""The emulator's one source of time."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ForwardClock", "SystemClock"]


class Clock(Protocol):
    """Wall time for what is stored and signed, monotonic time for what is measured."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed moment; never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine's start."""
        return time.monotonic()


class ForwardClock:
    """A clock that can be put forward, for what takes hours in the service: `/_emulator/clock` does it.

    Measured time goes on as it does, so capacity and faults know nothing of it; neither do signatures, as the clients'
    clocks stay where they are.
    """

    def __init__(self, base: Clock) -> None:
        self._base = base
        self.ahead_s = 0.0

    def time(self) -> float:
        """Seconds since the epoch, and those that it was put forward."""
        return self._base.time() + self.ahead_s

    def signed_time(self) -> float:
        """Seconds since the epoch as clients that sign have them."""
        return self._base.time()

    def monotonic(self) -> float:
        """Seconds since the machine's start."""
        return self._base.monotonic()
