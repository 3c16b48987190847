"""Commands in messages, to be pasted into a shell."""

from __future__ import annotations

import shlex

__all__ = ["command"]


def command(*words: str) -> str:
    """`batchcl` with these arguments, quoted where a shell needs it, between backticks."""
    return f"`{shlex.join(('batchcl', *words))}`"
