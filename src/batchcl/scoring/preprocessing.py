"""Images that have to be changed before the service takes them are made ready beside the calls, ahead of their turn.

What the listing shows is prepared before its first call; what only the service's refusal shows, after it, and again
after a wait where its bytes can't be had. Either way the pace and the slots for calls belong to images that are ready:
preparing takes none of them. Memory is bounded: only
so many images are ready ahead of their call, and when too many refused ones wait no further call goes out.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup

from batchcl.concurrency import Notifier
from batchcl.errors import BatchclError, CallError, FatalCallError, ImageError, RejectedError, TransientError
from batchcl.images import SkipReason
from batchcl.loaders.base import Prepared, Preparer
from batchcl.scoring.queue import WorkItem, WorkQueue

__all__ = ["Preprocessing"]

_WORKERS: Final = min(16, 1 + (os.cpu_count() or 1))
"""Images in the making: while one is read, others are changed."""

_AHEAD: Final = 256
_REFUSED: Final = 32
_PUT_OFF: Final = 1024
"""Refused images whose bytes couldn't be had, and that wait to be read again: each holds no more than its name."""


class PreprocessingFailure(Protocol):
    """Is told of images that can't be made ready; `refusal` is the service's, where it was called."""

    def __call__(self, item: WorkItem, reason: SkipReason | CallError, refusal: ImageError | None) -> None:
        """Give `item` its outcome."""
        ...


class Preprocessing:
    """The images of one engine that are on their way through the preparer. Used once.

    Args:
        preparer: does the work.
        queue: takes what is ready.
        most_ready: images that may be ready and without their outcome; they stand in the queue, whatever its room.
        retry_in_s: counts an attempt of an image whose bytes couldn't be had, and says after how long the next one may
            be made; None where that was the last.
        on_failed: gives images that can't be made ready their outcome.
        on_fatal: is told of what concerns all images.
    """

    def __init__(
        self,
        preparer: Preparer,
        queue: WorkQueue,
        *,
        most_ready: int,
        retry_in_s: Callable[[WorkItem, TransientError], float | None],
        on_failed: PreprocessingFailure,
        on_fatal: Callable[[BatchclError], None],
    ) -> None:
        self._preparer = preparer
        self._queue = queue
        self._most_ready = most_ready
        self._retry_in_s = retry_in_s
        self._on_failed = on_failed
        self._on_fatal = on_fatal
        self._ahead: deque[WorkItem] = deque()
        self._refused: deque[tuple[WorkItem, ImageError]] = deque()
        self._put_off = 0
        self._open_ahead = 0
        self._ready: set[int] = set()
        self._work = Notifier()
        self._moved = Notifier()
        self._changed = 0
        self._tasks: TaskGroup

    @property
    def changed(self) -> int:
        """Images that were changed so far."""
        return self._changed

    async def take(self, item: WorkItem) -> bool:
        """Take over a fresh image that has to be prepared, waiting for room; False where it hasn't."""
        if not self._preparer.wants(item.image):
            return False
        while len(self._ahead) >= _AHEAD:
            await self._moved.wait()
        self._ahead.append(item)
        self._open_ahead += 1
        self._work.ring()
        return True

    async def finish(self) -> None:
        """Wait until all images that were taken over fresh are in the queue or have their outcome."""
        while self._open_ahead:
            await self._moved.wait()

    def may_mend(self, item: WorkItem, error: ImageError) -> bool:
        """Whether what the service has refused `item` for may be mended, and wasn't tried before."""
        return not item.is_prepared and self._preparer.may_mend(error)

    def mend(self, item: WorkItem, error: ImageError) -> None:
        """Take over an image that the service has refused, and that stays outstanding meanwhile."""
        self._refused.append((item, error))
        self._work.ring()

    async def room(self) -> None:
        """Wait while so many refused images wait that further calls would only bring more of them."""
        while len(self._refused) >= _REFUSED or self._put_off >= _PUT_OFF:
            await self._moved.wait()

    def settled(self, item: WorkItem) -> None:
        """The image has its outcome: what was held for it can go."""
        if item.is_prepared:
            self._preparer.release(item.image)
        self._ready.discard(id(item))
        self._work.ring()

    async def run(self) -> None:
        """Prepare images until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for _ in range(_WORKERS):
                self._tasks.start_soon(self._go_on)

    async def _go_on(self) -> None:
        while True:
            if self._refused:
                item, refusal = self._refused.popleft()
                self._moved.ring()
                await self._make_good(item, refusal)
            elif self._ahead and len(self._ready) < self._most_ready and self._preparer.has_room():
                item = self._ahead.popleft()
                self._ready.add(id(item))
                await self._make_ready(item)
                self._open_ahead -= 1
                self._moved.ring()
            else:
                await self._work.wait()

    async def _make_ready(self, item: WorkItem) -> None:
        found = await self._prepared(item)
        if isinstance(found, TransientError | RejectedError):
            item.is_prepared = False  # its call will tell, and a refusal brings it back here
        if isinstance(found, Prepared | TransientError | RejectedError):
            self._queue.put_now(item)
        elif found is not None:
            self._on_failed(item, found, None)

    async def _make_good(self, item: WorkItem, refusal: ImageError) -> None:
        found = await self._prepared(item)
        if isinstance(found, Prepared) and found.note is not None:
            self._queue.give_back(item)
        elif isinstance(found, Prepared):
            self._on_failed(item, refusal, refusal)  # it is as it should be: the refusal was about something else
        elif isinstance(found, TransientError) and (wait_s := self._retry_in_s(item, found)) is not None:
            self._put_off += 1
            self._tasks.start_soon(self._mend_later, item, refusal, wait_s)
        elif found is not None:
            self._on_failed(item, found, refusal)

    async def _mend_later(self, item: WorkItem, refusal: ImageError, wait_s: float) -> None:
        await anyio.sleep(wait_s)
        self._put_off -= 1
        self.mend(item, refusal)

    async def _prepared(self, item: WorkItem) -> Prepared | SkipReason | CallError | None:
        """What came of it; None where the run is over."""
        item.is_prepared = True
        try:
            found = await self._preparer.prepare(item.image)
        except FatalCallError as error:
            self._on_fatal(error)
            return None
        except CallError as error:
            return error
        if isinstance(found, Prepared):
            item.fitted = found.note
            self._changed += found.note is not None
        return found
