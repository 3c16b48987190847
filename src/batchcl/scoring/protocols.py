"""What the engine needs from others: where outcomes go, and what to do when the model isn't ready."""

from __future__ import annotations

from typing import Protocol

from batchcl.errors import ModelNotReadyError
from batchcl.outcomes import Outcome

__all__ = ["Recovery", "Sink"]


class Sink(Protocol):
    """Where outcomes go."""

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Take over the outcome of one image. Never waits and never fails: `keep` and `close` do."""
        ...

    async def room(self) -> None:
        """Wait while more is taken over than kept."""
        ...

    async def keep(self) -> None:
        """Run beside the calls until cancelled: keep what was recorded. Raises `BatchclError` where that can't be."""
        ...

    async def close(self) -> None:
        """Keep all that was recorded; nothing follows. Raises as `keep` does."""
        ...

    async def save(self) -> None:
        """Instead of `close` after `keep` has raised: keep what still can be. Raises as `keep` does."""
        ...


class Recovery(Protocol):
    """What to do when the service says that the model isn't ready."""

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        """Return when calls may go on, raise when they can't; `pauses` in a row since the last good answer."""
        ...
