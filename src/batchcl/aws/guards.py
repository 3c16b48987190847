"""What stops a model when the process that started it no longer can."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Guard"]


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
