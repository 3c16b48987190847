"""The published tables of an output root as lazy polars frames.

Nothing is read until a frame is collected, and then only the columns and partitions that the query needs.
`runs` is an exception: it reads at once.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa
from anyio.from_thread import start_blocking_portal
from polars.io.plugins import register_io_source

from batchcl.arns import ModelArn
from batchcl.errors import UsageError, command
from batchcl.runs.layout import RunPaths, valid_run_id
from batchcl.runs.published import PARTITION, PublishedPart, published_parts, read_part
from batchcl.runs.schema import FAILURES, RESULTS
from batchcl.runs.status import RunState, list_runs
from batchcl.runs.store import Store, open_root

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

__all__ = ["DETECTIONS", "Results", "day_of", "open_results", "run_table", "shown_model"]

_FILES_AHEAD: Final = 16
_BYTES_AHEAD: Final = 16 * 1024 * 1024
"""Read-ahead in files and in compressed bytes. Small files are mostly S3 latency."""

DETECTIONS: Final = (
    "uri",
    "version_id",
    "label",
    "confidence",
    "left",
    "top",
    "width",
    "height",
    "model",
    "date",
    "run_id",
    "model_arn",
)
"""The columns of `Results.detections()`."""

_IMAGE: Final = ("model_arn", "uri", "version_id")
"""The columns that identify an image."""


class Results:
    """The published rows of an output root; created by `open_results`.

    The list of files is taken once, when the root is opened. Each method takes further filters, which come on top of
    those given to `open_results`.
    """

    def __init__(self, store: Store, parts: Iterable[PublishedPart], *, part_filter: _PartFilter) -> None:
        self._store = store
        self._parts = tuple(parts)
        self._part_filter = part_filter

    def __repr__(self) -> str:
        return f"Results({self.root!r}, {len(self._parts)} files)"

    @property
    def root(self) -> str:
        """The output root."""
        return self._store.root

    @property
    def models(self) -> list[str]:
        """Names (`<project>@<version>`) of all models with published files, sorted; filters are not applied."""
        return sorted({part.model for part in self._parts})

    def images(
        self, *, model: str | None = None, run_id: str | None = None, date: dt.date | str | None = None
    ) -> pl.LazyFrame:
        """One row per scored image: the columns of schema 1, `model` (string) and `date` (start date of the run)."""
        return self._scan("results", RESULTS, self._part_filter.combined(model, run_id, date))

    def failures(
        self, *, model: str | None = None, run_id: str | None = None, date: dt.date | str | None = None
    ) -> pl.LazyFrame:
        """One row per image without a result: its latest failure, unless a later run of the model has scored it.

        An image is a uri, in one version where the list named versions, and a model. With a run id the run's own rows
        decide: its latest failure, unless the run has scored the image. The columns are those of schema v1 and
        `model`, `date`.
        """
        part_filter = self._part_filter.combined(model, run_id, date)
        failures = self._scan("failures", FAILURES, part_filter)
        models = {part.model for part in self._parts if part.table == "failures" and part_filter.matches(part)}
        resolving = [
            part
            for part in self._parts
            if part.table == "results"
            and part.model in models
            and (part_filter.run_id is None or part.may_contain(part_filter.run_id))
        ]
        of_run = failures.sort("round").unique([*_IMAGE, "run_id"], keep="last", maintain_order=True)
        scored = self._scan_parts(resolving, RESULTS).select(*_IMAGE, "scored_at", scored_by="run_id")
        same_run = pl.col("scored_by") == pl.col("run_id")
        since = pl.lit(part_filter.run_id is None) & (pl.col("scored_at") > pl.col("failed_at"))
        resolved = (
            scored.join(of_run.select(*_IMAGE, "run_id", "failed_at"), on=_IMAGE, nulls_equal=True)
            .filter(same_run | since)
            .select(*_IMAGE, "run_id")
        )
        return (
            of_run.join(resolved, on=[*_IMAGE, "run_id"], how="anti", nulls_equal=True)
            .sort("failed_at")
            .unique(_IMAGE, keep="last", maintain_order=True)
        )

    def runs(self) -> pl.LazyFrame:
        """One row per run, with or without published files, as in `batchcl runs --json`. Reads the root; blocks."""
        with start_blocking_portal() as portal:
            states = portal.call(partial(list_runs, self._store, now=dt.datetime.now(dt.UTC)))
        return run_table(state for state in states if self._part_filter.matches_run(state)).lazy()

    def detections(
        self, *, model: str | None = None, run_id: str | None = None, date: dt.date | str | None = None
    ) -> pl.LazyFrame:
        """One row per label of an image, with the columns `DETECTIONS`; an image without labels has no row.

        `confidence` is 0 to 100; `left`, `top`, `width` and `height` are ratios of the upright image, null for an
        image-level label.
        """
        images = self.images(model=model, run_id=run_id, date=date)
        label = pl.col("labels").struct
        return (
            images.select("uri", "version_id", "labels", "model", "date", "run_id", "model_arn")
            .explode("labels", empty_as_null=False, keep_nulls=False)
            .with_columns(
                label.field("name").alias("label"),
                label.field("confidence", "left", "top", "width", "height"),
            )
            .select(DETECTIONS)
        )

    def _scan(self, table: str, schema: pa.Schema, part_filter: _PartFilter) -> pl.LazyFrame:
        part_filter.check(self._store, self._parts)
        parts = [part for part in self._parts if part.table == table and part_filter.matches(part)]
        frame = self._scan_parts(parts, schema)
        for arn in part_filter.arns:
            frame = frame.filter(pl.col("model_arn") == arn)
        return frame if part_filter.run_id is None else frame.filter(pl.col("run_id") == part_filter.run_id)

    def _scan_parts(self, parts: Sequence[PublishedPart], schema: pa.Schema) -> pl.LazyFrame:
        files = _Files(self._store, parts, pa.schema([*schema, *PARTITION]))
        return register_io_source(files.frames, schema=pl.DataFrame(files.schema.empty_table()).schema, is_pure=True)


@dataclass(frozen=True, slots=True)
class _Files:
    """Files of one table and the columns to read. Columns missing in a file are null; other columns are ignored.

    polars' `scan_parquet` isn't used because it runs on the streaming engine, whichever engine collects (see
    tests/unit/test_polars.py); `scan_pyarrow_dataset`, because it lets pyarrow filter, to which NULL is NOT IN ('x').
    """

    store: Store
    parts: Sequence[PublishedPart]
    schema: pa.Schema

    def frames(
        self, columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield one frame per file, as polars expects from an IO source. Blocks.

        Args:
            columns: to return; None for all.
            predicate: which rows to return; None for all.
            rows: how many at most; None for all.

        Raises:
            OutputError: a file can't be read, or is damaged.
        """
        wanted = self.schema.names if columns is None else columns
        filtered_by = [] if predicate is None else predicate.meta.root_names()
        parts = self.parts if predicate is None else _in_partitions(self.parts, predicate)
        left = math.inf if rows is None else rows
        for table in self._tables(parts, list(dict.fromkeys([*wanted, *filtered_by]))):
            frame = pl.DataFrame(table)
            if predicate is not None:
                frame = frame.filter(predicate)
            if frame.height >= left:
                yield frame.select(wanted).head(int(left))
                return
            yield frame.select(wanted)
            left -= frame.height

    def _tables(self, parts: Sequence[PublishedPart], columns: list[str]) -> Iterator[pa.Table]:
        """Yield the columns of each part in order. Small parts are read ahead."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        with ThreadPoolExecutor(_FILES_AHEAD) as threads:
            reading: deque[tuple[int, Future[pa.Table]]] = deque()
            for part in parts:
                ahead_bytes = sum(size_bytes for size_bytes, _ in reading)
                while reading and (len(reading) == _FILES_AHEAD or ahead_bytes + part.size_bytes > _BYTES_AHEAD):
                    size_bytes, table = reading.popleft()
                    ahead_bytes -= size_bytes
                    yield table.result()
                reading.append((part.size_bytes, threads.submit(read_part, self.store, part, schema)))
            while reading:
                yield reading.popleft()[1].result()


def _in_partitions(parts: Sequence[PublishedPart], predicate: pl.Expr) -> list[PublishedPart]:
    """Return the parts whose model and date satisfy the conditions of `predicate` on these columns alone."""
    conditions = [each for each in _conjuncts(predicate) if set(each.meta.root_names()) <= set(PARTITION.names)]
    names = [pl.Series(name, [getattr(part, name) for part in parts], pl.String) for name in PARTITION.names]
    dated = pl.DataFrame(names).with_columns(pl.col("date").str.to_date("%Y-%m-%d", strict=False))
    return [parts[number] for number in dated.with_row_index().filter(*conditions)["index"]]


def _conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """Return the conditions that `predicate` joins with AND."""
    for first, second in permutations(predicate.meta.pop(), 2):
        if (first & second).meta.eq(predicate):
            return [*_conjuncts(first), *_conjuncts(second)]
    return [predicate]


@dataclass(frozen=True, slots=True)
class _PartFilter:
    """Filters on published parts; None means any. `nothing`: two filters exclude each other.

    Each of `models` is `project`, `project@version` or an ARN; all must match. Models of the same name share a folder
    and differ in `model_arn`.
    """

    models: tuple[str, ...] = ()
    run_id: str | None = None
    date: str | None = None
    nothing: bool = False

    def combined(self, model: str | None, run_id: str | None, date: dt.date | str | None) -> _PartFilter:
        day = None if date is None else _iso(date)
        if model is not None and model.startswith("arn:"):
            ModelArn.parse(model)
        if run_id is not None:
            valid_run_id(run_id)
        pairs = ((self.run_id, run_id), (self.date, day))
        return _PartFilter(
            models=self.models if model is None else (*self.models, model),
            run_id=self.run_id if run_id is None else run_id,
            date=day or self.date,
            nothing=self.nothing or any(None not in pair and len(set(pair)) > 1 for pair in pairs),
        )

    @property
    def arns(self) -> list[str]:
        return [model for model in self.models if model.startswith("arn:")]

    def matches(self, part: PublishedPart) -> bool:
        return (
            not self.nothing
            and all(_may_be_named(part.model, model) for model in self.models)
            and self.date in (None, part.date)
            and (self.run_id is None or part.may_contain(self.run_id))
        )

    def matches_run(self, state: RunState) -> bool:
        return (
            not self.nothing
            and all(_may_be_named(state.model or "", model) for model in self.models)
            and all(state.model_arn == arn for arn in self.arns)
            and self.run_id in (None, state.run_id)
            and self.date in (None, state.started_at and state.started_at.date().isoformat())
        )

    def check(self, store: Store, parts: Iterable[PublishedPart]) -> None:
        """Raise `UsageError` for an unknown model or run, which is probably a typing error."""
        parts = tuple(parts)
        if not parts:
            return
        models = sorted({part.model for part in parts})
        for wanted in self.models:
            if not any(_may_be_named(model, wanted) for model in models):
                raise UsageError(f"{store.root} has no rows of the model {wanted!r}; its models are {_some(models)}")
        if self.run_id is None or any(part.may_contain(self.run_id) for part in parts):
            return
        if not store.list_sync(RunPaths(self.run_id).folder):
            raise UsageError(f"{store.root} has no run {self.run_id!r}; {command('runs', store.root)} lists its runs")


def open_results(
    root: str,
    *,
    model: str | None = None,
    run_id: str | None = None,
    date: dt.date | str | None = None,
    aws: Aws | None = None,
    profile: str | None = None,
    region: str | None = None,
) -> Results:
    """The results below `root`, a directory or `s3://bucket/prefix`.

    ```python
    import polars as pl
    from batchcl import open_results

    open_results("s3://b/out").detections(date="2026-11-21").filter(pl.col("confidence") > 90).collect()
    ```

    Args:
        root: what `--out` was.
        model: rows of this model only, `<project>@<version>` or its ARN; `<project>` for all of its versions.
        run_id: rows of this run only.
        date: rows of the runs that started on this UTC day only.
        aws: for an S3 root; as the AWS CLI would by default.
        profile: for an S3 root without `aws`.
        region: likewise.

    Raises:
        OutputError: there is no output root there, or it can't be read.
        UsageError: `root` is neither, `date` is no day, or nothing is known of `model` or `run_id`.
        CredentialsError: there are none for an S3 root.
    """
    store = open_root(root, profile=profile, region=region) if aws is None else Store.open(root, aws=aws)
    parts = published_parts(store)
    part_filter = _PartFilter().combined(model, run_id, date)
    part_filter.check(store, parts)
    return Results(store, parts, part_filter=part_filter)


def _may_be_named(name: str, model: str) -> bool:
    """Whether `model`, which is `project`, `project@version` or an ARN, may be the one of this name."""
    if model.startswith("arn:"):
        model = ModelArn.parse(model).name
    return model in (name, name.partition("@")[0])


def shown_model() -> pl.Expr:
    """The model of a row of any frame as people tell it from the others: its name, or its ARN where others share it.

    Both are accepted as `model`.
    """
    shared = pl.col("model_arn").n_unique().over("model") > 1
    return pl.when(shared).then("model_arn").otherwise("model").alias("model")


def _iso(date: dt.date | str) -> str:
    if isinstance(date, dt.datetime):
        return date.date().isoformat()
    if isinstance(date, dt.date):
        return date.isoformat()
    return day_of(date).isoformat()


def day_of(date: str) -> dt.date:
    """The day that `date` names, such as 2026-11-21. Raises `UsageError`."""
    try:
        return dt.date.fromisoformat(date)
    except ValueError as error:
        raise UsageError(f"{date!r} is not a day; write it as 2026-11-21") from error


def _some(names: list[str]) -> str:
    most = 10
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_KINDS: Final[dict[str, Any]] = {
    "str": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "dt.datetime": pl.Datetime("us", "UTC"),
}


def run_table(states: Iterable[RunState]) -> pl.DataFrame:
    """One row a run, in the order of `states`; the columns are the fields of `RunState`."""
    schema = {each.name: _KINDS[str(each.type).partition(" |")[0]] for each in fields(RunState)}
    return pl.DataFrame([state.as_dict() for state in states], schema=schema)
