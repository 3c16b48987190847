"""Work on a shard's columns takes turns: it is short and needs no company, but many columns at once are memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from batchcl.memory import trim

__all__ = ["in_turn"]

P = ParamSpec("P")
T = TypeVar("T")

_turn: RunVar[anyio.Lock] = RunVar("batchcl.runs.turns")


async def in_turn(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, done in a thread while nothing else is that goes through here; what it freed is given back.

    Encoding a work list, a journal segment and a part takes tens to hundreds of milliseconds and up to some 30 MB each.
    One after the other they keep up with any model; beside each other their peaks add up (`benchmarks/memory.py`).
    """
    try:
        turn = _turn.get()
    except LookupError:
        turn = anyio.Lock()
        _turn.set(turn)
    async with turn:
        return await anyio.to_thread.run_sync(lambda: _trimmed(work, *args, **kwargs))


def _trimmed(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return work(*args, **kwargs)
    finally:
        trim()
