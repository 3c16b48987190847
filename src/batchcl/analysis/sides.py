"""Chooses the two sides of a comparison among the runs of output roots."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from batchcl.analysis.part_filter import PartFilter, day_of
from batchcl.analysis.results import Results
from batchcl.errors import ErrorCode, UsageError, command
from batchcl.quantities import parse_duration, pluralize
from batchcl.runs.status import RunState

__all__ = ["Side", "choose_sides"]

_KINDS: Final = ("run", "date", "model")
_MAX_RUNS_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: such as `run 2026-11-21`.
        root: its output root.
        results: its rows, in as many parts as it has several runs chosen one by one; of several rows of an image, the
            newest counts.
        runs: the records of its runs, the oldest first; empty for an exported root.
    """

    name: str
    root: str
    results: Sequence[Results]
    runs: Sequence[RunState]

    @property
    def min_confidences(self) -> frozenset[float | None]:
        """What its images were scored with; None for the model's own thresholds."""
        return frozenset[float | None]().union(*(each.min_confidences for each in self.results))

    def above(self, threshold: float) -> Side:
        """Without labels below the threshold."""
        return replace(self, results=[each.filtered(thresholds=threshold) for each in self.results])


class _Root:
    """An output root and its runs."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.runs = [RunState(**row) for row in results.runs().collect(engine="in-memory").iter_rows(named=True)]

    def of_runs(self, runs: Sequence[RunState], name: str) -> Side:
        return Side(name, self.results.root, [self.results.filtered(run_id=run.run_id) for run in runs], runs)

    def named(self, word: str) -> Side:
        """The side that `word` names: a run, a date or a model; `run:…`, `date:…` and `model:…` are explicit."""
        kind, _, name = word.partition(":")
        if kind not in _KINDS or not name:
            kind, name = self._kind(word), word
        run_id, date, model = (name if kind == each else None for each in _KINDS)
        try:
            results = self.results.filtered(model=model, run_id=run_id, date=date)
        except UsageError as error:
            if name == word and kind == "model":
                raise UsageError(f"{word!r} is not a run or a date, and {error}") from error
            raise
        chosen = PartFilter().combined(model, run_id, date)
        runs = [run for run in self.runs if chosen.matches_run(run)]
        return Side(f"{kind} {name}", self.results.root, [results], runs)

    def _kind(self, word: str) -> str:
        if any(run.run_id == word for run in self.runs):
            return "run"
        with suppress(UsageError):
            day_of(word)
            return "date"
        return "model"

    def newest(self) -> Side:
        started = _started(self.runs)
        if not started:
            raise UsageError(
                f"{self.results.root} has no record of a run, so it has no newest one; name two dates or models",
                code=ErrorCode.NOTHING_TO_COMPARE,
            )
        return self.of_runs(started[-1:], f"run {started[-1].run_id}")

    def before(self, side: Side, *, baseline: str | None) -> Side:
        """The last run before those of `side`, or all of the duration `baseline` before it, of the same project."""
        own = {run.run_id for run in side.runs}
        starts = [run.started_at for run in side.runs if run.started_at is not None]
        if not starts:
            raise UsageError(
                f"the {side.name} has no record of a run, so nothing is before it; name both sides",
                code=ErrorCode.NOTHING_TO_COMPARE,
            )
        projects = {_project(run) for run in side.runs}
        earlier = [
            run
            for run in _started(self.runs)
            if run.run_id not in own and run.started_at < min(starts) and _project(run) in projects  # type: ignore[operator]
        ]
        if baseline is None:
            if not earlier:
                raise UsageError(self._nothing_before(side, projects), code=ErrorCode.NOTHING_TO_COMPARE)
            return self.of_runs(earlier[-1:], f"run {earlier[-1].run_id}")
        since = min(starts) - dt.timedelta(seconds=parse_duration(baseline))
        recent = [run for run in earlier if run.started_at >= since]  # type: ignore[operator]
        if not recent:
            raise UsageError(self._nothing_before(side, projects, baseline), code=ErrorCode.NOTHING_TO_COMPARE)
        return self.of_runs(recent, f"{pluralize(len(recent), 'run')} of the {baseline} before the {side.name}")

    def _nothing_before(self, side: Side, projects: Iterable[str], baseline: str | None = None) -> str:
        shown = [f"{run.run_id} ({run.model})" for run in self.runs[: -_MAX_RUNS_SHOWN - 1 : -1]]
        more = len(self.runs) - len(shown)
        has = ", ".join(shown) + (f" and {more:,} more" if more else "")
        return (
            f"{self.results.root} has no run of {' or '.join(sorted(projects))} "
            f"{'' if baseline is None else f'in the {baseline} '}before the {side.name}: its runs are {has}; "
            f"name both sides, or see {command('runs', self.results.root)}"
        )


def choose_sides(
    results: Results, a: str | None, b: str | None, *, baseline: str | None = None, other: Results | None = None
) -> tuple[Side, Side]:
    """The sides A and B.

    Args:
        results: of the root of A, and of B without `other`.
        a: a run, date or model. If only one of `a` and `b` is given, it is B.
        b: likewise; by default the newest run.
        baseline: duration; A is all runs of the same project in this time before the first run of B.
        other: of the root of B.

    Raises:
        UsageError: there is no such side, or both sides are the same.
    """
    if a is not None and b is None and other is None:
        a, b = None, a
    if a is not None and baseline is not None:
        raise UsageError(
            f"--baseline {baseline} takes the place of A; name only B, or leave --baseline out",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    root_a = _Root(results)
    root_b = root_a if other is None else _Root(other)
    side_b = root_b.newest() if b is None else root_b.named(b)
    if a is not None:
        side_a = root_a.named(a)
    elif other is not None and baseline is None:
        side_a = root_a.newest()
    else:
        side_a = root_a.before(side_b, baseline=baseline)
    if other is None and side_a.name == side_b.name:
        raise UsageError(
            f"both sides are the {side_a.name}; name two different ones", code=ErrorCode.NOTHING_TO_COMPARE
        )
    return side_a, side_b


def _started(runs: Iterable[RunState]) -> list[RunState]:
    """Runs with a valid record, the oldest first."""
    return [run for run in runs if run.started_at is not None]


def _project(run: RunState) -> str:
    return (run.model or "").partition("@")[0]
