"""Slices of the work list: the unit of commit, resume and distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchcl.images import ImageRef

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one shard that are to be scored, and the position of each in the shard.

    `images` can be iterated more than once; it may make them while it is.
    """

    shard: int
    images: Iterable[ImageRef]
    positions: Sequence[int]
