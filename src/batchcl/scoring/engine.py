"""The engine: calls the model for each image of a stream, and passes the outcomes to a sink.

One task reads batches of images into a bounded queue. One task takes images from the queue, waits for the pacer and
submits them to a worker pool, which makes the calls. The sink stores outcomes concurrently, and the engine waits when
the sink is behind; so memory does not grow with the number of images. The first error in any task drains the engine
(calls in flight end, and their outcomes are stored), and `run` raises it at the end.

CPU time per image (x86-64, CPython 3.11; `benchmarks/image_cost.py`, for the call `benchmarks/client_cost.py`):

- the engine: 16 µs. There is no task per image.
- the pacer: 7 µs, and 70 µs more if the image has to wait for its turn (at 500 TPS)
- work list, journal and tables: 28 µs
- the call: 55 to 65 µs
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import TaskGroup

from batchcl.aws.detect import Detector
from batchcl.aws.errors import INVALID_S3_OBJECT
from batchcl.concurrency import loop_clock
from batchcl.errors import (
    BatchclError,
    CallError,
    CredentialsFailingError,
    FatalCallError,
    HostError,
    ImageError,
    ModelNotReadyError,
    RejectedError,
    ShortageError,
    ThrottledError,
    TransientError,
)
from batchcl.events import Notice, Observer, Progress, SilentObserver
from batchcl.images import ImageRef, SkipReason, check_limits
from batchcl.loaders.base import Preparer
from batchcl.outcomes import Detection, Outcome, Scored, failed, skipped
from batchcl.pacing.pacer import Pacer
from batchcl.quantities import pluralize
from batchcl.runs.worklist import Batch
from batchcl.scoring.circuit_breaker import CircuitBreaker
from batchcl.scoring.protocols import Recovery, Sink
from batchcl.scoring.queue import WorkItem, WorkQueue
from batchcl.scoring.rejections import Rejection, Rejections, report_to_pacer, was_sent
from batchcl.scoring.worker_pool import WorkerPool

if TYPE_CHECKING:
    from batchcl.scoring.preprocessing import Preprocessing

__all__ = ["Engine", "EngineSettings"]

_BACKOFF_S: Final = 0.25
_BACKOFF_MAX_S: Final = 20.0
_SHORTAGE_PAUSE_S: Final = (0.5, 2.0)
"""Wait before the next call of an image for which there was no file descriptor or memory. No attempt is counted."""

_DRAIN_S: Final = 20.0
"""Calls in flight are cancelled this long after a drain began; the next session repeats them."""

_HEDGE_AFTER_S: Final = 2.0
_HEDGE_AFTER_LATENCIES: Final = 4.0
"""At the end of the list, a call that takes longer than both (seconds, usual latencies) is hedged by a second one."""

_HEDGE_CHECK_S: Final = 0.25
_LATENCY_WEIGHT: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits of the engine.

    Attributes:
        max_in_flight: concurrent calls. It limits memory; the pacer limits the rate.
        max_attempts: calls per image, and failed reads of its bytes. Throttled calls and those that fail during an
            outage or for a lack of file descriptors or memory are not counted.
    """

    max_in_flight: int = 256
    max_attempts: int = 8


class Engine:
    """Scores one stream of images. Used once.

    Args:
        detector: calls the model.
        pacer: limits the call rate.
        sink: stores the outcomes.
        recovery: waits for, or restarts, a model that is not ready.
        progress: counters that the engine updates.
        settings: limits.
        observer: receives notices.
        preparer: changes images to fit the service's limits; None if they are sent unchanged.
        is_beginning: whether no image of the run has been scored. If the first calls of such a run are all rejected,
            the run is refused, because the rest would be rejected too.
        utcnow: current time.
        rng: for jitter.
    """

    def __init__(
        self,
        detector: Detector,
        pacer: Pacer,
        sink: Sink,
        recovery: Recovery,
        *,
        progress: Progress,
        settings: EngineSettings | None = None,
        observer: Observer | None = None,
        preparer: Preparer | None = None,
        is_beginning: Callable[[], bool] = lambda: True,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        rng: random.Random | None = None,
    ) -> None:
        self._detector = detector
        self._pacer = pacer
        self._sink = sink
        self._progress = progress
        self._settings = settings or EngineSettings()
        self._observer = observer or SilentObserver()
        self._is_beginning = is_beginning
        self._utcnow = utcnow
        self._rng = rng or random.Random()
        self._queue = WorkQueue(capacity=2 * self._settings.max_in_flight)
        # scopes of `_read_batches`, of `_feed`, and of all tasks that make calls
        self._reading = anyio.CancelScope()
        self._feeding = anyio.CancelScope()
        self._calling = anyio.CancelScope()
        self._tasks: TaskGroup
        self._now: Callable[[], float] = anyio.current_time
        self._workers = WorkerPool(self._score, limit=self._settings.max_in_flight)
        self._breaker = CircuitBreaker(recovery, observer=self._observer, rng=self._rng, on_failure=self.fail)
        self._rejections = Rejections()
        self._scored_in_bucket: dict[str, ImageRef] = {}
        self._access_checked = anyio.Event()
        self._access_checked.set()
        self._answered = False
        self._is_pacing = False
        self._outcomes = 0  # after at least one attempt
        self._failure: BatchclError | None = None
        self._sink_failed = False
        self._in_flight: dict[int, tuple[WorkItem, float]] = {}  # id of the item → item, when its first call began
        self._usual_latency_s = 0.0
        self._preprocessing: Preprocessing | None = None
        if preparer is not None:
            from batchcl.scoring.preprocessing import Preprocessing

            self._preprocessing = Preprocessing(
                preparer,
                self._queue,
                max_ready=2 * self._settings.max_in_flight,
                retry_in_s=self._retry_in_s,
                on_failed=self._record_unprepared,
                on_fatal=self.fail,
            )

    @property
    def answered(self) -> bool:
        """Whether the service has read any image. If not, an error that ends the session is a refusal (exit code 5)."""
        return self._answered

    @property
    def is_awaiting_last(self) -> bool:
        """Whether every image has been called for, or no more calls are sent."""
        return self._queue.is_awaiting_last

    @property
    def is_pacing(self) -> bool:
        """Whether the next image is called for as soon as the model's capacity allows it."""
        return self._is_pacing

    def drain(self, *, until: float = math.inf) -> None:
        """Send no more calls. Those in flight may take 20 s more, but not longer than `until`; then `run` returns."""
        if not self._queue.stopped:
            self._calling.deadline = min(until, anyio.current_time() + _DRAIN_S)
        self._queue.stop()
        self._feeding.cancel()
        self._reading.cancel()
        self._breaker.stop()

    async def run(self, batches: AsyncIterator[Batch]) -> None:
        """Score all images, or until `drain`.

        Raises:
            BatchclError: the error that stopped the engine. All outcomes so far are stored, if the sink can.
        """
        self._now = loop_clock()
        self._progress.pace = self._pacer.pace
        async with anyio.create_task_group() as background:
            background.start_soon(self._store_outcomes)
            if self._preprocessing is not None:
                background.start_soon(self._preprocessing.run)
            background.start_soon(self._watch_for_stalls)
            with self._calling:
                async with anyio.create_task_group() as self._tasks:
                    self._tasks.start_soon(self._read_batches, batches)
                    self._tasks.start_soon(self._feed)
                    self._tasks.start_soon(self._hedge_slow_calls)
            background.cancel_scope.cancel()
        if self._preprocessing is not None and self._preprocessing.changed:
            text = (
                f"{pluralize(self._preprocessing.changed, 'image')} changed to fit; the column `fitted` describes how"
            )
            self._observer.notice(Notice("fitted", text, {"images": self._preprocessing.changed}))
        try:
            await (self._sink.save() if self._sink_failed else self._sink.close())
        except BatchclError as error:
            self.fail(error)
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BatchclError) -> None:
        """Drain because of `error`. `run` raises the first error."""
        if self._failure is None:
            self._failure = error
        self.drain()

    async def _read_batches(self, batches: AsyncIterator[Batch]) -> None:
        """Move images from the work list into the queue; record those that violate a limit as skipped."""
        try:
            with self._reading:
                async for batch in batches:
                    for image, position in zip(batch.images, batch.positions, strict=True):
                        item = WorkItem(image, batch.shard, position)
                        if (reason := check_limits(image, fit=self._preprocessing is not None)) is not None:
                            await self._sink.wait_for_capacity()
                            self._record(item, skipped(item.image, reason, at=self._utcnow()))
                        elif self._preprocessing is not None and await self._preprocessing.submit(item):
                            continue
                        elif not await self._queue.put(item):
                            return
                if self._preprocessing is not None:
                    await self._preprocessing.join()
        except BatchclError as error:
            self.fail(error)
        finally:
            self._queue.close()

    async def _feed(self) -> None:
        """Submit images to the workers at the rate of the pacer."""
        try:
            with self._feeding:
                while await self._queue.ready():
                    await self._breaker.wait_closed()
                    if not self._access_checked.is_set():
                        await self._access_checked.wait()
                    await self._sink.wait_for_capacity()
                    if self._preprocessing is not None:
                        await self._preprocessing.wait_for_capacity()
                    await self._workers.wait_for_free_slot()
                    self._is_pacing = True
                    await self._pacer.acquire()
                    self._is_pacing = False
                    self._workers.submit(self._queue.take(), self._tasks)
        finally:
            self._workers.close()
        if not self._queue.stopped:
            # all images have their outcome: the open calls are those that a second call for the image has overtaken
            self._calling.cancel()

    async def _watch_for_stalls(self) -> None:
        def is_due() -> bool:
            counts = self._queue.statistics()
            return counts.waiting + counts.delayed + counts.outstanding > len(self._rejections)

        await self._breaker.watch(
            outcomes=lambda: self._outcomes,
            is_due=is_due,
            rate_tps=lambda: self._pacer.pace().rate_tps,
        )

    async def _hedge_slow_calls(self) -> None:
        """At the end of the list, send a second call beside a slow one: the model is billed while the run waits."""
        while await self._queue.only_outstanding():
            if len(self._rejections) == self._queue.statistics().outstanding:
                self._check_held_rejections()
            slow_s = max(_HEDGE_AFTER_S, _HEDGE_AFTER_LATENCIES * self._usual_latency_s)
            sent_before = anyio.current_time() - slow_s
            for item, sent_at in tuple(self._in_flight.values()):
                if sent_at <= sent_before and not item.is_hedged:
                    item.is_hedged = True
                    self._tasks.start_soon(self._hedge, item)
            await anyio.sleep(_HEDGE_CHECK_S)

    async def _hedge(self, item: WorkItem) -> None:
        if item.open_calls == 1:  # otherwise the first call has just ended
            self._pacer.sent()
            await self._score(item)

    async def _score(self, item: WorkItem) -> None:
        """Make one call and process its result."""
        outcome = await self._call(item)
        if outcome is not None:
            self._record(item, outcome)
            self._queue.settle()

    def _record(self, item: WorkItem, outcome: Outcome) -> None:
        if self._preprocessing is not None:
            self._preprocessing.release(item)
        self._sink.record(item.shard, item.position, outcome)
        self._outcomes += outcome.attempts > 0
        self._progress.count(outcome)

    def _record_unprepared(self, item: WorkItem, reason: SkipReason | CallError, refusal: ImageError | None) -> None:
        """Record the outcome of an image that can't be prepared.

        `refusal` is the service's error if the image was called for; the queue then counts it as outstanding.
        """
        if isinstance(reason, CallError):
            attempts = item.attempts + isinstance(reason, TransientError)
            self._record(item, failed(item.image, reason, attempts=attempts, at=self._utcnow()))
        elif refusal is None:
            self._record(item, skipped(item.image, reason, at=self._utcnow()))
        else:
            text = f"{refusal.code}: {refusal}; --fit can't help: {reason.message}"
            error = ImageError(text, code=reason.code)
            self._record(item, failed(item.image, error, attempts=item.attempts, at=self._utcnow()))
        if refusal is not None:
            item.is_settled = True
            self._queue.settle()

    async def _call(self, item: WorkItem) -> Outcome | None:
        """Make one call; return None if the image was requeued, or another call for it decides."""
        sent_at = self._now()
        self._progress.calls += 1
        self._progress.in_flight += 1
        item.open_calls += 1
        self._in_flight.setdefault(id(item), (item, sent_at))
        number = self._rejections.sent()
        try:
            detection = await self._detector.detect(item.image)
        except CallError as error:
            report_to_pacer(self._pacer, error, sent_at=sent_at)
            self._progress.calls -= not was_sent(error)
            self._rejections.ended(number)  # before the error is processed, which counts rejected calls in a row
            return self._process_error(item, error, sent_at, number)
        finally:
            self._rejections.ended(number)
            self._progress.in_flight -= 1
            item.open_calls -= 1
            if not item.open_calls:
                del self._in_flight[id(item)]
        self._accepted(number)
        if item.is_settled:
            return None
        item.is_settled = True
        return self._scored(item, detection, sent_at)

    def _scored(self, item: WorkItem, detection: Detection, begun_at: float) -> Scored:
        sent_at = begun_at + detection.read_s
        self._pacer.succeeded(sent_at=sent_at)
        if item.image.bucket:
            self._scored_in_bucket[item.image.bucket] = item.image
        self._breaker.answered(scored=True)
        self._workers.grow()
        latency_s = self._now() - sent_at
        self._progress.latencies.add(latency_s)
        usual_s = self._usual_latency_s or latency_s
        self._usual_latency_s = usual_s + _LATENCY_WEIGHT * (latency_s - usual_s)
        return Scored(
            image=item.image,
            labels=detection.labels,
            attempts=item.attempts + 1,
            latency_ms=latency_s * 1000,
            request_id=detection.request_id,
            scored_at=self._utcnow(),
            fitted=item.fitted,
        )

    def _process_error(self, item: WorkItem, error: CallError, sent_at: float, number: int) -> Outcome | None:
        """Requeue the image (None) or return its failure, depending on the class of `error`.

        The guards of the cases have side effects: they count attempts and images without a response.
        """
        self._progress.throttled += isinstance(error, ThrottledError)
        self._breaker.failed(error)
        if item.is_settled or (item.open_calls > 1 and not isinstance(error, ImageError)):
            return None  # the other call for this image decides
        match error:
            case ThrottledError():
                self._queue.requeue(item)
                return None
            case ModelNotReadyError() | CredentialsFailingError():
                self._queue.requeue(item)
                self._breaker.open(error, sent_at=sent_at, tasks=self._tasks)
                return None
            case FatalCallError():
                self._queue.requeue(item)
                self.fail(error)
                return None
            case TransientError() if not isinstance(error, HostError) and self._breaker.is_outage(item.image.uri):
                self._queue.requeue(item)
                self._breaker.open(error, sent_at=sent_at, tasks=self._tasks)
                return None
            case TransientError() if (wait_s := self._retry_in_s(item, error)) is not None:
                self._queue.requeue_at(item, anyio.current_time() + wait_s)
                return None
            case ImageError() if not self._image_fails(item, error, number):
                return None
        item.attempts += 1
        item.is_settled = True
        return failed(item.image, error, attempts=item.attempts, at=self._utcnow())

    def _retry_in_s(self, item: WorkItem, error: TransientError) -> float | None:
        """Count an attempt (none for a shortage) and return the wait before the next one; None if none is left."""
        if isinstance(error, ShortageError):
            self._workers.shrink()
            return self._rng.uniform(*_SHORTAGE_PAUSE_S)
        if item.attempts + 1 >= self._settings.max_attempts:
            return None
        item.attempts += 1
        return self._backoff_s(item)

    def _image_fails(self, item: WorkItem, error: ImageError, number: int) -> bool:
        """Process an error of the image in call `number`; whether the image fails with it now.

        False if the image is prepared for another call, or if its rejection is held until a later call is accepted.
        """
        if error.status is not None:  # otherwise no call was sent
            self._breaker.answered(scored=False)
            if not isinstance(error, RejectedError):
                self._accepted(number)
        if self._preprocessing is not None and self._preprocessing.may_fix(item, error):
            if item.open_calls == 1:  # otherwise the hedging call will be refused too
                item.attempts += 1
                self._preprocessing.fix(item, error)
            return False
        if not isinstance(error, RejectedError) or not self._rejections.rejected(number, Rejection(item, error)):
            return True
        item.attempts += 1
        item.is_settled = True
        self._check_consecutive_rejections()
        return False

    def _backoff_s(self, item: WorkItem) -> float:
        return self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**item.attempts))

    def _accepted(self, number: int) -> None:
        """Record that the service has read the image of call `number`.

        So the calls that were sent before it and rejected were rejected for their images only: they get this outcome.
        """
        self._answered = True
        released = self._rejections.accepted(number)
        if self._failure is None:
            self._record_rejected(released)

    def _record_rejected(self, rejections: Sequence[Rejection]) -> None:
        for each in rejections:
            item = each.item
            self._record(item, failed(item.image, each.error, attempts=item.attempts, at=self._utcnow()))
            self._queue.settle()

    def _check_consecutive_rejections(self) -> None:
        """After 20 rejected calls in a row, end the run or check whether it can continue.

        For InvalidS3Object, a missing object can't be distinguished from one that may not be read. Many missing objects
        in a row are common, so another call for an image of the same bucket that was scored before decides.
        """
        row = self._rejections.in_a_row()
        if not row or self._failure is not None or not self._access_checked.is_set():
            return
        last = row[-1]
        other = next((each.error for each in row if each.error.code != INVALID_S3_OBJECT), None)
        scored = self._scored_in_bucket.get(last.item.image.bucket)
        if other is not None:
            self._fail_for_rejections(other, row)
        elif scored is not None:
            self._access_checked = anyio.Event()
            self._tasks.start_soon(self._check_access, scored, row)
        elif self._answered or not self._is_beginning():
            self._record_rejected(self._rejections.release_all())
        else:
            self._fail_for_rejections(last.error, row)

    def _check_held_rejections(self) -> None:
        """At the end of the list, when only images with held rejections have no outcome: end the run or record them."""
        if self._failure is not None or not self._access_checked.is_set():
            return
        if self._rejections.in_a_row():
            self._check_consecutive_rejections()
            return
        general = next((each for each in self._rejections.held if each.error.is_general), None)
        if general is not None and not self._answered and self._is_beginning():
            self._fail_for_rejections(general.error, [general])
        else:
            self._record_rejected(self._rejections.release_all())

    def _fail_for_rejections(self, error: RejectedError, row: Sequence[Rejection]) -> None:
        """End the run. Images with held rejections get no outcome; the next session calls for them again."""
        which = "the first" if not self._answered and self._is_beginning() else "the last"
        calls = f"{which} {len(row)} calls were" if len(row) > 1 else "no call was accepted; the last one was"
        advice = (
            "; check that the bucket is in the model's region, that these credentials allow s3:GetObject, and that the "
            "keys exist"
            if error.code == INVALID_S3_OBJECT
            else ""
        )
        self.fail(
            FatalCallError(
                f"{calls} rejected with {error.code} ({error}); the images are not recorded as failures{advice}",
                code=error.code,
                status=error.status,
            )
        )

    async def _check_access(self, scored: ImageRef, row: Sequence[Rejection]) -> None:
        """Call for an image that was scored before: if this call is rejected too, access was lost and the run ends."""
        try:
            for attempt in range(self._settings.max_attempts):
                number, sent_at = self._rejections.sent(), self._now()
                self._pacer.sent()
                self._progress.calls += 1
                try:
                    await self._detector.detect(scored)
                except RejectedError as error:
                    report_to_pacer(self._pacer, error, sent_at=sent_at)
                    self._fail_for_rejections(error, row)
                    return
                except (ThrottledError, TransientError) as error:
                    report_to_pacer(self._pacer, error, sent_at=sent_at)
                    await anyio.sleep(self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**attempt)))
                except CallError as error:
                    report_to_pacer(self._pacer, error, sent_at=sent_at)
                    return
                else:
                    self._pacer.succeeded(sent_at=sent_at)
                    self._accepted(number)
                    return
                finally:
                    self._rejections.ended(number)
        finally:
            self._access_checked.set()

    async def _store_outcomes(self) -> None:
        try:
            await self._sink.keep()
        except BatchclError as error:
            self._sink_failed = True
            self.fail(error)
