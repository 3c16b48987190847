"""Slices of the work list: the unit of commit, resume and distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchcl.images import ImageRef

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one shard that are to be scored, and the position of each in the shard."""

    shard: int
    images: Sequence[ImageRef]
    positions: Sequence[int]
