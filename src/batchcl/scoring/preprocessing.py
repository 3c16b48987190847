"""Changes images to fit the service's limits (`--fit`), concurrently with the calls.

Images whose metadata show that they need it are prepared before their first call; others after the service has refused
them, with retries if their bytes can't be read. Preparation takes no call slots and no turns of the pacer. Memory is
bounded by the number of prepared images that wait for their call; when too many refused images wait, calls pause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup

from batchcl.concurrency import Notifier
from batchcl.cores import usable_cores
from batchcl.errors import BatchclError, CallError, FatalCallError, ImageError, RejectedError, TransientError
from batchcl.images import SkipReason
from batchcl.loaders.base import Prepared, Preparer
from batchcl.scoring.queue import WorkItem, WorkQueue

__all__ = ["Preprocessing"]

_WORKERS: Final = 8 + usable_cores()
"""Images that are read or changed at the same time: some are read, which takes a while from S3, while others are
changed on all cores."""

_MAX_AHEAD: Final = 256
"""Fresh images that wait for preparation."""

_MAX_REFUSED: Final = 32
"""Refused images that wait for preparation."""

_MAX_DELAYED: Final = 1024
"""Refused images that wait for another attempt at reading their bytes; only their names are in memory."""


class PreprocessingFailure(Protocol):
    """Receives images that can't be prepared."""

    def __call__(self, item: WorkItem, reason: SkipReason | CallError, refusal: ImageError | None) -> None:
        """Give `item` its outcome. `refusal`: the service's error if the image was called for."""
        ...


class Preprocessing:
    """Prepares the images of one engine. Used once.

    Args:
        preparer: changes images.
        queue: receives prepared images, regardless of its capacity.
        max_ready: maximum number of images that are prepared and have no outcome.
        retry_in_s: counts an attempt of an image whose bytes couldn't be read, and returns the wait before the next
            one; None if that was the last attempt.
        on_failed: receives images that can't be prepared.
        on_fatal: receives errors that concern all images.
    """

    def __init__(
        self,
        preparer: Preparer,
        queue: WorkQueue,
        *,
        max_ready: int,
        retry_in_s: Callable[[WorkItem, TransientError], float | None],
        on_failed: PreprocessingFailure,
        on_fatal: Callable[[BatchclError], None],
    ) -> None:
        self._preparer = preparer
        self._queue = queue
        self._max_ready = max_ready
        self._retry_in_s = retry_in_s
        self._on_failed = on_failed
        self._on_fatal = on_fatal
        self._ahead: deque[WorkItem] = deque()
        self._refused: deque[tuple[WorkItem, ImageError]] = deque()
        self._delayed = 0
        self._open_ahead = 0  # fresh images that were submitted and are not in the queue yet
        self._ready: set[int] = set()  # ids of the fresh images that are being prepared, or wait for their outcome
        self._submitted = Notifier()  # for `_work`: there may be an image to prepare, or memory for one
        self._progressed = Notifier()  # for the callers of `submit`, `join` and `wait_for_capacity`
        self._changed = 0
        self._tasks: TaskGroup

    @property
    def changed(self) -> int:
        """Number of images changed so far."""
        return self._changed

    async def submit(self, item: WorkItem) -> bool:
        """Accept a fresh image that has to be prepared, waiting for capacity; False if it needs no preparation."""
        if not self._preparer.needs_preparation(item.image):
            return False
        while len(self._ahead) >= _MAX_AHEAD:
            await self._progressed.wait()
        self._ahead.append(item)
        self._open_ahead += 1
        self._submitted.notify()
        return True

    async def join(self) -> None:
        """Wait until all fresh images that were submitted are in the queue or have their outcome."""
        while self._open_ahead:
            await self._progressed.wait()

    def may_fix(self, item: WorkItem, error: ImageError) -> bool:
        """Whether changing `item` may avoid `error`; False if the item was prepared before."""
        return not item.is_prepared and self._preparer.may_fix(error)

    def fix(self, item: WorkItem, error: ImageError) -> None:
        """Accept an image that the service has refused; it stays outstanding until it is requeued or fails."""
        self._refused.append((item, error))
        self._submitted.notify()

    async def wait_for_capacity(self) -> None:
        """Wait while too many refused images wait for preparation."""
        while len(self._refused) >= _MAX_REFUSED or self._delayed >= _MAX_DELAYED:
            await self._progressed.wait()

    def release(self, item: WorkItem) -> None:
        """Free the memory of an image that has its outcome."""
        if item.is_prepared:
            self._preparer.release(item.image)
        self._ready.discard(id(item))
        self._submitted.notify()

    async def run(self) -> None:
        """Prepare images until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for _ in range(_WORKERS):
                self._tasks.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            if self._refused:
                item, refusal = self._refused.popleft()
                self._progressed.notify()
                await self._fix(item, refusal)
            elif self._ahead and len(self._ready) < self._max_ready and self._preparer.has_capacity():
                item = self._ahead.popleft()
                self._ready.add(id(item))
                await self._prepare_fresh(item)
                self._open_ahead -= 1
                self._progressed.notify()
            else:
                await self._submitted.wait()

    async def _prepare_fresh(self, item: WorkItem) -> None:
        result = await self._prepare(item)
        if isinstance(result, TransientError | RejectedError):
            item.is_prepared = False  # call it unprepared; if the service refuses it, it is prepared then
        if isinstance(result, Prepared | TransientError | RejectedError):
            self._queue.put_unbounded(item)
        elif result is not None:
            self._on_failed(item, result, None)

    async def _fix(self, item: WorkItem, refusal: ImageError) -> None:
        result = await self._prepare(item)
        if isinstance(result, Prepared) and result.note is not None:
            self._queue.requeue(item)
        elif isinstance(result, Prepared):
            self._on_failed(item, refusal, refusal)  # there was nothing to change: preparation can't help
        elif isinstance(result, TransientError) and (wait_s := self._retry_in_s(item, result)) is not None:
            self._delayed += 1
            self._tasks.start_soon(self._fix_later, item, refusal, wait_s)
        elif result is not None:
            self._on_failed(item, result, refusal)

    async def _fix_later(self, item: WorkItem, refusal: ImageError, wait_s: float) -> None:
        await anyio.sleep(wait_s)
        self._delayed -= 1
        self.fix(item, refusal)

    async def _prepare(self, item: WorkItem) -> Prepared | SkipReason | CallError | None:
        """Return the result or the error; None after an error that ends the run."""
        item.is_prepared = True
        try:
            result = await self._preparer.prepare(item.image)
        except FatalCallError as error:
            self._on_fatal(error)
            return None
        except CallError as error:
            return error
        if isinstance(result, Prepared):
            item.fitted = result.note
            self._changed += result.note is not None
        return result
