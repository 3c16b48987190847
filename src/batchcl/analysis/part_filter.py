"""Selects published files, and rows of them, by model, run and date."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from batchcl.arns import ModelArn
from batchcl.errors import ErrorCode, UsageError, command
from batchcl.runs.layout import valid_run_id
from batchcl.runs.published import PublishedPart
from batchcl.runs.status import RunState

__all__ = ["PartFilter", "day_of"]

_MAX_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class PartFilter:
    """Filters on published parts; None means any. `nothing`: two filters exclude each other.

    Each of `models` is `project`, `project@version` or an ARN; all must match. Models of the same name share a folder
    and differ in `model_arn`.
    """

    models: tuple[str, ...] = ()
    run_id: str | None = None
    date: str | None = None
    nothing: bool = False

    def combined(self, model: str | None, run_id: str | None, date: dt.date | str | None) -> PartFilter:
        """This filter and a further one. Raises `UsageError` if an argument is not valid."""
        day = None if date is None else _iso(date)
        if model is not None and model.startswith("arn:"):
            ModelArn.parse(model)
        if run_id is not None:
            valid_run_id(run_id)
        pairs = ((self.run_id, run_id), (self.date, day))
        return PartFilter(
            models=self.models if model is None else (*self.models, model),
            run_id=self.run_id if run_id is None else run_id,
            date=day or self.date,
            nothing=self.nothing or any(None not in pair and len(set(pair)) > 1 for pair in pairs),
        )

    @property
    def arns(self) -> list[str]:
        """Those of `models` that are ARNs."""
        return [model for model in self.models if model.startswith("arn:")]

    def matches(self, part: PublishedPart) -> bool:
        """Whether the part may have rows that match."""
        return (
            not self.nothing
            and all(_may_be_named(part.model, model) for model in self.models)
            and self.date in (None, part.date)
            and (self.run_id is None or part.may_contain(self.run_id))
        )

    def matches_run(self, state: RunState) -> bool:
        """Whether the run matches."""
        return (
            not self.nothing
            and all(_may_be_named(state.model or "", model) for model in self.models)
            and all(state.model_arn == arn for arn in self.arns)
            and self.run_id in (None, state.run_id)
            and self.date in (None, state.started_at and state.started_at.date().isoformat())
        )

    def no_match(self, root: str, parts: Collection[PublishedPart], runs: Collection[RunState]) -> UsageError:
        """The error if neither a part nor a run matches: what there is instead."""
        wanted = [f"model {model!r}" for model in self.models]
        wanted += [f"run {self.run_id!r}"] if self.run_id is not None else []
        wanted += [f"date {self.date}"] if self.date is not None else []
        models = sorted({part.model for part in parts} | {run.model for run in runs if run.model})
        dates = sorted({part.date for part in parts} | {_day(run) for run in runs if run.started_at}, reverse=True)
        run_ids = [run.run_id for run in runs][::-1]
        has = {"model": models, "date": dates, "run": run_ids}
        exists = "; ".join(f"its {_plural(kind, names)} {_some(names)}" for kind, names in has.items() if names)
        return UsageError(
            f"{root} has no rows of the {' and '.join(wanted)}: {exists}; {command('runs', root)} lists its runs",
            code=ErrorCode.NO_RESULTS,
        )


def day_of(date: str) -> dt.date:
    """The day that `date` names, such as 2026-11-21. Raises `UsageError`."""
    try:
        return dt.date.fromisoformat(date)
    except ValueError as error:
        raise UsageError(f"{date!r} is not a day; write it as 2026-11-21") from error


def _iso(date: dt.date | str) -> str:
    if isinstance(date, dt.datetime):
        return date.date().isoformat()
    if isinstance(date, dt.date):
        return date.isoformat()
    return day_of(date).isoformat()


def _may_be_named(name: str, model: str) -> bool:
    """Whether `model`, which is `project`, `project@version` or an ARN, may be the one of this name."""
    if model.startswith("arn:"):
        model = ModelArn.parse(model).name
    return model in (name, name.partition("@")[0])


def _day(run: RunState) -> str:
    return "" if run.started_at is None else run.started_at.date().isoformat()


def _plural(kind: str, names: Collection[str]) -> str:
    return f"{kind} is" if len(names) == 1 else f"{kind}s are"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_NAMES_SHOWN:,} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + more
