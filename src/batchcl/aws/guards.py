"""What stops a model when the process that started it no longer can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio

from batchcl.errors import BatchclError

__all__ = ["Guard", "undone"]

_UNDO_S: Final = 10.0


class Guard(Protocol):
    """Armed before the model is started, disarmed once it is stopped: in between somebody else can stop it."""

    async def arm(self) -> None:
        """See to it that the model doesn't outlive this process for long; again, where it is armed already.

        Raises:
            RefusedError: that can't be seen to, so the model had better not be started.
        """
        ...

    async def share(self) -> None:
        """The model runs by somebody else's doing: let it be known that this process needs it too. Never raises."""
        ...

    async def keep(self) -> None:
        """Work beside the run, until cancelled. Never raises."""
        ...

    async def disarm(self) -> None:
        """The model is stopped, kept on purpose or somebody else's: undo what was done. Never raises."""
        ...


async def undone(undo: Callable[[], Awaitable[object]]) -> str | None:
    """Undo something within ten seconds, even when the run is being cancelled; None, or why it couldn't be undone."""
    with anyio.move_on_after(_UNDO_S, shield=True):
        try:
            await undo()
        except BatchclError as error:
            return str(error)
        return None
    return "no answer in time"
