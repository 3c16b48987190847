"""Images that wait for a call: fresh ones from the list, throttled ones at the front, transient ones after a delay.

A non-blocking core with a bell for each who waits, rung when what he waits for may have come. An image counts as
outstanding from `take` until `settle`, so the end is known: no list, nothing waiting, nothing outstanding.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

import anyio

from batchcl.concurrency import Notifier
from batchcl.images import ImageRef

__all__ = ["WorkItem", "WorkQueue"]


@dataclass(slots=True)
class WorkItem:
    """One image on its way.

    Attributes:
        attempts: calls that were answered or lost, but no throttled ones.
        open_calls: calls without an answer yet.
        is_doubled: a second call was sent beside one that hangs.
        is_settled: it has its outcome.
        is_prepared: it was looked at, and changed if need be, before its next call.
        fitted: what was changed; None where it goes as it is.
    """

    image: ImageRef
    shard: int
    position: int
    attempts: int = 0
    open_calls: int = 0
    is_doubled: bool = False
    is_settled: bool = False
    is_prepared: bool = False
    fitted: str | None = None


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """How many images are where."""

    waiting: int
    delayed: int
    outstanding: int


@dataclass(order=True, slots=True)
class _Delayed:
    due_at: float
    number: int
    item: WorkItem = field(compare=False)


class WorkQueue:
    """One producer puts, one consumer takes, and any task gives images back.

    Args:
        capacity: fresh images that may wait; the producer waits at more, until half of them are taken.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._front: deque[WorkItem] = deque()
        self._fresh: deque[WorkItem] = deque()
        self._delayed: list[_Delayed] = []
        self._numbers = itertools.count()
        self._outstanding = 0
        self._closed = False
        self._stopped = False
        self._room = Notifier()
        self._work = Notifier()
        self._end = Notifier()

    async def put(self, item: WorkItem) -> bool:
        """Add a fresh image, waiting for room. False once the queue is stopped: the image was not taken over."""
        while len(self._fresh) >= self._capacity and not self._stopped:
            await self._room.wait()
        if self._stopped:
            return False
        self._fresh.append(item)
        self._work.ring()
        return True

    def put_now(self, item: WorkItem) -> None:
        """Add a fresh image, room or not, for a producer who is bounded by something else."""
        self._fresh.append(item)
        self._work.ring()

    def close(self) -> None:
        """No fresh images will come."""
        self._closed = True
        self._work.ring()
        self._end.ring()

    def stop(self) -> None:
        """Hand out no more images, whether or not some wait."""
        self._stopped = True
        self._room.ring()
        self._work.ring()
        self._end.ring()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    async def ready(self) -> bool:
        """Wait until an image can be taken; False when all are settled or the queue is stopped."""
        while not self._stopped:
            if self._front or self._fresh:
                return True
            if self._delayed:
                left_s = self._delayed[0].due_at - anyio.current_time()
                if left_s <= 0:
                    return True
                await self._work.wait(at_most_s=left_s)
            elif self._closed and not self._outstanding:
                return False
            else:
                await self._work.wait()
        return False

    async def only_outstanding(self) -> bool:
        """Wait until all there is are images that were taken and have no outcome; False when there will be none."""
        while not self._stopped:
            if self._all_taken:
                return self._outstanding > 0
            await self._end.wait()
        return False

    @property
    def _all_taken(self) -> bool:
        return self._closed and not self._front and not self._fresh and not self._delayed

    def take(self) -> WorkItem:
        """The image whose turn it is, after `ready` said that there is one: one that was given back goes first."""
        self._outstanding += 1
        if self._front:
            item = self._front.popleft()
        elif self._delayed and self._delayed[0].due_at <= anyio.current_time():
            item = heapq.heappop(self._delayed).item
        else:
            item = self._fresh.popleft()
            if len(self._fresh) == self._capacity // 2:
                self._room.ring()
        if self._all_taken:
            self._end.ring()
        return item

    def settle(self) -> None:
        """An image that was taken has its outcome."""
        self._outstanding -= 1
        if not self._outstanding:
            self._work.ring()
            self._end.ring()

    def give_back(self, item: WorkItem) -> None:
        """An image that was taken goes back to the front."""
        self._front.append(item)
        self._outstanding -= 1
        self._work.ring()

    def give_back_later(self, item: WorkItem, due_at: float) -> None:
        """An image that was taken waits until `due_at`, on the loop's clock."""
        heapq.heappush(self._delayed, _Delayed(due_at, next(self._numbers), item))
        self._outstanding -= 1
        self._work.ring()

    def statistics(self) -> QueueStatistics:
        """How many images are where."""
        return QueueStatistics(len(self._front) + len(self._fresh), len(self._delayed), self._outstanding)
