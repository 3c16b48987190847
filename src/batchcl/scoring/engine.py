"""The engine: images in, outcomes out, at the pace and within the bounds it is given.

One task lists, one feeds, a pool of callers calls; the sink keeps outcomes beside them. Between lister and feeder is a
bounded queue, and the sink says when it is behind, so memory doesn't grow with the number of images. Tasks keep their
errors to themselves: the first one drains the engine (calls in flight end, their outcomes are kept), and `run` raises
it at the end.

An image costs 16 µs of CPU here, 7 in the pacer and 70 more where it waits for its turn alone (at 500 a second), 28 for
work list, journal and tables (`benchmarks/image_cost.py`; x86-64, CPython 3.11), and 55 to 65 for the call
(`benchmarks/client_cost.py`). It has no task of its own; its outcome is an object until it is journalled as columns.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

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
from batchcl.runs.worklist import Batch
from batchcl.scoring.circuit_breaker import CircuitBreaker
from batchcl.scoring.preprocessing import Preprocessing
from batchcl.scoring.protocols import Recovery, Sink
from batchcl.scoring.queue import WorkItem, WorkQueue
from batchcl.scoring.rejections import Rejection, Rejections, report_to_pacer, was_sent
from batchcl.scoring.worker_pool import WorkerPool

__all__ = ["Engine", "EngineSettings"]

_BACKOFF_S: Final = 0.25
_BACKOFF_MAX_S: Final = 20.0
_SHORTAGE_PAUSE_S: Final = (0.5, 2.0)
"""Of an image for which this machine had no descriptor or memory; it costs no attempt."""

_DRAIN_S: Final = 20.0
"""Calls that are still open so long after a drain are given up; the next session repeats them."""

_STRAGGLES_AFTER_S: Final = 2.0
_STRAGGLES_AFTER: Final = 4.0
"""At the end of the list, a call this many times as slow as usual gets a second one beside it."""

_LOOK_FOR_STRAGGLERS_S: Final = 0.25
_LATENCY_WEIGHT: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Bounds of the engine.

    Attributes:
        max_in_flight: calls at once: a guard for memory, not a pace.
        max_attempts: calls an image may cost, throttled ones not counted.
    """

    max_in_flight: int = 256
    max_attempts: int = 8


class Engine:
    """Scores one stream of images. Used once.

    `is_beginning` tells whether nothing of the run was scored before, so that its first images speak for the rest.
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
        self._feeding = anyio.CancelScope()
        self._listing = anyio.CancelScope()
        self._calling = anyio.CancelScope()
        self._tasks: TaskGroup
        self._now: Callable[[], float] = anyio.current_time
        self._callers = WorkerPool(self._score, limit=self._settings.max_in_flight)
        self._breaker = CircuitBreaker(recovery, observer=self._observer, rng=self._rng, on_failure=self.fail)
        self._rejections = Rejections()
        self._scored_in: dict[str, ImageRef] = {}
        self._checked = anyio.Event()
        self._checked.set()
        self._answered = False
        self._outcomes = 0
        self._failure: BatchclError | None = None
        self._sink_failed = False
        self._in_flight: dict[int, tuple[WorkItem, float]] = {}
        self._usual_latency_s = 0.0
        self._preparing = None
        if preparer is not None:
            self._preparing = Preprocessing(
                preparer,
                self._queue,
                most_ready=2 * self._settings.max_in_flight,
                retry_in_s=self._retry_in_s,
                on_failed=self._unprepared,
                on_fatal=self.fail,
            )

    @property
    def answered(self) -> bool:
        """Whether the service has given a verdict on any image, so that money may have been well spent."""
        return self._answered

    def drain(self, *, until: float = math.inf) -> None:
        """Send no more calls; those in flight end within 20 s, or `until` then, and are kept. `run` then returns."""
        if not self._queue.stopped:
            self._calling.deadline = min(until, anyio.current_time() + _DRAIN_S)
        self._queue.stop()
        self._feeding.cancel()
        self._listing.cancel()
        self._breaker.stop()

    async def run(self, batches: AsyncIterator[Batch]) -> None:
        """Score until the list ends, or `drain`.

        Raises:
            BatchclError: what stopped the engine early. All outcomes up to then are kept, if the sink can.
        """
        self._now = loop_clock()
        self._progress.pace = lambda: self._pacer.statistics().rate_tps
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._keep_sink)
            if self._preparing is not None:
                beside.start_soon(self._preparing.run)
            beside.start_soon(self._watch_for_stalls)
            with self._calling:
                async with anyio.create_task_group() as self._tasks:
                    self._tasks.start_soon(self._list, batches)
                    self._tasks.start_soon(self._feed)
                    self._tasks.start_soon(self._help_stragglers)
            beside.cancel_scope.cancel()
        if self._preparing is not None and self._preparing.changed:
            text = f"{self._preparing.changed:,} images were changed to fit; the column `fitted` says how"
            self._observer.notice(Notice("fitted", text, {"images": self._preparing.changed}))
        try:
            await (self._sink.save() if self._sink_failed else self._sink.close())
        except BatchclError as error:
            self.fail(error)
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BatchclError) -> None:
        """Drain for `error`; the first one is the one that `run` raises."""
        if self._failure is None:
            self._failure = error
        self.drain()

    async def _list(self, batches: AsyncIterator[Batch]) -> None:
        """Move images from the list into the queue; the unfit ones go straight to the outcomes."""
        try:
            with self._listing:
                async for batch in batches:
                    for image, position in zip(batch.images, batch.positions, strict=True):
                        item = WorkItem(image, batch.shard, position)
                        if (reason := check_limits(image, fit=self._preparing is not None)) is not None:
                            await self._sink.room()
                            self._keep(item, skipped(item.image, reason, at=self._utcnow()))
                        elif self._preparing is not None and await self._preparing.take(item):
                            continue
                        elif not await self._queue.put(item):
                            return
                if self._preparing is not None:
                    await self._preparing.finish()
        except BatchclError as error:
            self.fail(error)
        finally:
            self._queue.close()

    async def _feed(self) -> None:
        """Hand images to callers, one at a time and each at its turn."""
        try:
            with self._feeding:
                while await self._queue.ready():
                    await self._breaker.wait_closed()
                    if not self._checked.is_set():
                        await self._checked.wait()
                    await self._sink.room()
                    if self._preparing is not None:
                        await self._preparing.room()
                    await self._callers.free()
                    await self._pacer.acquire()
                    self._callers.hand(self._queue.take(), self._tasks)
        finally:
            self._callers.close()
        if not self._queue.stopped:
            self._calling.cancel()  # all have their outcome: what is still open are the slower ones of two calls

    async def _watch_for_stalls(self) -> None:
        def is_due() -> bool:
            images = self._queue.statistics()
            return images.waiting + images.delayed + images.outstanding > len(self._rejections)

        await self._breaker.watch(
            outcomes=lambda: self._outcomes,
            is_due=is_due,
            rate_tps=lambda: self._pacer.statistics().rate_tps,
        )

    async def _help_stragglers(self) -> None:
        """At the end of the list, call again beside a call that hangs: no model should wait for one connection."""
        while await self._queue.only_outstanding():
            if len(self._rejections) == self._queue.statistics().outstanding:
                self._judge_last()
            late = max(_STRAGGLES_AFTER_S, _STRAGGLES_AFTER * self._usual_latency_s)
            sent_before = anyio.current_time() - late
            for item, sent_at in tuple(self._in_flight.values()):
                if sent_at <= sent_before and not item.is_doubled:
                    item.is_doubled = True
                    self._tasks.start_soon(self._call_beside, item)
            await anyio.sleep(_LOOK_FOR_STRAGGLERS_S)

    async def _call_beside(self, item: WorkItem) -> None:
        if item.open_calls == 1:  # or the other call has ended just now
            self._pacer.sent()
            await self._score(item)

    async def _score(self, item: WorkItem) -> None:
        """One call, and what follows from it."""
        outcome = await self._call(item)
        if outcome is not None:
            self._keep(item, outcome)
            self._queue.settle()

    def _keep(self, item: WorkItem, outcome: Outcome) -> None:
        if self._preparing is not None:
            self._preparing.settled(item)
        self._sink.record(item.shard, item.position, outcome)
        self._outcomes += outcome.attempts > 0
        self._progress.count(outcome)

    def _unprepared(self, item: WorkItem, reason: SkipReason | CallError, refusal: ImageError | None) -> None:
        """Give an image that can't be made ready its outcome; after a `refusal` it was outstanding until now."""
        if isinstance(reason, CallError):
            attempts = item.attempts + isinstance(reason, TransientError)
            self._keep(item, failed(item.image, reason, attempts=attempts, at=self._utcnow()))
        elif refusal is None:
            self._keep(item, skipped(item.image, reason, at=self._utcnow()))
        else:
            text = f"{refusal.code}: {refusal}; --fit can't help: {reason.message}"
            hopeless = ImageError(text, code=reason.code)
            self._keep(item, failed(item.image, hopeless, attempts=item.attempts, at=self._utcnow()))
        if refusal is not None:
            item.is_settled = True
            self._queue.settle()

    async def _call(self, item: WorkItem) -> Outcome | None:
        """One call; None where the image went back to the queue, or another call for it decides."""
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
            self._rejections.ended(number)
            return self._unanswered(item, error, sent_at, number)
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
            self._scored_in[item.image.bucket] = item.image
        self._breaker.answered(scored=True)
        self._callers.grow()
        latency_s = self._now() - sent_at
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

    def _unanswered(self, item: WorkItem, error: CallError, sent_at: float, number: int) -> Outcome | None:
        """What the class of `error` asks for: go back to the queue, or end as a failure."""
        self._progress.throttled += isinstance(error, ThrottledError)
        self._breaker.failed(error)
        if item.is_settled or (item.open_calls > 1 and not isinstance(error, ImageError)):
            return None  # the other call for this image decides
        match error:
            case ThrottledError():
                self._queue.give_back(item)
                return None
            case ModelNotReadyError() | CredentialsFailingError():
                self._queue.give_back(item)
                self._breaker.open(error, sent_at=sent_at, tasks=self._tasks)
                return None
            case FatalCallError():
                self._queue.give_back(item)
                self.fail(error)
                return None
            case TransientError() if not isinstance(error, HostError) and self._breaker.blames_service(item.image.uri):
                self._queue.give_back(item)
                self._breaker.open(error, sent_at=sent_at, tasks=self._tasks)
                return None
            case TransientError() if (wait_s := self._retry_in_s(item, error)) is not None:
                self._queue.give_back_later(item, anyio.current_time() + wait_s)
                return None
            case ImageError() if not self._is_final(item, error, number):
                return None
        item.attempts += 1
        item.is_settled = True
        return failed(item.image, error, attempts=item.attempts, at=self._utcnow())

    def _retry_in_s(self, item: WorkItem, error: TransientError) -> float | None:
        """Count an attempt at an image, and return the wait before the next; None where there is none."""
        if isinstance(error, ShortageError):
            self._callers.shrink()
            return self._rng.uniform(*_SHORTAGE_PAUSE_S)
        if item.attempts + 1 >= self._settings.max_attempts:
            return None
        item.attempts += 1
        return self._backoff_s(item)

    def _is_final(self, item: WorkItem, error: ImageError, number: int) -> bool:
        """Whether `error` is the image's outcome by now, rather than prepared again or held as a rejection."""
        if error.status is not None:  # otherwise the service wasn't asked
            self._breaker.answered(scored=False)
            if not isinstance(error, RejectedError):
                self._accepted(number)
        if self._preparing is not None and self._preparing.may_mend(item, error):
            if item.open_calls == 1:  # or the other call brings the refusal too
                item.attempts += 1
                self._preparing.mend(item, error)
            return False
        if not isinstance(error, RejectedError) or not self._rejections.rejected(number, Rejection(item, error)):
            return True
        item.attempts += 1
        item.is_settled = True
        self._judge_row()
        return False

    def _backoff_s(self, item: WorkItem) -> float:
        return self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**item.attempts))

    def _accepted(self, number: int) -> None:
        """The service has read an image: earlier rejections were about their own images."""
        self._answered = True
        released = self._rejections.accepted(number)
        if self._failure is None:
            self._fail_each(released)

    def _fail_each(self, rejections: Sequence[Rejection]) -> None:
        for each in rejections:
            item = each.item
            self._keep(item, failed(item.image, each.error, attempts=item.attempts, at=self._utcnow()))
            self._queue.settle()

    def _judge_row(self) -> None:
        """After 20 rejections in a row end the run, or find out whether it can go on.

        An object that is missing can't be told from one that may not be read. Many missing ones in a row are usual, so
        an image of their bucket that was scored before decides.
        """
        row = self._rejections.in_a_row()
        if not row or self._failure is not None or not self._checked.is_set():
            return
        last = row[-1]
        other = next((each.error for each in row if each.error.code != INVALID_S3_OBJECT), None)
        scored = self._scored_in.get(last.item.image.bucket)
        if other is not None:
            self._end_for(other, row)
        elif scored is not None:
            self._checked = anyio.Event()
            self._tasks.start_soon(self._check_again, scored, row)
        elif self._answered or not self._is_beginning():
            self._fail_each(self._rejections.release_all())
        else:
            self._end_for(last.error, row)

    def _judge_last(self) -> None:
        """At the end of the list nothing but rejections is left."""
        if self._failure is not None or not self._checked.is_set():
            return
        if self._rejections.in_a_row():
            self._judge_row()
            return
        general = next((each for each in self._rejections.held if each.error.is_general), None)
        if general is not None and not self._answered and self._is_beginning():
            self._end_for(general.error, [general])
        else:
            self._fail_each(self._rejections.release_all())

    def _end_for(self, error: RejectedError, row: Sequence[Rejection]) -> None:
        """End the run. Images whose rejections are held get no outcome, and are called again by the next session."""
        which = "the first" if not self._answered and self._is_beginning() else "the last"
        calls = f"{which} {len(row)} calls were" if len(row) > 1 else "no call was accepted, and the last one was"
        advice = (
            "; check that the bucket lies in the model's region, that this identity may s3:GetObject from it, and that "
            "the keys exist"
            if error.code == INVALID_S3_OBJECT
            else ""
        )
        self.fail(
            FatalCallError(
                f"{calls} rejected with {error.code} ({error}); their images are not recorded as failures{advice}",
                code=error.code,
                status=error.status,
            )
        )

    async def _check_again(self, scored: ImageRef, row: Sequence[Rejection]) -> None:
        """Call for an image that was scored before: if that is rejected too, access was lost, and the run ends."""
        try:
            for attempt in range(self._settings.max_attempts):
                number, sent_at = self._rejections.sent(), self._now()
                self._pacer.sent()
                self._progress.calls += 1
                try:
                    await self._detector.detect(scored)
                except RejectedError as error:
                    report_to_pacer(self._pacer, error, sent_at=sent_at)
                    self._end_for(error, row)
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
            self._checked.set()

    async def _keep_sink(self) -> None:
        try:
            await self._sink.keep()
        except BatchclError as error:
            self._sink_failed = True
            self.fail(error)
