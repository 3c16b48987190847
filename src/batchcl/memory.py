"""How a process that runs for hours takes memory."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

__all__ = ["ARROW_POOL", "give_back_memory"]

ARROW_POOL: Final = ("ARROW_DEFAULT_MEMORY_POOL", "system")
"""The variable that Arrow reads when it is loaded, and its value here."""

_M_ARENA_MAX: Final = -8
"""`mallopt`'s parameter in glibc's malloc.h."""


def give_back_memory() -> None:
    """Have Arrow use the system's allocator, which gives freed memory back, and keep that one from spreading out.

    A run makes and frees a shard's columns again and again, each time in another thread. Arrow's own pool keeps what is
    freed, and glibc has an arena for each thread: with both, the peak of long runs was up to 60 MB higher
    (`benchmarks/memory.py`). For the whole process, so a program that uses batchcl decides for itself.

    To be called before pyarrow is loaded and threads begin; a pool that the user has chosen stays.
    """
    os.environ.setdefault(*ARROW_POOL)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)
