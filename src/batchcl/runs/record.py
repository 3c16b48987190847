"""A run's two documents: `run.json`, created exclusively when it starts, and `summary.json`, written when it ends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

import orjson

from batchcl.aws.arn import ModelArn
from batchcl.errors import UsageError
from batchcl.runs.damage import intact
from batchcl.runs.layout import RunPaths, run_name
from batchcl.runs.parts import PartSpec
from batchcl.runs.store import Store

__all__ = [
    "RunRecord",
    "Summary",
    "differences",
    "read_record",
    "read_summary",
    "write_summary",
]

Status = Literal["done", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What was asked for.

    Attributes:
        scored_as: what decides about the rows; `fingerprint` is its digest.
        lists: list file → digest of its content, by which a listing that was cut short may go on.
        bad_lines: list file → what was wrong with its first hundred lines that were left out.
    """

    run_id: str
    model: str
    fingerprint: str
    scored_as: dict[str, Any]
    settings: dict[str, Any]
    started_at: dt.datetime
    version: str
    lists: dict[str, str] = field(default_factory=dict)
    bad_lines: dict[str, list[str]] = field(default_factory=dict)

    @property
    def date(self) -> dt.date:
        """The run's UTC start date, which names its partition."""
        return self.started_at.astimezone(dt.UTC).date()

    @property
    def model_name(self) -> str:
        """`<project>@<version>`, which names its partition."""
        return ModelArn.parse(self.model).name

    def part_spec(self) -> PartSpec:
        """What all its published files have in common."""
        return PartSpec(
            run_id=self.run_id,
            model=self.model_name,
            model_arn=self.model,
            date=self.date,
            min_confidence=self.scored_as["min_confidence"],
            max_results=self.scored_as["max_results"],
        )

    async def create(self, store: Store) -> bool:
        """Write the record; False if the run id is taken."""
        return await store.put_new(RunPaths(self.run_id).record, _dump(asdict(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to.

    Attributes:
        status: `done` when every image of the list has its row, `stopped` when not.
        reason: why it stopped.
        calls: DetectCustomLabels calls of the last session, the throttled ones included; a run that was taken up
            again has had several sessions.
        seconds: of the last session, from the first call to the last row.
        cost_usd: what the model cost while this run had it running, at least; None where the run didn't start it.
        tolerated: whether failures stayed within `max_failures`.
        bad_lines: lines of the lists that name no image and were left out.
        repeated: images that the sources named more than once, beyond the first time.
        known: images left out by `--incremental`, as their version has a result.
        known_failed: images left out by `--incremental`, as their version has a permanent failure.
        retryable: failed images that `batchcl retry` scores again, as they may succeed; None while the run, or its
            retry, isn't done.
        fittable: failed and skipped images that may be scored with `--fit`; likewise.
        filtered: images left out by the filters.
        filtered_by: which filter → how many of them.
        left_out: lines of lists that name something that is no image to score: what → how many.
        lines: lines and rows of all lists; None where a source is no list, or the list isn't complete.
        round: 0, or the number of the retry that this is the summary of.
    """

    run_id: str
    status: Status
    planned: int
    scored: int
    failed: int
    skipped: int
    calls: int
    throttled: int
    seconds: float
    images_per_second: float
    out: str
    model: str
    started_at: dt.datetime
    ended_at: dt.datetime
    tolerated: bool = True
    cost_usd: float | None = None
    bad_lines: int = 0
    repeated: int = 0
    known: int = 0
    known_failed: int = 0
    retryable: int | None = None
    fittable: int | None = None
    filtered: int = 0
    filtered_by: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    lines: int | None = None
    round: int = 0
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


_Document = TypeVar("_Document", RunRecord, Summary)


async def read_record(store: Store, run_id: str) -> RunRecord | None:
    """The record of the run with this id or name, or None if there is no such run.

    Raises:
        UsageError: another run has this name: file systems may not distinguish `a` from `A`.
        OutputError: it can't be read.
    """
    path = RunPaths(run_id).record
    record = _load(RunRecord, await store.get(path), store.uri(path))
    if record is not None and run_name(record.run_id) != run_name(run_id):
        raise UsageError(f"{store.uri(path)} is of run {record.run_id!r}, not {run_id!r}; use another --run-id")
    return record


async def read_summary(store: Store, run_id: str) -> Summary | None:
    """The run's summary, or None if it has not ended."""
    return _load(Summary, await store.get(RunPaths(run_id).summary), store.uri(RunPaths(run_id).summary))


async def write_summary(store: Store, summary: Summary) -> None:
    """Keep the summary."""
    await store.put(RunPaths(summary.run_id).summary, _dump(summary.as_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What sets two `scored_as` apart, in words."""
    return ", ".join(
        f"{name} was {_value(old, name)} and is {_value(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _value(scored_as: Mapping[str, Any], name: str) -> str:
    value = scored_as.get(name)
    return "left out" if value is None else repr(value)


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)


def _load(kind: type[_Document], data: bytes | None, where: str) -> _Document | None:
    """The document in `data`; keys that a newer batchcl added are passed over."""
    if data is None:
        return None
    with intact(where, remedy="restore it or use another output root"):
        values = orjson.loads(data)
        known = {name: values[name] for name in (one.name for one in fields(kind)) if name in values}
        for name in ("started_at", "ended_at"):
            if name in known:
                known[name] = dt.datetime.fromisoformat(known[name])
        return kind(**known)
