"""What a model's status lets be done with it. The words are those of ProjectVersionStatus in the service model."""

from __future__ import annotations

from typing import Final

__all__ = ["IN_USE", "STARTABLE", "UP"]

STARTABLE: Final = frozenset({"TRAINING_COMPLETED", "STOPPED", "FAILED", "COPYING_COMPLETED"})
"""It was trained, and doesn't run."""

UP: Final = frozenset({"STARTING", "RUNNING"})
"""It runs, or will if nobody does anything."""

IN_USE: Final = UP | {"STOPPING"}
"""It can't be started now, nor deleted."""
