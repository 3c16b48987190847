"""The queue of images that wait for a call.

Fresh images are first in, first out; throttled images return to the front; images with a transient error return
after a delay. An image is outstanding from `take` until it is settled or requeued. The queue has ended when it is
closed, no image waits and none is outstanding.
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
    """An image between the work list and its outcome.

    Attributes:
        attempts: calls so far, without throttled ones.
        open_calls: calls in flight.
        is_hedged: a second call was sent because the first one is slow.
        is_settled: the image has its outcome.
        is_prepared: the image was checked, and changed if necessary, before its next call.
        fitted: how it was changed; None if it was not changed.
    """

    image: ImageRef
    shard: int
    position: int
    attempts: int = 0
    open_calls: int = 0
    is_hedged: bool = False
    is_settled: bool = False
    is_prepared: bool = False
    fitted: str | None = None


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Numbers of images by state."""

    waiting: int
    delayed: int
    outstanding: int


@dataclass(order=True, slots=True)
class _Delayed:
    due_at: float
    number: int
    item: WorkItem = field(compare=False)


class WorkQueue:
    """For one producer and one consumer; any task may requeue images.

    Args:
        capacity: maximum number of fresh images. At the maximum, `put` waits until half of them are taken.
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
        self._has_capacity = Notifier()  # for `put`
        self._changed = Notifier()  # for `ready`
        self._ending = Notifier()  # for `only_outstanding`

    async def put(self, item: WorkItem) -> bool:
        """Add a fresh image, waiting for capacity. Return False if the queue is stopped: the image was not added."""
        while len(self._fresh) >= self._capacity and not self._stopped:
            await self._has_capacity.wait()
        if self._stopped:
            return False
        self._fresh.append(item)
        self._changed.notify()
        return True

    def put_unbounded(self, item: WorkItem) -> None:
        """Add a fresh image regardless of the capacity, for a producer that has a limit of its own."""
        self._fresh.append(item)
        self._changed.notify()

    def close(self) -> None:
        """Declare that no more fresh images will be added."""
        self._closed = True
        self._changed.notify()
        self._ending.notify()

    def stop(self) -> None:
        """End the queue now; waiting images are not taken any more."""
        self._stopped = True
        self._has_capacity.notify()
        self._changed.notify()
        self._ending.notify()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    async def ready(self) -> bool:
        """Wait until an image can be taken; False if all images are settled or the queue is stopped."""
        while not self._stopped:
            if self._front or self._fresh:
                return True
            if self._delayed:
                left_s = self._delayed[0].due_at - anyio.current_time()
                if left_s <= 0:
                    return True
                await self._changed.wait(timeout_s=left_s)
            elif self._closed and not self._outstanding:
                return False
            else:
                await self._changed.wait()
        return False

    async def only_outstanding(self) -> bool:
        """Wait until every image without an outcome is outstanding; False if none will be, or the queue is stopped."""
        while not self._stopped:
            if self._all_taken:
                return self._outstanding > 0
            await self._ending.wait()
        return False

    @property
    def is_awaiting_last(self) -> bool:
        """Whether no image will be taken for the first time any more: only last responses and retries are awaited."""
        return self._stopped or (self._closed and not self._fresh)

    @property
    def _all_taken(self) -> bool:
        return self._closed and not self._front and not self._fresh and not self._delayed

    def take(self) -> WorkItem:
        """Return the next image; only after `ready` has returned True. Requeued images go first, then delayed ones."""
        self._outstanding += 1
        if self._front:
            item = self._front.popleft()
        elif self._delayed and self._delayed[0].due_at <= anyio.current_time():
            item = heapq.heappop(self._delayed).item
        else:
            item = self._fresh.popleft()
            if len(self._fresh) == self._capacity // 2:
                self._has_capacity.notify()
        if self._all_taken:
            self._ending.notify()
        return item

    def settle(self) -> None:
        """Count an image that was taken as done: it has its outcome."""
        self._outstanding -= 1
        if not self._outstanding:
            self._changed.notify()
            self._ending.notify()

    def requeue(self, item: WorkItem) -> None:
        """Return an image that was taken to the front."""
        self._front.append(item)
        self._outstanding -= 1
        self._changed.notify()

    def requeue_at(self, item: WorkItem, due_at: float) -> None:
        """Return an image that was taken to the queue at `due_at`, on the loop's clock."""
        heapq.heappush(self._delayed, _Delayed(due_at, next(self._numbers), item))
        self._outstanding -= 1
        self._changed.notify()

    def statistics(self) -> QueueStatistics:
        """Return the numbers of images by state."""
        return QueueStatistics(len(self._front) + len(self._fresh), len(self._delayed), self._outstanding)
