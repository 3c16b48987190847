"""How Arrow takes memory in a process that runs for hours."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Have Arrow use the system's allocator, which gives freed memory back sooner than Arrow's own pool.

    A run makes and frees a shard's columns again and again; with the pool, which keeps them, its peak was some 60 MB
    higher (`benchmarks/memory.py`). For the whole process, so a program that uses batchcl decides for itself.
    """
    pa.set_memory_pool(pa.system_memory_pool())
