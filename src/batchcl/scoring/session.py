"""The part of a run that spends money: one process at work on one round, from the first call to the summary."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace

import anyio

from batchcl.aws.detect import Detector
from batchcl.errors import BatchclError, ExitCode, FatalCallError, OutputError, RefusedError, StoppedError, UsageError
from batchcl.events import Notice, Observer, Progress
from batchcl.images import ImageRef, check_limits
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.state_machine import ModelState
from batchcl.loaders.base import Preparer
from batchcl.outcomes import Counts, Known
from batchcl.pacing.pacer import Pacer
from batchcl.quantities import counted
from batchcl.runs.entries import FailureGroup, count_fittable
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.ledger import Ledger, Targets
from batchcl.runs.markers import Totals, published, read_totals, total
from batchcl.runs.record import RunRecord, read_sessions, read_summary, total_spent, write_summary
from batchcl.runs.rounds import Round
from batchcl.runs.store import Store
from batchcl.runs.worklist import Batch, WorkList
from batchcl.scoring.bounds import watch_bounds
from batchcl.scoring.engine import Engine, EngineSettings
from batchcl.scoring.pace import learning_pacer
from batchcl.stop_signal import CALLS, RECORDS, STORE, StopSignal
from batchcl.summary import SessionRecord, Summary

__all__ = ["RunContext", "Session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a session works with, whatever the round.

    Attributes:
        begun_at: on the loop's clock, from which the deadline counts.
        preparer: makes images fit the service's rules; None where they go as they are.
        utcnow: the time of day.
    """

    keeper: ModelManager
    detector: Detector
    observer: Observer
    stopper: StopSignal
    begun_at: float
    preparer: Preparer | None = None
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)


@dataclass(kw_only=True)
class Session:
    """Everything that one process needs to work on a round. Used once.

    Attributes:
        published: shard → the last round in which it was published, when the session began.
        known: for each image, what another run has made of it since the list was made; None where that needs no look.
        listing: freezes the rest of the work list; None when it is complete.
        held: the run's tenure, given up as soon as there are no more calls to make.
        earlier: what the markers came to when the session began; None where they are still to be read.
    """

    job: Job
    store: Store
    record: RunRecord
    worklist: WorkList
    targets: Targets
    published: Mapping[int, int]
    means: RunContext
    lease: RunLeaseHolder
    held: AsyncExitStack
    progress: Progress
    known: Callable[[Sequence[ImageRef]], Awaitable[list[Known | None]]] | None = None
    listing: Callable[[], Awaitable[None]] | None = None
    earlier: Counts | None = None
    _engine: Engine = field(init=False)
    _ledger: Ledger = field(init=False)

    async def run(self) -> Summary:
        """Score what is left of the round, and write the summary.

        Raises:
            BatchclError: what ended the session early, with `summary`.
        """
        async with learning_pacer(
            self.store,
            self.record.model,
            units=lambda: self.means.keeper.units,
            max_tps=self.job.max_tps,
            observer=self.means.observer,
            stopper=self.means.stopper,
            utcnow=self.means.utcnow,
        ) as pacer:
            return await self._run(pacer)

    async def _run(self, pacer: Pacer) -> Summary:
        self._ledger = ledger = Ledger(
            self.store,
            self.record.part_spec(),
            self.worklist,
            self.targets,
            writer=self.lease.holder,
            check_owner=self.lease.check,
            fit=self.job.fit,
            known=self.known,
            on_taken_up=self.progress.add_earlier,
            on_known=self.progress.count,
            utcnow=self.means.utcnow,
        )
        self._engine = Engine(
            self.means.detector,
            pacer,
            ledger,
            self.means.keeper,
            progress=self.progress,
            settings=EngineSettings(max_in_flight=self.job.max_in_flight),
            observer=self.means.observer,
            preparer=self.means.preparer,
            is_beginning=self._is_beginning,
            utcnow=self.means.utcnow,
        )
        failure: BatchclError | None = None
        try:
            async with self.held:
                failure = await self._score(ledger)
        except BatchclError as error:
            failure = error
        totals: Totals | None = None
        stopper = self.means.stopper
        if failure is None:
            failure = stopper.error
            with stopper.bounded(RECORDS):
                try:
                    totals = await self._complete()
                    failure = None
                except BatchclError as error:
                    failure = error
        with stopper.bounded(RECORDS):
            await self._count_earlier()
        summary = self._summary(totals, failure)
        with stopper.bounded(RECORDS):
            try:
                summary = await self._with_earlier_sessions(summary)
                if not await self._is_outdated(summary):
                    await write_summary(self.store, summary)
            except OutputError as error:
                if failure is None:
                    failure = error
                    summary = replace(summary, status="stopped", reason=str(error))
        if failure is not None:
            is_stopped = self.means.keeper.state is ModelState.STOPPED
            raise _as_end(failure, spent=self._engine.answered, is_model_stopped=is_stopped, summary=summary)
        return summary

    async def _score(self, ledger: Ledger) -> BatchclError | None:
        """Run the engine with everything beside it; the error that ended it, or None."""
        failure: BatchclError | None = None
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._guarded, self.lease.keep)
            beside.start_soon(self.means.keeper.keep_guarded)
            if self.earlier is None:
                beside.start_soon(self._guarded, self._count_published)
            if self.listing is not None:
                beside.start_soon(self._guarded, self.listing)
            beside.start_soon(self._watch_bounds)
            self.progress.begin(anyio.current_time())
            self.means.observer.started(self.progress)
            stopper = self.means.stopper
            try:
                with stopper.bounded(STORE) as scope, stopper.calling(self._drain):
                    await self._engine.run(self._with_model(ledger.batches()))
                if scope.cancelled_caught:
                    failure = self._given_up(ledger)
            except BatchclError as error:
                failure = error
            self.lease.settled = ledger.settled
            self.progress.end(anyio.current_time())
            beside.cancel_scope.cancel()
        return failure

    async def _with_model(self, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        """`batches`, with the model RUNNING from the first one that costs a call: none is started for nothing."""
        running = False
        async for batch in batches:
            if not running and any(check_limits(image, fit=self.job.fit) is None for image in batch.images):
                await self.means.keeper.have_running()
                self.progress.begin(anyio.current_time())
                running = True
                self._say_what_bounds_nothing()
            yield batch

    def _say_what_bounds_nothing(self) -> None:
        if self.job.max_cost is not None and self.means.keeper.dollars() is None and not self.job.emulator:
            text = "--max-cost bounds nothing: the model was running already, so its cost isn't this run's"
            self.means.observer.notice(Notice("max-cost-idle", text, level="warning"))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except BatchclError as error:
            self._engine.fail(error)

    async def _watch_bounds(self) -> None:
        await watch_bounds(
            self.job, self.progress, begun_at=self.means.begun_at, stop=self._engine.fail, called_for=self._called_for
        )

    def _called_for(self) -> int:
        """Images of the whole run that have been called for, as far as that is known."""
        if not self.targets.round:
            return self.progress.scored + self.progress.failed
        return 0 if self.earlier is None else self.earlier.scored + self.earlier.failed

    def _given_up(self, ledger: Ledger) -> BatchclError:
        """The end of a session whose outcomes the output root did not take in time."""
        error = self.means.stopper.error
        assert error is not None
        lost = counted(ledger.unkept().done, "outcome")
        return type(error)(f"{error}; {self.store.root} did not take {lost} in time: these images are called for again")

    def _drain(self) -> None:
        self.means.observer.notice(
            Notice("drain", f"{self.means.stopper.error}: no more calls; those in flight end and are kept")
        )
        self._engine.drain(until=self.means.stopper.ends_at(CALLS))

    async def _count_published(self) -> None:
        """Count what earlier sessions have published; beside the calls, as a long run has many markers."""
        totals = await read_totals(self.store, self._paths, self.published.items())
        self.earlier = total(totals.values()).counts
        self.progress.add_earlier(self.earlier)

    def _is_beginning(self) -> bool:
        """Whether nothing of the run was scored before; False until that is known."""
        return self.earlier is not None and not self.targets.round and not self.progress.scored

    async def _complete(self) -> Totals:
        """What the run comes to when every image has its row; raises the stop that was asked for, or the bug."""
        found = await self._final_totals()
        listed = self.worklist.totals
        if found is not None and listed is not None and found.counts.done == listed.images:
            return found
        if self.means.stopper.error is not None:
            raise self.means.stopper.error
        raise BatchclError(
            f"the engine ended, but {self.store.uri(self._paths.folder)} has {found} for {listed}; a bug in batchcl"
        )

    async def _with_earlier_sessions(self, summary: Summary) -> Summary:
        """`summary` over all sessions: the others by their files, this one by its final counters."""
        others = await read_sessions(self.store, self.record.run_id)
        own = {each.number: each for each in summary.sessions}
        by_number = {each.number: each for each in others} | own
        sessions = tuple(by_number[number] for number in sorted(by_number))
        return replace(summary, sessions=sessions, **total_spent(sessions))

    async def _is_outdated(self, summary: Summary) -> bool:
        """Whether a faster runner has ended this round or a later one, so that its summary is the one that counts."""
        other = await read_summary(self.store, self.record.run_id)
        if other is None or other.status != "done":
            return False
        return other.round > summary.round or (other.round == summary.round and summary.status != "done")

    async def _final_totals(self) -> Totals | None:
        """What the markers add up to; None while the list or a shard is not complete."""
        if self.worklist.totals is None:
            return None
        rounds = await published(self.store, self._paths)
        async for shard in self.targets.shards():
            if rounds.get(shard, -1) < self.targets.round:
                return None
        return total((await read_totals(self.store, self._paths, rounds.items())).values())

    async def _count_earlier(self) -> None:
        if self.earlier is None:
            with suppress(OutputError):
                await self._count_published()

    def _counts_so_far(self) -> Counts:
        """What the whole run comes to by now; markers that can't be read are left out."""
        kept = self.progress.counts - self._ledger.unkept()
        if not self.targets.round or self.earlier is None:
            return kept
        return self.earlier + kept - self._ledger.replaced()

    def _summary(self, final: Totals | None, failure: BatchclError | None) -> Summary:
        counts = self._counts_so_far() if final is None else final.counts
        failures = Counter[FailureGroup]() if final is None else final.failures
        counted_before = sum(n for group, n in failures.items() if _is_counted(group, before=self.targets.round))
        own = SessionRecord.of(self.lease.number, self.lease.counters())
        totals = self.worklist.totals
        return Summary(
            run_id=self.record.run_id,
            status="done" if failure is None else "stopped",
            planned=self.worklist.images - counts.already_scored - counts.already_failed,
            scored=counts.scored,
            failed=counts.failed,
            skipped=counts.skipped,
            **total_spent([own]),
            out=self.store.root,
            model=self.record.model,
            min_confidence=self.record.scored_as["min_confidence"],
            started_at=self.record.started_at,
            ended_at=self.means.utcnow(),
            tolerated=not self.job.tolerance.exceeded(failed=counts.failed - counted_before, scored=counts.scored),
            bad_lines=totals.bad_lines if totals else 0,
            repeated=totals.repeated if totals else 0,
            known=(totals.known if totals else 0) + counts.already_scored,
            known_failed=(totals.known_failed if totals else 0) + counts.already_failed,
            retryable=None if final is None else Round(0).selected(failures),
            fittable=None if final is None else count_fittable(failures),
            filtered=totals.filtered if totals else 0,
            filtered_by=totals.filtered_by if totals else {},
            left_out=totals.left_out if totals else {},
            lines=totals.lines if totals else None,
            round=self.targets.round,
            reason=None if failure is None else str(failure),
            sessions=(own,),
        )

    @property
    def _paths(self) -> RunPaths:
        return RunPaths(self.record.run_id)


def _is_counted(group: FailureGroup, *, before: int) -> bool:
    """Whether an earlier round than `before` has counted these failures against the tolerance, once and for all."""
    return group.status == "failed" and group.permanent and group.round < before


def _as_end(failure: BatchclError, *, spent: bool, is_model_stopped: bool, summary: Summary) -> BatchclError:
    """`failure` as the end of a session: refused when nothing was scored, stopped when something was."""
    end = failure
    if isinstance(failure, FatalCallError):
        text = f"{failure}; the model is stopped" if is_model_stopped else str(failure)
        were_valid = getattr(failure.__cause__, "exit_code", None) is ExitCode.STOPPED
        end = StoppedError(text) if spent or were_valid else RefusedError(text)
    elif isinstance(failure, RefusedError | UsageError) and spent:
        end = StoppedError(str(failure))
    end.summary = summary
    if end is not failure:
        end.__cause__ = failure
    return end
