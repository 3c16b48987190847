"""Writes the report of an output root: what `batchcl report` and `batchcl.write_report` do."""

from __future__ import annotations

import datetime as dt
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import polars as pl

from batchcl.analysis.compare import Comparison, compare
from batchcl.analysis.evaluate import evaluate
from batchcl.analysis.results import Results, open_results
from batchcl.analysis.thresholds import choose_thresholds
from batchcl.analysis.truth import Truth, carried_truth, read_truth
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import ErrorCode, OutputError, SourceError, UsageError
from batchcl.extras import require_extra
from batchcl.quantities import parse_duration
from batchcl.report.contents import Contents, contents_of
from batchcl.report.gallery import (
    Chosen,
    GalleryPicture,
    choose_pictures,
    draw_pictures,
    fit_pictures,
)
from batchcl.report.page import Charts, Request, draw_charts, render
from batchcl.runs.layout import check_outside_root
from batchcl.runs.record import RunRecord, read_record, read_summary
from batchcl.runs.store import Store
from batchcl.sources.files import fetch
from batchcl.summary import Summary
from batchcl.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Report", "check_report_file", "write_report"]

_MIN_MB: Final = 1.0
_MAX_GALLERY: Final = 2_000
_ROWS: Final = (50, 20, 10, 5)
"""Rows of a table: fewer of them if long labels make the page too large."""
_PAGE_SHARE: Final = 0.6
"""Of the size limit, for the page without pictures, if fewer rows help."""
_MOST_RECORDS: Final = 20
_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report that was written.

    Attributes:
        path: of the file.
        size_bytes: of the file.
        pictures: number of pictures in it.
        unreadable: images that were chosen for it and can't be read.
        omitted: images that were chosen for it and had no room.
    """

    path: str
    size_bytes: int
    pictures: int
    unreadable: int
    omitted: int


async def write_report(
    root: str,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    run_id: str | None = None,
    date: dt.date | str | None = None,
    thresholds: Thresholds | float | None = None,
    baseline: str | None = None,
    truth: str | os.PathLike[str] | None = None,
    gallery: int = 60,
    max_mb: float = 5.0,
    aws: Aws | None = None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Report:
    """Write one HTML file about the results below `root`: counts, charts, failures, an evaluation, and pictures.

    The file loads nothing and can be opened from disk or an e-mail. The model is not called.

    ```python
    report = batchcl.write_report_sync("out", "report.html", date="2026-11-21")
    print(report.path, report.size_bytes)
    ```

    Args:
        root: what `--out` of the runs was.
        out: the file to write; an existing one is replaced.
        model: results of this model only; see `open_results`.
        run_id: results of this run only.
        date: results of runs that started on this UTC day only.
        thresholds: leave out labels with a lower confidence: one number from 0 to 100, or one per label.
        baseline: what to compare with: a run id, a date or a model, or a duration such as `7d` for all runs in this
            time before; see `compare`. By default the previous run of the project, if there is one. What is compared
            is `run_id` or `date`, or else the newest run.
        truth: true labels for the evaluation, in any form that `read_truth` reads; by default those of the manifest
            that was scored, if it has any.
        gallery: the largest number of pictures, 0 to 2,000.
        max_mb: the largest size of the file in megabytes (10⁶ bytes), at least 1.
        aws: for a root or images in S3.
        utcnow: the current time.

    Raises:
        UsageError: an argument is not valid, or the extra `report` is not installed.
        OutputError: the root can't be read, or `out` can't be written.
        SourceError: `truth` can't be read.
        CredentialsError: there are none for S3.
    """
    path = check_report_file(out, root, what="the report")
    _check_limits(gallery=gallery, max_mb=max_mb)
    aws = aws or Aws()
    selection = _Selection(
        root=root, model=model, run_id=run_id, date=date, thresholds=thresholds, baseline=baseline, aws=aws
    )
    results = await anyio.to_thread.run_sync(selection.open, abandon_on_cancel=True)
    async with _local_truth(truth, results, aws) as labels:
        read = partial(_read, results, selection, labels, gallery=gallery)
        contents, choice = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
    contents = replace(contents, **await _read_records(await Store.open_async(root, aws=aws), contents.runs))
    drawn = await anyio.to_thread.run_sync(draw_charts, contents, abandon_on_cancel=True)
    request = selection.request(path, contents, truth=truth, at=utcnow())
    max_bytes = int(max_mb * _MB)
    rows, size = _fitting_rows(contents, drawn, request, max_bytes)
    pictures = await draw_pictures(choice, aws=aws, max_bytes=max_bytes - size)

    def page(shown: Sequence[GalleryPicture]) -> bytes:
        return render(contents, drawn, request, rows=rows, pictures=shown).encode()

    fitting = await fit_pictures(pictures, size_of=lambda shown: len(page(shown)), max_bytes=max_bytes)
    data = page(fitting)
    await anyio.to_thread.run_sync(_write, path, data)
    return Report(
        path=str(path),
        size_bytes=len(data),
        pictures=sum(bool(each.picture.jpeg) for each in fitting),
        unreadable=sum(not each.picture.jpeg for each in pictures),
        omitted=len(pictures) - len(fitting),
    )


def check_report_file(out: str | os.PathLike[str], root: str, *, what: str) -> Path:
    """The path of a report that can probably be written.

    Args:
        out: the file.
        root: the output root that the report is about.
        what: the option in messages.

    Raises:
        UsageError: the extra `report` is not installed, or the path is in S3, in the output root, a
            directory, or in no directory.
    """
    require_extra("report", what)
    if os.fspath(out).startswith("s3://"):
        raise UsageError(
            f"{what} {out} is in S3; name a local file, and copy it with: aws s3 cp", code=ErrorCode.INVALID_TARGET
        )
    check_outside_root(os.fspath(out), root, what=what)
    path = Path(os.fspath(out)).expanduser()
    if os.path.isdir(path):
        raise UsageError(
            f"{what} {path} is a directory; name a file in it, such as report.html", code=ErrorCode.INVALID_TARGET
        )
    if not os.path.isdir(path.absolute().parent):
        raise UsageError(
            f"{what} {path} is in a directory that does not exist; create it first", code=ErrorCode.INVALID_TARGET
        )
    return path


def _check_limits(*, gallery: int, max_mb: float) -> None:
    if not 0 <= gallery <= _MAX_GALLERY:
        raise UsageError(f"a gallery can't have {gallery} pictures; the number must be 0 to {_MAX_GALLERY:,}")
    if not max_mb >= _MIN_MB:
        raise UsageError(f"a report can't be limited to {max_mb:g} MB; the limit must be {_MIN_MB:g} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """The rows that the report is about."""

    root: str
    model: str | None
    run_id: str | None
    date: dt.date | str | None
    thresholds: Thresholds | float | None
    baseline: str | None
    aws: Aws

    def open(self, *, all_runs: bool = False) -> Results:
        """The selected results, or those of all runs and dates. Blocks."""
        only: dict[str, Any] = {} if all_runs else {"run_id": self.run_id, "date": self.date}
        return open_results(
            self.root, model=self.model, **only, all_runs=all_runs, thresholds=self.thresholds, aws=self.aws
        )

    def compared(self, contents: Contents) -> str | None:
        """What is compared with the baseline: the selected run or date, or else the newest run or date."""
        if self.run_id is not None:
            return f"run:{self.run_id}"
        if self.date is not None:
            return f"date:{self.date!s}"
        if contents.runs.height:
            return f"run:{contents.runs['run_id'][0]}"
        return None if contents.nights.is_empty() else f"date:{contents.nights['date'].max()!s}"

    def request(
        self, path: Path, contents: Contents, *, truth: str | os.PathLike[str] | None, at: dt.datetime
    ) -> Request:
        """The title and the commands of the report."""
        given = {"model": self.model, "run": self.run_id, "date": None if self.date is None else str(self.date)}
        filters = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        selection = [f"{name} {value}" for name, value in given.items() if value is not None]
        thresholds: list[str] = []
        if isinstance(self.thresholds, int | float):
            thresholds = ["--min-confidence", f"{self.thresholds:g}"]
            selection.append(f"labels of confidence {self.thresholds:g} and above")
        elif self.thresholds is not None:
            thresholds = ["--thresholds", self.thresholds.origin]
            selection.append(f"labels above the thresholds of {self.thresholds.origin}")
        of_truth = [] if truth is None else ["--truth", os.fspath(truth)]
        of_baseline = [] if self.baseline is None else ["--baseline", self.baseline]
        now = self.compared(contents) or ""
        is_time = self.baseline is not None and _is_duration(self.baseline)
        before = ["--baseline", str(self.baseline)] if is_time else []
        of_model = [] if self.model is None else ["--model", self.model]
        compared = [*([self.baseline] if self.baseline is not None and not is_time else []), now, *before, *of_model]
        return Request(
            root=self.root,
            filters=filters,
            thresholds=thresholds,
            selection=", ".join(selection),
            truth=of_truth,
            compared=compared,
            command=[
                "batchcl",
                "report",
                self.root,
                *filters,
                *thresholds,
                *of_baseline,
                *of_truth,
                "--out",
                str(path),
            ],
            written_at=at,
        )


@asynccontextmanager
async def _local_truth(truth: str | os.PathLike[str] | None, results: Results, aws: Aws) -> AsyncIterator[Truth | None]:
    """The truth, which may be in S3."""
    if truth is None:
        yield None
        return
    name = os.fspath(truth)
    copy = await fetch(name, aws, region=aws.region) if name.startswith("s3://") else None
    try:
        read = partial(read_truth, copy or name, name=name, images=results.images())
        yield await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
    finally:
        if copy is not None:
            copy.unlink()


async def _read_records(store: Store, runs: pl.DataFrame) -> dict[str, Any]:
    """`records` and `summaries` of the newest runs, without damaged ones."""

    async def read(run_id: str) -> tuple[RunRecord | None, Summary | None]:
        try:
            return await read_record(store, run_id), await read_summary(store, run_id)
        except OutputError:
            return None, None

    newest = runs["run_id"].head(_MOST_RECORDS).to_list()
    found = await gather(read, newest, at_once=_MOST_RECORDS)
    records = {run_id: record for run_id, (record, _) in zip(newest, found, strict=True) if record is not None}
    summaries = {run_id: summary for run_id, (_, summary) in zip(newest, found, strict=True) if summary is not None}
    return {"records": records, "summaries": summaries}


def _read(
    results: Results, selection: _Selection, truth: Truth | None, *, gallery: int
) -> tuple[Contents, list[Chosen]]:
    """Read the tables, and choose the pictures. Blocks."""
    truth = truth or _carried_truth(results)
    history = selection.open(all_runs=True)
    contents = contents_of(results, history)
    contents = replace(contents, **_compared(selection, contents, history, examples=gallery))
    if truth is not None:
        contents = replace(contents, **_evaluated(results, truth))
    changes = {} if contents.comparison is None else _changed_images(contents.comparison)
    chosen = choose_pictures(results, limit=gallery, frequent=contents.frequent, truth=truth, changes=changes)
    return contents, chosen


def _compared(selection: _Selection, contents: Contents, history: Results, *, examples: int) -> dict[str, Any]:
    """`comparison` with the baseline, or `no_comparison`; nothing if there is only one run."""
    baseline = selection.baseline
    now = selection.compared(contents)
    if baseline is None and (now is None or history.runs().collect(engine="in-memory").height < 2):
        return {}
    is_time = baseline is not None and _is_duration(baseline)
    try:
        comparison = compare(
            selection.root,
            None if is_time else baseline,
            now,
            baseline=baseline if is_time else None,
            model=selection.model,
            thresholds=selection.thresholds,
            examples=examples,
            aws=selection.aws,
        )
    except UsageError as error:
        if baseline is not None:
            raise
        return {"no_comparison": f"{error}."}
    return {"comparison": comparison}


def _is_duration(text: str) -> bool:
    try:
        parse_duration(text)
    except UsageError:
        return False
    return True


def _changed_images(comparison: Comparison) -> dict[str, str]:
    """Uri → how the top label has changed, one image of each change in turn."""
    differ = comparison.top_labels.filter(pl.col("top_a") != pl.col("top_b"))
    in_turn = (
        differ.select(pl.format("{}, before: {}", "top_b", "top_a").alias("reason"), "examples")
        .with_columns(pl.int_ranges(pl.col("examples").list.len()).alias("turn"))
        .explode("examples", "turn")
        .drop_nulls()
        .sort("turn", maintain_order=True)
    )
    return dict(in_turn.select("examples", "reason").iter_rows())


def _carried_truth(results: Results) -> Truth | None:
    """The labels of the manifest that was scored; None if there are none: any list may carry something in `extra`."""
    has_extra = pl.col("extra").is_not_null().any()
    if not results.images().select(has_extra).collect(engine="in-memory").item():
        return None
    try:
        return carried_truth(results.images(), skip_bad_lines=True)
    except SourceError:
        return None


def _evaluated(results: Results, truth: Truth) -> dict[str, Any]:
    """`evaluation` and `thresholds`, or `no_evaluation`."""
    try:
        evaluation = evaluate(results, truth, failures=results.failures())
        # the intervals of a bootstrap are not shown
        thresholds = choose_thresholds(results.with_all_labels(), truth, resamples=1)
    except UsageError as error:
        return {"no_evaluation": f"{error}."}
    return {"evaluation": evaluation, "thresholds": thresholds}


def _fitting_rows(contents: Contents, drawn: Charts, request: Request, max_bytes: int) -> tuple[int, int]:
    """How many rows a table may have, and the size of the page without pictures then."""
    for rows in _ROWS:
        size = len(render(contents, drawn, request, rows=rows).encode())
        if size <= _PAGE_SHARE * max_bytes:
            break
    return rows, size


def _write(path: Path, data: bytes) -> None:
    """Write the file in one step, so that an earlier report remains if that fails."""
    partial_path = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        partial_path.write_bytes(data)
        partial_path.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial_path.unlink()
        raise OutputError(
            f"writing the report {path} failed: {error.strerror or error}; name another file",
            code=ErrorCode.WRITE_FAILED,
        ) from error
