"""The published tables of an output root as lazy polars frames.

Nothing is read until a frame is collected, and then only the columns and partitions that the query needs.
`runs` is an exception: it reads at once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import polars as pl
import pyarrow as pa
from anyio.from_thread import start_blocking_portal
from polars.io.plugins import register_io_source

from batchcl.analysis.newest import IMAGE
from batchcl.analysis.part_files import Batch, NewestRows, PartFiles
from batchcl.analysis.part_filter import PartFilter
from batchcl.arns import ModelArn
from batchcl.errors import ErrorCode, UsageError
from batchcl.runs.layout import RunPaths
from batchcl.runs.published import (
    PARTITION,
    PartStatistics,
    PublishedPart,
    published_parts,
    read_ahead,
    read_statistics,
)
from batchcl.runs.schema import FAILURES, RESULTS
from batchcl.runs.status import RunState, list_runs
from batchcl.runs.store import Store, open_root
from batchcl.thresholds import Thresholds

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

__all__ = ["DETECTIONS", "Results", "open_results", "run_table", "shown_model"]

T = TypeVar("T")

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


class Results:
    """The published rows of an output root; created by `open_results`.

    The list of files is taken once, when the root is opened. Each method takes further filters, which come on top of
    those given to `open_results`.

    Of several rows of an image, only the newest of each model counts, unless the root was opened with `all_runs`. An
    image is a uri, in one version where the list named versions.
    """

    def __init__(
        self,
        store: Store,
        parts: Iterable[PublishedPart],
        *,
        part_filter: PartFilter,
        all_runs: bool = False,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._store = store
        self._parts = tuple(parts)
        self._part_filter = part_filter
        self._all_runs = all_runs
        self._thresholds = thresholds
        self._newest: dict[tuple[PublishedPart, ...], NewestRows] = {}

    def __repr__(self) -> str:
        return f"Results({self.root!r}, {len(self._parts)} files)"

    @property
    def root(self) -> str:
        """The output root."""
        return self._store.root

    @property
    def all_runs(self) -> bool:
        """Whether an image that several runs scored has a row for each of them."""
        return self._all_runs

    @property
    def models(self) -> list[str]:
        """Names (`<project>@<version>`) of all models with published files, sorted; filters are not applied."""
        return sorted({part.model for part in self._parts})

    @property
    def thresholds(self) -> Thresholds | None:
        """Below which labels are left out."""
        return self._thresholds

    def with_all_labels(self) -> Results:
        """These results with the labels below the thresholds."""
        return Results(self._store, self._parts, part_filter=self._part_filter, all_runs=self._all_runs)

    def images(
        self, *, model: str | None = None, run_id: str | None = None, date: dt.date | str | None = None
    ) -> pl.LazyFrame:
        """One row per scored image: the columns of schema 1, `model` (string) and `date` (start date of the run).

        `labels` is without those below the thresholds.
        """
        return self._scan(self._images(model=model, run_id=run_id, date=date))

    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield these columns of `images()` in frames of one file each, if they don't fit into memory. Blocks."""
        return self._images().frames(list(columns), None, None, None)

    def map_batches(
        self, compute: Callable[[Batch], T], *, columns: Sequence[str] = (), fields: Sequence[str] = ()
    ) -> Iterator[T]:
        """Yield `compute(batch)` for batches of the rows of `images()`, for tables that don't fit into memory.

        See `PartFiles.map_batches`. Blocks.
        """
        return self._images().map_batches(compute, columns=columns, fields=fields)

    def failures(
        self, *, model: str | None = None, run_id: str | None = None, date: dt.date | str | None = None
    ) -> pl.LazyFrame:
        """One row per image without a result: its latest failure, unless a later run of the model has scored it.

        An image is a uri, in one version where the list named versions, and a model. With a run id the run's own rows
        decide: its latest failure, unless the run has scored the image. The columns are those of schema v1 and
        `model`, `date`.
        """
        part_filter = self._combined(model, run_id, date)
        failures = self._scan(self._files("failures", FAILURES, part_filter))
        models = {part.model for part in self._parts if part.table == "failures" and part_filter.matches(part)}
        resolving = [
            part
            for part in self._parts
            if part.table == "results"
            and part.model in models
            and (part_filter.run_id is None or part.may_contain(part_filter.run_id))
        ]
        of_run = failures.sort("round").unique([*IMAGE, "run_id"], keep="last", maintain_order=True)
        scored = self._scan(self._part_files(resolving, RESULTS)).select(*IMAGE, "scored_at", scored_by="run_id")
        same_run = pl.col("scored_by") == pl.col("run_id")
        since = pl.lit(part_filter.run_id is None) & (pl.col("scored_at") > pl.col("failed_at"))
        resolved = (
            scored.join(of_run.select(*IMAGE, "run_id", "failed_at"), on=IMAGE, nulls_equal=True)
            .filter(same_run | since)
            .select(*IMAGE, "run_id")
        )
        return (
            of_run.join(resolved, on=[*IMAGE, "run_id"], how="anti", nulls_equal=True)
            .sort("failed_at")
            .unique(IMAGE, keep="last", maintain_order=True)
        )

    def runs(self) -> pl.LazyFrame:
        """One row per run, with or without published files, as in `batchcl runs --json`. Reads the root; blocks."""
        return run_table(state for state in self._run_states() if self._part_filter.matches_run(state)).lazy()

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

    def notes(self, *, of_one_model: bool = False) -> list[str]:
        """What a reader should know of these rows: that they are of several models, or scored differently. Blocks.

        With `of_one_model`, several models are not mentioned, because the caller refuses them.
        """
        models = sorted({each.model_arn for each in self._statistics if each.model_arn is not None})
        minima = sorted(self.min_confidences, key=lambda each: -1.0 if each is None else each)
        lowest = None if self._thresholds is None else self._thresholds.lowest
        notes = []
        if len(models) > 1 and not of_one_model:
            names = sorted({ModelArn.parse(arn).name for arn in models})
            shown = names if len(names) == len(models) else models
            notes.append(f"the rows are of {len(models)} models, {', '.join(shown)}; choose one with --model")
        if self._thresholds is not None and self._thresholds.model is not None:
            others = [arn for arn in models if arn != self._thresholds.model]
            if others:
                notes.append(
                    f"{self._thresholds.origin} was made for {self._thresholds.model}, and rows are of {others[0]}"
                )
        if None in minima:
            if lowest is not None or len(minima) > 1:
                notes.append(
                    "images were scored with the model's own thresholds: labels below those are missing, whatever "
                    "threshold is applied"
                )
        elif len(minima) > 1 and lowest is None:
            shown_minima = " and ".join(f"{each:g}" for each in minima)
            notes.append(
                f"images were scored with different thresholds, {shown_minima}, so shares of labels are not "
                f"comparable; --min-confidence {minima[-1]:g} makes them so"
            )
        elif minima == [0.0] and lowest is None:
            notes.append(
                "the images were scored with --min-confidence 0, so labels of any confidence are counted; apply a "
                "threshold with --min-confidence or --thresholds"
            )
        return notes

    def check(self) -> None:
        """Check the filters and thresholds given to `open_results`. Blocks.

        Raises:
            UsageError: nothing matches, or a threshold is below the one with which images were scored.
        """
        self._check_filter(self._part_filter)
        lowest = None if self._thresholds is None else self._thresholds.lowest
        if self._thresholds is None or lowest is None:
            return
        value, of = lowest
        highest = max((each for each in self.min_confidences if each is not None), default=0.0)
        if pl.Series([value], dtype=pl.Float32)[0] < highest:
            raise UsageError(
                f"{self._thresholds.origin}: the threshold {value:g} of {of} is below {highest:g}, with which images "
                f"were scored, so labels between the two are missing; use at least {highest:g}, or score the images "
                "with a lower --min-confidence",
                code=ErrorCode.THRESHOLD_TOO_LOW,
            )

    def filtered(
        self,
        *,
        model: str | None = None,
        run_id: str | None = None,
        date: dt.date | str | None = None,
        thresholds: Thresholds | float | None = None,
    ) -> Results:
        """These results with further filters, and other thresholds if they are given; see `open_results`. Blocks."""
        results = Results(
            self._store,
            self._parts,
            part_filter=self._part_filter.combined(model, run_id, date),
            all_runs=self._all_runs,
            thresholds=self._thresholds if thresholds is None else _applied(thresholds),
        )
        results.check()
        return results

    def _check_filter(self, part_filter: PartFilter) -> None:
        if not self._parts or part_filter.nothing or any(part_filter.matches(part) for part in self._parts):
            return
        if part_filter.run_id is not None and self._store.list_sync(RunPaths(part_filter.run_id).folder):
            return
        states = self._run_states()
        if not any(part_filter.matches_run(state) for state in states):
            raise part_filter.no_match(self.root, self._parts, states)

    @property
    def min_confidences(self) -> frozenset[float | None]:
        """What the images were scored with; None for the model's own thresholds. Blocks."""
        return frozenset[float | None]().union(*(each.min_confidences for each in self._statistics))

    @cached_property
    def _statistics(self) -> list[PartStatistics]:
        """Of one file of each run, which all have the same model and threshold, and of all files of exports."""
        files = self._images()
        found = self._read_statistics(files.parts)
        if files.newest is not None and len({each.min_confidences for each in found}) > 1:
            newest = files.newest.of(part.model for part in files.parts)
            found = self._read_statistics(part for part in files.parts if part not in newest or newest[part].any())
        return found

    def _read_statistics(self, parts: Iterable[PublishedPart]) -> list[PartStatistics]:
        one_of_each = {part.run or part.path: part for part in parts}.values()
        return list(read_ahead(one_of_each, lambda part: read_statistics(self._store, part), footers=True))

    def _images(
        self, *, model: str | None = None, run_id: str | None = None, date: dt.date | str | None = None
    ) -> PartFiles:
        return self._files("results", RESULTS, self._combined(model, run_id, date))

    def _combined(self, model: str | None, run_id: str | None, date: dt.date | str | None) -> PartFilter:
        self._check_filter(PartFilter().combined(model, run_id, date))
        return self._part_filter.combined(model, run_id, date)

    def _run_states(self) -> list[RunState]:
        with start_blocking_portal() as portal:
            return portal.call(partial(list_runs, self._store, now=dt.datetime.now(dt.UTC)))

    def _files(self, table: str, schema: pa.Schema, part_filter: PartFilter) -> PartFiles:
        parts = tuple(part for part in self._parts if part.table == table and part_filter.matches(part))
        # a run has one row per image
        may_repeat = table == "results" and not self._all_runs and part_filter.run_id is None
        newest = self._newest.setdefault(parts, NewestRows(self._store, parts)) if may_repeat else None
        return self._part_files(parts, schema, run_id=part_filter.run_id, arns=part_filter.arns, newest=newest)

    def _part_files(
        self,
        parts: Sequence[PublishedPart],
        schema: pa.Schema,
        *,
        run_id: str | None = None,
        arns: Sequence[str] = (),
        newest: NewestRows | None = None,
    ) -> PartFiles:
        columns = pa.schema([*schema, *PARTITION])
        return PartFiles(
            self._store, parts, columns, run_id=run_id, arns=arns, newest=newest, thresholds=self._thresholds
        )

    def _scan(self, files: PartFiles) -> pl.LazyFrame:
        return register_io_source(files.frames, schema=pl.DataFrame(files.schema.empty_table()).schema, is_pure=True)


def open_results(
    root: str,
    *,
    model: str | None = None,
    run_id: str | None = None,
    date: dt.date | str | None = None,
    all_runs: bool = False,
    thresholds: Thresholds | float | None = None,
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
        all_runs: all rows of an image that several runs scored, instead of the newest of each model.
        thresholds: leave out labels with a lower confidence: one number from 0 to 100, or one per label.
        aws: for an S3 root; as the AWS CLI would by default.
        profile: for an S3 root without `aws`.
        region: likewise.

    Raises:
        OutputError: there is no output root there, or it can't be read.
        UsageError: `root` is neither, `date` is no day, nothing matches `model`, `run_id` and `date`, or a threshold is
            below the one with which images were scored.
        CredentialsError: there are none for an S3 root.
    """
    store = open_root(root, profile=profile, region=region) if aws is None else Store.open(root, aws=aws)
    results = Results(
        store,
        published_parts(store),
        part_filter=PartFilter().combined(model, run_id, date),
        all_runs=all_runs,
        thresholds=_applied(thresholds),
    )
    results.check()
    return results


def _applied(thresholds: Thresholds | float | None) -> Thresholds | None:
    return Thresholds(default=float(thresholds)) if isinstance(thresholds, int | float) else thresholds


def shown_model() -> pl.Expr:
    """The model of a row of any frame as people tell it from the others: its name, or its ARN where others share it.

    Both are accepted as `model`.
    """
    shared = pl.col("model_arn").n_unique().over("model") > 1
    return pl.when(shared).then("model_arn").otherwise("model").alias("model")


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
