"""The documents of a run: its record (`run.json`), its summary (`summary.json`), and the totals of its sessions.

`run.json` is created exclusively when the run starts. `summary.json` is written at the end of each session. Each
session has its own counters in its file below `sessions/`; the summary totals those of all sessions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from batchcl.__about__ import __version__
from batchcl.arns import ModelArn
from batchcl.errors import ErrorCode, OutputError
from batchcl.runs.corruption import decode_or_raise, known_fields
from batchcl.runs.layout import RunPaths, run_name, start_path
from batchcl.runs.lease import read_leases
from batchcl.runs.store import Store
from batchcl.summary import SessionRecord, Summary, rate

if TYPE_CHECKING:
    from batchcl.runs.publish import PartSpec

__all__ = [
    "RunRecord",
    "describe_differences",
    "read_record",
    "read_sessions",
    "read_summary",
    "summary_of_session",
    "total_spent",
    "write_summary",
]

RUN_FORMAT: Final = 1
"""Of all files below `runs/<run>/`; raised by a change that earlier versions would misread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The request for a run, as it was when the run started.

    Attributes:
        model: the model's ARN.
        fingerprint: digest of `scored_as`.
        scored_as: the settings that affect the rows; they must not change when the run is resumed.
        settings: all settings.
        version: of batchcl.
        lists: list file → digest of its content; an interrupted listing resumes only if it is unchanged.
        bad_lines: list file → the reasons why its first hundred invalid lines were skipped.
        format: `RUN_FORMAT` of that version.
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
    format: int = RUN_FORMAT

    @property
    def date(self) -> dt.date:
        """The run's UTC start date, which names its partition."""
        return self.started_at.astimezone(dt.UTC).date()

    @property
    def model_name(self) -> str:
        """`<project>@<version>`, which names its partition."""
        return ModelArn.parse(self.model).name

    def part_spec(self) -> PartSpec:
        """The properties that all its published files share."""
        from batchcl.runs.publish import PartSpec

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
        await store.put(start_path(self.run_id, self.started_at), b"")
        return await store.put_new(RunPaths(self.run_id).record, _dump(asdict(self)))


_Document = TypeVar("_Document", RunRecord, Summary)


async def read_record(store: Store, run_id: str) -> RunRecord | None:
    """The record of the run with this id or name, or None if there is no such run.

    Raises:
        OutputError: the record can't be read, has a later format, or belongs to another run: some file systems ignore
            case.
    """
    path = RunPaths(run_id).record
    record = _load(RunRecord, await store.get(path), store.uri(path))
    if record is not None and run_name(record.run_id) != run_name(run_id):
        raise OutputError(
            f"{store.uri(path)} belongs to run {record.run_id!r}, not to {run_id!r}: the file system ignores case; use "
            "another --run-id",
            code=ErrorCode.RUN_ID_TAKEN,
        )
    return record


async def read_summary(store: Store, run_id: str) -> Summary | None:
    """The run's summary, or None if no session has ended."""
    return _load(Summary, await store.get(RunPaths(run_id).summary), store.uri(RunPaths(run_id).summary))


async def summary_of_session(store: Store, run_id: str, number: int) -> Summary | None:
    """The run's summary if session `number` or a later one has written it, or None."""
    summary = await read_summary(store, run_id)
    is_included = summary is not None and any(each.number == number for each in summary.sessions)
    return summary if is_included else None


async def read_sessions(store: Store, run_id: str) -> list[SessionRecord]:
    """The counters of each session of the run as of its last heartbeat, in order."""
    leases = await read_leases(store, RunPaths(run_id).sessions)
    return [SessionRecord.of(lease.number, lease.progress) for lease in leases]


def total_spent(sessions: Sequence[SessionRecord]) -> dict[str, Any]:
    """The sums of the counters, seconds and costs of all `sessions`, as fields of a summary."""
    seconds = round(sum(each.seconds for each in sessions), 3)
    costs = [each.cost_usd for each in sessions if each.cost_usd is not None]
    return {
        "calls": sum(each.calls for each in sessions),
        "throttled": sum(each.throttled for each in sessions),
        "seconds": seconds,
        "images_per_second": rate(sum(each.images for each in sessions), seconds),
        "cost_usd": round(sum(costs), 6) if costs else None,
        "cost_by_month": _add_up(each.cost_by_month for each in sessions),
        "billed_s": _add_up(each.billed_s for each in sessions),
    }


def _add_up(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in amounts:
        for name, amount in each.items():
            total[name] = round(total.get(name, 0.0) + amount, 6)
    return total


async def write_summary(store: Store, summary: Summary, *, replaces: bool = True) -> None:
    """Write the summary. With `replaces` False, one that exists is kept."""
    put = store.put if replaces else store.put_new
    await put(RunPaths(summary.run_id).summary, _dump(summary.as_dict()))


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Text that lists the differences between two `scored_as`."""
    return ", ".join(
        f"{name} was {_value(old, name)} and is {_value(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _value(scored_as: Mapping[str, Any], name: str) -> str:
    value = scored_as.get(name)
    return "not set" if value is None else repr(value)


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)


def _load(kind: type[_Document], data: bytes | None, where: str) -> _Document | None:
    """Decode `data`; unknown keys, which a newer version may have added, are ignored."""
    if data is None:
        return None
    with decode_or_raise(where, remedy="restore it or use another output root"):
        values = orjson.loads(data)
        if kind is RunRecord and "format" in values and values["format"] > RUN_FORMAT:
            raise OutputError(
                f"{where} has format {values['format']} of batchcl {values['version']}, and this is batchcl "
                f"{__version__}, which reads formats up to {RUN_FORMAT}; use batchcl {values['version']} or later"
            )
        accepted = known_fields(kind, values)
        for name in ("started_at", "ended_at"):
            if name in accepted:
                accepted[name] = dt.datetime.fromisoformat(accepted[name])
        if "sessions" in accepted:
            accepted["sessions"] = tuple(
                SessionRecord(**known_fields(SessionRecord, each)) for each in accepted["sessions"]
            )
        return kind(**accepted)
