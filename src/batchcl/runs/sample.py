"""A random sample of a complete work list: what `batchcl pilot` scores before the rest of the run.

The sample is a part of the run: its outcomes are journalled and published like those of a session that ends early, and
a later session scores the rest.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Final

import anyio.to_thread
import pyarrow as pa

from batchcl.images import check_limits
from batchcl.runs.worklist import ImageRows, WorkList

__all__ = ["SampledImages", "draw_sample"]

_MOST_IMAGES: Final = 320_000
"""The sample is drawn from random shards with about this many images, which are in memory while it is scored."""

_AT_ONCE: Final = 500


class SampledImages:
    """The images of a sample. Implements `ledger.Targets`.

    Attributes:
        images: number of images in the sample; all of them need a call.
        share: share of images that need a call, among those that were drawn; 1 if none was drawn.
    """

    round = 0
    is_sample = True

    def __init__(self, positions: Mapping[int, Sequence[int]], *, drawn: int, published: Collection[int]) -> None:
        self.images = sum(map(len, positions.values()))
        self.share = self.images / drawn if drawn else 1.0
        self._positions = positions
        self._published = published

    async def shards(self) -> AsyncIterator[int]:
        """The shards with such images, without those that are published."""
        for shard in sorted(self._positions):
            if shard not in self._published:
                yield shard

    def positions(self, shard: int, images: pa.Table, earlier: pa.Table) -> Sequence[int]:
        """The positions of such images."""
        return self._positions[shard]


async def draw_sample(
    worklist: WorkList, *, images: int, seed: str, fit: bool, published: Collection[int] = ()
) -> SampledImages:
    """Draw images that need a call from a complete list; fewer than `images` if there are no more.

    The same list and seed give the same sample, and a larger sample contains the smaller ones.

    Args:
        worklist: the list.
        images: size of the sample.
        seed: of the random numbers.
        fit: the run's `--fit` setting, which decides which images need a call.
        published: shards that are published.
    """
    rng = random.Random(seed)
    shards: list[int] = []
    tables: list[pa.Table] = []
    for shard in _permutation(worklist.shards, rng):
        if sum(map(len, tables)) >= _MOST_IMAGES:
            break
        shards.append(shard)
        tables.append(await worklist.load(shard))
    positions, drawn = await anyio.to_thread.run_sync(partial(_draw, shards, tables, images=images, rng=rng, fit=fit))
    return SampledImages(positions, drawn=drawn, published=published)


def _draw(
    shards: Sequence[int], tables: Sequence[pa.Table], *, images: int, rng: random.Random, fit: bool
) -> tuple[dict[int, list[int]], int]:
    """Return positions by shard, and the number of images that were drawn for them."""
    begins = list(accumulate(map(len, tables), initial=0))
    drawn = taken = 0
    positions: dict[int, list[int]] = defaultdict(list)
    order = _permutation(begins[-1], rng)
    while taken < images and (chunk := list(islice(order, _AT_ONCE))):
        for at, image in zip(chunk, ImageRows(pa.concat_tables(tables), chunk), strict=True):
            if taken == images:
                break
            drawn += 1
            if check_limits(image, fit=fit) is None:
                which = bisect_right(begins, at) - 1
                positions[shards[which]].append(at - begins[which])
                taken += 1
    return dict(positions), drawn


def _permutation(count: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 to `count` - 1 in random order; memory depends on how many are taken, not on `count`."""
    moved: dict[int, int] = {}
    for last in reversed(range(count)):
        at = rng.randint(0, last)
        yield moved.get(at, at)
        moved[at] = moved.pop(last, last)
