"""Outcomes as Arrow tables with the columns of `ENTRIES`: the content of a journal and the input of publishing.

An entry is an outcome and the position of its image in the shard; the image itself is in the work list. Columns instead
of one object per image keep memory small. Functions import what they need beyond pyarrow, because a run starts with
empty tables. A new column must be nullable: it is null in journals of earlier versions.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa

from batchcl.images import check_limits
from batchcl.outcomes import FAILURE_CODES, PERMANENT_CODES, Counts, Failed, Label, Outcome, Scored
from batchcl.runs.schema import LABEL, POINT, UTC_US
from batchcl.runs.worklist import ImageRows

__all__ = [
    "ENTRIES",
    "FailureGroup",
    "JournalEntry",
    "count_fittable",
    "counts",
    "entry_table",
    "failure_groups",
    "latest",
    "of_round",
    "of_status",
    "positions",
    "statuses",
    "unresolved",
]

SCORED: Final = "scored"
_UNSCORED: Final = pa.array(["failed", "skipped"])

ENTRIES: Final = pa.schema(
    [
        pa.field("position", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("at", UTC_US, nullable=False),
        pa.field("labels", pa.list_(LABEL)),
        pa.field("latency_ms", pa.float32()),
        pa.field("request_id", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("round", pa.int16(), nullable=False),
        pa.field("fitted", pa.string()),
        pa.field("fit", pa.bool_(), nullable=False),
    ]
)
_BOX: Final = ("left", "top", "width", "height")


class JournalEntry(NamedTuple):
    """An outcome and the position of its image in the shard."""

    position: int
    outcome: Outcome


class FailureGroup(NamedTuple):
    """Properties by which failed and skipped images are counted.

    Attributes:
        status: `failed` or `skipped`.
        code: the error code.
        round: the round of the latest failure.
        permanent: the image would fail again with the `--fit` setting of that round.
        fit_may_help: the image was tried without `--fit`, and `--fit` may make it acceptable.
    """

    status: str
    code: str
    round: int
    permanent: bool
    fit_may_help: bool


def entry_table(entries: Sequence[JournalEntry], *, round_: int, fit: bool = False) -> pa.Table:
    """`entries` as a table, in their order. All are of round `round_`, which has the `--fit` setting `fit`."""
    outcomes = [entry.outcome for entry in entries]
    scored = [outcome if isinstance(outcome, Scored) else None for outcome in outcomes]
    failed = [outcome if isinstance(outcome, Failed) else None for outcome in outcomes]
    columns: dict[str, Any] = {
        "position": [entry.position for entry in entries],
        "status": [outcome.status for outcome in outcomes],
        "attempts": [outcome.attempts for outcome in outcomes],
        "at": [outcome.at for outcome in outcomes],
        "labels": _label_lists([None if one is None else one.labels for one in scored]),
        "latency_ms": [None if one is None else one.latency_ms for one in scored],
        "request_id": [None if one is None else one.request_id for one in scored],
        "code": [None if one is None else one.code for one in failed],
        "message": [None if one is None else one.message for one in failed],
        "round": [round_] * len(entries),
        "fitted": [None if one is None else one.fitted for one in scored],
        "fit": [fit] * len(entries),
    }
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
        for field in ENTRIES
    ]
    return pa.table(arrays, schema=ENTRIES)


def positions(entries: pa.Table) -> list[int]:
    """The position of each entry."""
    values: list[int] = entries["position"].to_pylist()
    return values


def statuses(entries: pa.Table) -> dict[int, str]:
    """Position → status."""
    return dict(zip(positions(entries), entries["status"].to_pylist(), strict=True))


def counts(entries: pa.Table) -> Counts:
    """Number of entries by status."""
    if not entries.num_rows:
        return Counts()
    import pyarrow.compute as pc

    by_status = {each["values"]: each["counts"] for each in entries["status"].value_counts().to_pylist()}
    unlabelled = pc.equal(pc.list_value_length(entries["labels"]), 0)  # null, which isn't summed, unless scored
    return Counts(**by_status, unlabelled=pc.sum(unlabelled, min_count=0).as_py())


def of_status(entries: pa.Table, *, scored: bool) -> pa.Table:
    """The entries of scored images, or, with `scored=False`, of failed and skipped ones."""
    import pyarrow.compute as pc

    status = entries["status"]
    return entries.filter(pc.equal(status, SCORED) if scored else pc.is_in(status, value_set=_UNSCORED))


def of_round(entries: pa.Table, round_: int) -> tuple[pa.Table, pa.Table]:
    """The entries of a round, and those of earlier rounds."""
    if not entries.num_rows:
        return entries, entries
    import pyarrow.compute as pc

    return entries.filter(pc.equal(entries["round"], round_)), entries.filter(pc.less(entries["round"], round_))


def latest(entries: pa.Table) -> pa.Table:
    """The last entry of each image, sorted by row."""
    if not entries.num_rows:
        return entries
    import pyarrow.compute as pc

    rows = pa.table({"position": entries["position"], "row": pa.array(range(entries.num_rows), pa.int64())})
    last = rows.group_by("position", use_threads=False).aggregate([("row", "max")])["row_max"]
    return entries.take(last.take(pc.sort_indices(last)))


def unresolved(entries: pa.Table, images: pa.Table) -> list[tuple[int, FailureGroup]]:
    """The position and group of each failed or skipped image of a shard.

    Args:
        entries: one per image, as returned by `latest`.
        images: the images of the shard, with the columns of `IMAGES`.
    """
    rows = of_status(entries, scored=False).select(["position", "status", "code", "round", "fit"])
    if not rows.num_rows:
        return []
    has_version = _has_version(images.take(rows["position"])).to_pylist()
    failures = list(zip(*rows.to_pydict().values(), has_version, strict=True))
    skipped = [position for position, status, _, _, fit, _ in failures if status == "skipped" and not fit]
    fittable = {
        position
        for position, image in zip(skipped, ImageRows(images, skipped), strict=True)
        if not check_limits(image, fit=True)
    }
    fittable_codes = {code for code, about in FAILURE_CODES.items() if about.fit_may_help}
    return [
        (
            position,
            FailureGroup(
                status,
                code,
                round_,
                permanent=is_versioned and code in PERMANENT_CODES,
                fit_may_help=not fit and (position in fittable or (status == "failed" and code in fittable_codes)),
            ),
        )
        for position, status, code, round_, fit, is_versioned in failures
    ]


def count_fittable(failures: Mapping[FailureGroup, int]) -> int:
    """Number of these images that `--fit` may make acceptable."""
    return sum(number for group, number in failures.items() if group.fit_may_help)


def failure_groups(entries: pa.Table, images: pa.Table) -> Counter[FailureGroup]:
    """Number of failed and skipped images of a shard by group; arguments as for `unresolved`."""
    return Counter(group for _, group in unresolved(entries, images))


def _has_version(images: pa.Table) -> pa.ChunkedArray:
    """For each image, whether its version is known: by version id or etag, or a local file's size and time."""
    import pyarrow.compute as pc

    has_time = pc.and_(pc.is_valid(images["size_bytes"]), pc.is_valid(images["last_modified"]))
    has_id = pc.or_(pc.is_valid(images["version_id"]), pc.is_valid(images["etag"]))
    return pc.or_(has_id, pc.and_(pc.equal(images["bucket"], ""), has_time))


def _label_lists(lists: Sequence[tuple[Label, ...] | None]) -> pa.Array:
    """One list of labels per image, null for None. Built from flat columns: about 5x faster than from dicts."""
    labels = list(itertools.chain.from_iterable(filter(None, lists)))
    boxes = zip(*(label.box or (None, None, None, None) for label in labels), strict=True) if labels else [()] * 4
    fields = {
        "name": pa.array([label.name for label in labels], pa.string()),
        "confidence": pa.array([label.confidence for label in labels], pa.float32()),
        "polygon": _polygons([label.polygon for label in labels]),
        **{name: pa.array(side, pa.float32()) for name, side in zip(_BOX, boxes, strict=True)},
    }
    structs = pa.StructArray.from_arrays([fields[field.name] for field in LABEL], fields=list(LABEL))
    return _list_array(lists, structs, pa.list_(LABEL))


def _polygons(polygons: Sequence[tuple[tuple[float, float], ...] | None]) -> pa.Array:
    points = list(itertools.chain.from_iterable(filter(None, polygons)))
    axes = [pa.array([point[axis] for point in points], pa.float32()) for axis in (0, 1)]
    return _list_array(polygons, pa.StructArray.from_arrays(axes, fields=list(POINT)), pa.list_(POINT))


def _list_array(lists: Sequence[Sequence[Any] | None], values: pa.Array, kind: pa.DataType) -> pa.Array:
    """`values` split into lists of the lengths of `lists`; null where a list is None."""
    offsets = itertools.accumulate((len(one) if one else 0 for one in lists), initial=0)
    missing = pa.array([one is None for one in lists], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=kind, mask=missing)
