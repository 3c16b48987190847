"""One session: one process that scores one round of a run, from the first call to the summary."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import anyio

from batchcl.aws.detect import Detector
from batchcl.aws.errors import code_of
from batchcl.errors import (
    BatchclError,
    ErrorCode,
    ExitCode,
    FatalCallError,
    OutputError,
    RefusedError,
    StoppedError,
    UsageError,
)
from batchcl.events import Notice, Observer, Progress
from batchcl.images import ImageRef, check_limits
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.meter import BilledUse
from batchcl.lifetime.state_machine import ModelState
from batchcl.loaders.base import Preparer
from batchcl.options import flag_of
from batchcl.outcomes import Counts, KnownStatus
from batchcl.quantities import pluralize
from batchcl.runs.entries import FailureGroup, count_fittable
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.ledger import SEGMENT_ENTRIES, Ledger, Targets
from batchcl.runs.markers import Totals, published, read_totals, sum_totals
from batchcl.runs.record import RunRecord, read_sessions, read_summary, total_spent, write_summary
from batchcl.runs.rounds import Round
from batchcl.runs.store import Store
from batchcl.runs.worklist import Batch, WorkList
from batchcl.scoring.auto_units import AutoUnitsChooser
from batchcl.scoring.bounds import watch_bounds
from batchcl.scoring.budget import Budget
from batchcl.scoring.engine import Engine, EngineSettings
from batchcl.scoring.pace import LearningPacer, open_pacer
from batchcl.stop_signal import CALLS, RECORDS, STORE, StopSignal
from batchcl.summary import SessionRecord, SourceCounts, Summary

__all__ = ["RunContext", "Session"]

_END_OF_PILOT: Final = "the pilot has ended; `batchcl run` scores the rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a session needs to call the model.

    Attributes:
        ends_at: the deadline on the loop's clock; infinity without one.
        preparer: changes images to fit the service's limits; None if they are sent unchanged.
        utcnow: returns the current time.
        segment_entries: number of outcomes after which a segment of the journal is written.
    """

    model_manager: ModelManager
    detector: Detector
    observer: Observer
    stop_signal: StopSignal
    ends_at: float
    preparer: Preparer | None = None
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    segment_entries: int = SEGMENT_ENTRIES


@dataclass(kw_only=True)
class Session:
    """Scores what is left of one round. Used once.

    Attributes:
        job: the job.
        store: the output root.
        record: the run.
        worklist: its work list.
        targets: the images of the round.
        published: the last round in which each shard was published, when the session began.
        context: model, detector, observer and stop signal.
        lease: the lease of the run.
        held_lease: closed when no more calls are made; it then stops the model and releases the lease.
        progress: counters.
        find_known: finds images that another run has scored since the list was made; None if that is not needed.
        write_work_list: writes the rest of the work list; None if it is complete.
        earlier: counts of the images that were published before the session; if None, `run` reads them.
    """

    job: Job
    store: Store
    record: RunRecord
    worklist: WorkList
    targets: Targets
    published: Mapping[int, int]
    context: RunContext
    lease: RunLeaseHolder
    held_lease: AsyncExitStack
    progress: Progress
    find_known: Callable[[Sequence[ImageRef]], Awaitable[list[KnownStatus | None]]] | None = None
    write_work_list: Callable[[], Awaitable[None]] | None = None
    earlier: Counts | None = None
    _budget: Budget = field(init=False)
    _engine: Engine = field(init=False)
    _ledger: Ledger = field(init=False)
    _pacer: LearningPacer = field(init=False)
    _units: AutoUnitsChooser = field(init=False)

    async def run(self) -> Summary:
        """Score what is left of the round and write the summary.

        Raises:
            BatchclError: the error that ended the session early; it has a `summary`.
        """
        async with open_pacer(
            self.store,
            self.record.model,
            units=lambda: self.context.model_manager.units,
            max_tps=self.job.max_tps,
            observer=self.context.observer,
            stop_signal=self.context.stop_signal,
            utcnow=self.context.utcnow,
            are_units_decided=self.context.model_manager.undecided is None,
        ) as self._pacer:
            return await self._run()

    async def _run(self) -> Summary:
        self._ledger = ledger = Ledger(
            self.store,
            self.record.part_spec(),
            self.worklist,
            self.targets,
            writer=self.lease.holder,
            check_owner=self.lease.check,
            fit=self.job.fit,
            known=self.find_known,
            on_resumed=self.progress.add_earlier,
            on_known=self.progress.count,
            utcnow=self.context.utcnow,
            segment_entries=self.context.segment_entries,
        )
        self._engine = Engine(
            self.context.detector,
            self._pacer,
            ledger,
            self.context.model_manager,
            progress=self.progress,
            settings=EngineSettings(max_in_flight=self.job.max_in_flight),
            observer=self.context.observer,
            preparer=self.context.preparer,
            is_beginning=self._is_beginning,
            utcnow=self.context.utcnow,
        )
        self._budget = Budget(
            self.job,
            self.store,
            self.record.run_id,
            number=lambda: self.lease.number,
            model_manager=self.context.model_manager,
            utcnow=self.context.utcnow,
        )
        self._units = AutoUnitsChooser(
            job=self.job,
            store=self.store,
            model_arn=self.record.model,
            model_manager=self.context.model_manager,
            progress=self.progress,
            images_left=self._images_left,
            ends_at=self.context.ends_at,
            observer=self.context.observer,
        )
        self.context.model_manager.remember(self._before_start)
        failure: BatchclError | None = None
        try:
            async with self.held_lease:
                failure = await self._score(ledger)
        except BatchclError as error:
            failure = error
        totals: Totals | None = None
        stop_signal = self.context.stop_signal
        with stop_signal.bounded(RECORDS), suppress(OutputError):
            await self._budget.record()
        if failure is None:
            failure = stop_signal.error  # remains if the check takes longer than the time limit of the stop signal
            with stop_signal.bounded(RECORDS):
                try:
                    totals = await self._check_complete()
                    failure = None
                except BatchclError as error:
                    failure = error
        with stop_signal.bounded(RECORDS), suppress(OutputError):
            if self.earlier is None:
                await self._count_published()
            if totals is None and not self.targets.round:
                await self._count_unopened()
        summary = self._summary(totals, failure)
        with stop_signal.bounded(RECORDS):
            try:
                summary = await self._add_other_sessions(summary)
                if not await self._is_outdated(summary):
                    # the process that has taken the run over may complete it at any time
                    is_taken_over = failure is not None and code_of(failure) == ErrorCode.RUN_TAKEN_OVER
                    await write_summary(self.store, summary, replaces=not is_taken_over)
            except OutputError as error:
                if failure is None:
                    failure = error
                    summary = replace(summary, status="stopped", reason=str(error))
        if failure is not None:
            is_stopped = self.context.model_manager.state is ModelState.STOPPED
            raise _session_error(failure, answered=self._engine.answered, is_model_stopped=is_stopped, summary=summary)
        return summary

    async def _score(self, ledger: Ledger) -> BatchclError | None:
        """Run the engine and its background tasks; return the error that ended it, or None."""
        failure: BatchclError | None = None
        async with anyio.create_task_group() as background:
            background.start_soon(self._guarded, self.lease.keep)
            background.start_soon(self.context.model_manager.keep_lease_renewed)
            if self.earlier is None:
                background.start_soon(self._guarded, self._count_published)
            if self.write_work_list is not None:
                background.start_soon(self._guarded, self.write_work_list)
            background.start_soon(self._watch_bounds)
            background.start_soon(self._attribute_billed_time)
            background.start_soon(self._budget.keep_current)
            background.start_soon(self._units.watch_deadline)
            self.progress.begin(anyio.current_time())
            self.context.observer.started(self.progress)
            stop_signal = self.context.stop_signal
            try:
                with stop_signal.bounded(STORE) as scope, stop_signal.calling(self._drain):
                    await self._engine.run(self._start_model(ledger.batches()))
                if scope.cancelled_caught:
                    failure = self._write_timeout_error(ledger)
            except BatchclError as error:
                failure = error
            self.context.model_manager.meter.enter(BilledUse.STOP)
            self.lease.settled = ledger.settled
            self.progress.end(anyio.current_time())
            background.cancel_scope.cancel()
        return failure

    async def _start_model(self, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        """Yield `batches`; before the first batch that needs a call, wait until the model is RUNNING."""
        is_running = False
        async for batch in batches:
            if not is_running and any(check_limits(image, fit=self.job.fit) is None for image in batch.images):
                with self.context.stop_signal.interruptible():
                    await self._units.choose()
                await self.context.model_manager.ensure_running()
                await self._pacer.read_learned()
                self.progress.begin(anyio.current_time())
                self.context.model_manager.meter.enter(BilledUse.SCORING)
                is_running = True
                self._warn_of_unused_budget()
            yield batch

    async def _before_start(self) -> None:
        """Check the budgets, and record that this session may start the model."""
        await self._budget.check_start()
        await self._units.choose()
        await self.lease.write_heartbeat()

    def _warn_of_unused_budget(self) -> None:
        names = ("max_cost", "monthly_budget")
        flags = " and ".join(flag_of(name) for name in names if getattr(self.job, name) is not None)
        if flags and self.context.model_manager.dollars() is None and not self.context.model_manager.is_free:
            verb = "have" if " and " in flags else "has"
            text = f"{flags} {verb} no effect: the model was already running, so its cost is not part of this run"
            self.context.observer.notice(Notice("budget-unused", text, level="warning"))

    async def _attribute_billed_time(self) -> None:
        """Attribute each second of the model to its use, by what the engine did in it."""
        progress, meter = self.progress, self.context.model_manager.meter
        calls, throttled = progress.calls, progress.throttled
        while True:
            await anyio.sleep(1.0)
            sent, refused = progress.calls - calls, progress.throttled - throttled
            calls, throttled = progress.calls, progress.throttled
            if self._engine.is_awaiting_last:
                meter.attribute({BilledUse.TAIL: 1.0})
            elif sent <= 0 and not progress.in_flight and not self._engine.is_pacing:
                meter.attribute({BilledUse.IDLE: 1.0})
            else:
                share = min(1.0, max(0.0, refused / max(1, sent)))
                meter.attribute({BilledUse.THROTTLED: share, BilledUse.SCORING: 1.0 - share})

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except BatchclError as error:
            self._engine.fail(error)

    async def _watch_bounds(self) -> None:
        await watch_bounds(
            self.job,
            self.progress,
            over_budget=self._budget.exceeded,
            ends_at=self.context.ends_at,
            stop=self._engine.fail,
            called_count=self._called_count,
        )

    def _called_count(self) -> int:
        """Return the number of scored and failed images of the whole run; in a retry, as of its start."""
        if not self.targets.round:
            return self.progress.scored + self.progress.failed
        return 0 if self.earlier is None else self.earlier.scored + self.earlier.failed

    def _write_timeout_error(self, ledger: Ledger) -> BatchclError:
        """Return the error of a session whose outcomes could not be stored before the time limit."""
        error = self.context.stop_signal.error
        assert error is not None
        lost = pluralize(ledger.unsaved().done, "outcome")
        return type(error)(
            f"{error}; writing {lost} to {self.store.root} took too long: the next session calls for these images "
            "again",
            code=error.code,
        )

    def _drain(self) -> None:
        self.context.observer.notice(
            Notice("drain", f"{self.context.stop_signal.error}: no more calls are sent; those in flight are completed")
        )
        self._engine.drain(until=self.context.stop_signal.ends_at(CALLS))

    async def _count_published(self) -> None:
        """Count what earlier sessions have published; concurrently with the calls, as a long run has many markers."""
        totals = await read_totals(self.store, self._paths, self.published.items())
        self.earlier = sum_totals(totals.values()).counts
        self.progress.add_earlier(self.earlier)

    async def _count_unopened(self) -> None:
        """Count what earlier sessions have recorded in shards that this one has neither opened nor found published."""
        from batchcl.runs.status import count_incomplete

        counted = self.published.keys() | self._ledger.opened
        for each in await count_incomplete(self.store, self._paths, counted):
            self.progress.add_earlier(each)

    def _images_left(self) -> int | None:
        """Return the number of images on the work list without an outcome; None until the published ones are known."""
        return None if self.earlier is None else max(0, self.progress.planned - self.progress.done)

    def _is_beginning(self) -> bool:
        """Whether no image of the run was scored before; False until that is known."""
        return self.earlier is not None and not self.targets.round and not self.progress.scored

    async def _check_complete(self) -> Totals | None:
        """Return the totals if every image has its row; None if only a sample was to be scored.

        Raises the error of the stop signal, or reports a bug.
        """
        totals = await self._final_totals()
        if totals is None and self.targets.is_sample and self.context.stop_signal.error is None:
            return None
        listed = self.worklist.totals
        if totals is not None and listed is not None and totals.counts.done == listed.planned:
            return totals
        if self.context.stop_signal.error is not None:
            raise self.context.stop_signal.error
        raise BatchclError(
            f"the engine ended, but {self.store.uri(self._paths.folder)} has {totals} for {listed}; a bug in batchcl"
        )

    async def _add_other_sessions(self, summary: Summary) -> Summary:
        """Return `summary` with all sessions: this one's final counters, the others from their files."""
        others = await read_sessions(self.store, self.record.run_id)
        own = {each.number: each for each in summary.sessions}
        by_number = {each.number: each for each in others} | own
        sessions = tuple(by_number[number] for number in sorted(by_number))
        return replace(summary, sessions=sessions, **total_spent(sessions))

    async def _is_outdated(self, summary: Summary) -> bool:
        """Whether another process has already completed this round or a later one; its summary must not be replaced."""
        other = await read_summary(self.store, self.record.run_id)
        if other is None or other.status != "done":
            return False
        return other.round > summary.round or (other.round == summary.round and summary.status != "done")

    async def _final_totals(self) -> Totals | None:
        """Return the totals of all shards; None while the work list or a shard is not complete."""
        if self.worklist.totals is None:
            return None
        rounds = await published(self.store, self._paths)
        async for shard in self.targets.shards():
            if rounds.get(shard, -1) < self.targets.round:
                return None
        if self.targets.is_sample and len(rounds) < self.worklist.shards:
            return None
        return sum_totals((await read_totals(self.store, self._paths, rounds.items())).values())

    def _counts_so_far(self) -> Counts:
        """Return the counts of the whole run so far, without markers that can't be read."""
        stored = self.progress.counts - self._ledger.unsaved()
        if not self.targets.round or self.earlier is None:
            return stored
        return self.earlier + stored - self._ledger.replaced()

    def _summary(self, final: Totals | None, failure: BatchclError | None) -> Summary:
        counts = self._counts_so_far() if final is None else final.counts
        failures = Counter[FailureGroup]() if final is None else final.failures
        counted_before = sum(n for group, n in failures.items() if _was_counted(group, before=self.targets.round))
        own = SessionRecord.of(self.lease.number, self.lease.counters())
        listed = self.worklist.totals or SourceCounts()
        sources = replace(
            listed,
            planned=self.worklist.images - counts.already_scored - counts.already_failed,
            already_scored=listed.already_scored + counts.already_scored,
            already_failed=listed.already_failed + counts.already_failed,
        )
        return Summary(
            run_id=self.record.run_id,
            status="stopped" if final is None else "done",
            **asdict(sources),
            scored=counts.scored,
            failed=counts.failed,
            skipped=counts.skipped,
            unlabelled=counts.unlabelled,
            **total_spent([own]),
            out=self.store.root,
            model=self.record.model,
            min_confidence=self.record.scored_as["min_confidence"],
            started_at=self.record.started_at,
            ended_at=self.context.utcnow(),
            tolerated=not self.job.tolerance.exceeded(failed=counts.failed - counted_before, scored=counts.scored),
            # any round without codes and `--fit`
            retryable=None if final is None else Round(0).selected(failures),
            fittable=None if final is None else count_fittable(failures),
            round=self.targets.round,
            reason=_END_OF_PILOT if failure is None and final is None else None if failure is None else str(failure),
            sessions=(own,),
        )

    @property
    def _paths(self) -> RunPaths:
        return RunPaths(self.record.run_id)


def _was_counted(group: FailureGroup, *, before: int) -> bool:
    """Whether a round earlier than `before` has counted these permanent failures against the tolerance."""
    return group.status == "failed" and group.permanent and group.round < before


def _session_error(failure: BatchclError, *, answered: bool, is_model_stopped: bool, summary: Summary) -> BatchclError:
    """Return `failure` as the error of a session, with `summary`.

    An error that would be a refusal becomes a `StoppedError` if the session has scored or tried an image (`answered`),
    and a `FatalCallError` becomes one of the two.
    """
    end, code = failure, code_of(failure)
    if isinstance(failure, FatalCallError):
        text = f"{failure}; the model is stopped" if is_model_stopped else str(failure)
        were_valid = getattr(failure.__cause__, "exit_code", None) is ExitCode.STOPPED  # CredentialsError.has_lasted
        end = StoppedError(text, code=code) if answered or were_valid else RefusedError(text, code=code)
    elif isinstance(failure, RefusedError | UsageError) and answered:
        end = StoppedError(str(failure), code=code)
    end.summary = summary
    if end is not failure:
        end.__cause__ = failure
    return end
