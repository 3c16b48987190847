"""The event loop's clock, for code that reads it for each image."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["loop_clock"]


def loop_clock() -> Callable[[], float]:
    """`anyio.current_time` of the loop that runs now; finding the loop again each time takes ten times as long."""
    return asyncio.get_running_loop().time
