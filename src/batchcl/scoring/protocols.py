"""Protocols of the engine's collaborators: the sink of outcomes, and the recovery of a model that is not ready."""

from __future__ import annotations

from typing import Protocol

from batchcl.errors import ModelNotReadyError
from batchcl.outcomes import Outcome

__all__ = ["Recovery", "Sink"]


class Sink(Protocol):
    """Stores outcomes. Implemented by `batchcl.runs.ledger.Ledger`."""

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Accept the outcome of one image. Never waits or raises; `keep` and `close` do."""
        ...

    async def wait_for_capacity(self) -> None:
        """Wait while too many accepted outcomes are not stored yet."""
        ...

    async def keep(self) -> None:
        """Store accepted outcomes until cancelled. Raises `BatchclError` if they can't be stored."""
        ...

    async def close(self) -> None:
        """Store all accepted outcomes; no more will follow. Raises like `keep`."""
        ...

    async def save(self) -> None:
        """After `keep` has raised, instead of `close`: store as much as possible. Raises like `keep`."""
        ...


class Recovery(Protocol):
    """Handles a model that is not ready. Implemented by `batchcl.lifetime.manager.ModelManager`."""

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        """Return when calls can resume; raise if they can't. `pauses`: pauses in a row since the last scored image."""
        ...
