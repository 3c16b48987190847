"""A bell wakes who waits for it; rings that nobody waited for are forgotten."""

from __future__ import annotations

import math

import anyio

__all__ = ["Bell"]


class Bell:
    """Tells tasks that something has changed; each looks for itself what. Costs nothing while nobody waits."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        """Wake all that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self, *, at_most_s: float = math.inf) -> None:
        """Return at the next ring, or after so long."""
        if self._event is None:
            self._event = anyio.Event()
        if at_most_s == math.inf:
            await self._event.wait()
            return
        with anyio.move_on_after(at_most_s):
            await self._event.wait()
