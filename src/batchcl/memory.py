"""How a process that runs for hours takes memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["ARROW_POOL", "give_back_memory", "trim"]

ARROW_POOL: Final = ("ARROW_DEFAULT_MEMORY_POOL", "system")
"""The variable that Arrow reads when it is loaded, and its value here."""

_M_ARENA_MAX: Final = -8
"""`mallopt`'s parameter in glibc's malloc.h."""


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of this name, as on macOS, on Windows and with musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


_mallopt: Final = _of_glibc("mallopt")
_malloc_trim: Final = _of_glibc("malloc_trim")


def give_back_memory() -> None:
    """Have Arrow use the system's allocator, which gives freed memory back, and keep that one from spreading out.

    A run makes and frees a shard's columns again and again, each time in another thread. Arrow's own pool keeps what is
    freed, and glibc has an arena for each thread: with both, the peak of long runs was up to 60 MB higher
    (`benchmarks/memory.py`). For the whole process, so a program that uses batchcl decides for itself.

    To be called before pyarrow is loaded and threads begin; a pool that the user has chosen stays.
    """
    os.environ.setdefault(*ARROW_POOL)
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give the system back whatever pages of the heap are free, wherever they lie; takes about a millisecond.

    Of its own accord glibc gives back only what is free at the heap's end, so whatever small thing came to lie behind
    freed columns keeps them: over a million images that was another 10 to 15 MB (`benchmarks/memory.py`). Does nothing
    where the C library isn't glibc.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)
