"""`batchcl show`: writes pictures of scored images with their stored labels, without calling the model."""

from __future__ import annotations

import datetime as dt
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from csv import writer as csv_writer
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

import anyio.to_thread
import polars as pl

from batchcl.analysis.results import Results, open_results, shown_model
from batchcl.analysis.truth import Truth, carried_truth, read_truth
from batchcl.aws.session import Aws
from batchcl.choices import Order
from batchcl.errors import ErrorCode, OutputError, UsageError, command
from batchcl.extras import require_extra
from batchcl.images import escape_name
from batchcl.report.choose import COLUMNS, best, by_confidence, matching, most_uncertain, newest, random, wrong
from batchcl.report.pictures import PICTURE_COLUMNS, Picture, fetch_pictures
from batchcl.runs.layout import check_outside_root
from batchcl.sources.from_results import COLUMNS as CONDITION_COLUMNS
from batchcl.sources.from_results import condition_columns
from batchcl.sources.where import Condition
from batchcl.thresholds import Thresholds

__all__ = ["INDEX", "show", "show_results"]

INDEX: Final = "index.csv"

_CONCURRENCY: Final = 8
_QUALITY: Final = 90
_LIMIT: Final = 20
_LEAST_PX: Final = 16
_MAX_STEM: Final = 60
_SOME: Final = 3
_INDEXED_LABELS: Final = 5
_ROW: Final = "row of the results"
_BY_CONFIDENCE: Final = frozenset({Order.CONFIDENCE, Order.MOST_CONFIDENT})


async def show(
    root: str,
    uris: Sequence[str | os.PathLike[str]] = (),
    *,
    out: str | os.PathLike[str],
    where: str | None = None,
    sort: Order | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    truth: str | os.PathLike[str] | None = None,
    max_px: int | None = None,
    model: str | None = None,
    run_id: str | None = None,
    date: dt.date | str | None = None,
    all_runs: bool = False,
    thresholds: Thresholds | float | None = None,
    aws: Aws | None = None,
) -> pl.DataFrame:
    """Write pictures of scored images with their stored boxes and labels to `out`. The model is not called.

    ```python
    index = batchcl.show_sync("out", out="pictures", where="label = 'dog'", sort="confidence", limit=10)
    ```

    The pictures are JPEG files, upright, with the image-level labels in a caption. The file `index.csv` in the same
    directory has the returned rows.

    Args:
        root: what `--out` of the run was.
        uris: `s3://bucket/key` or paths of images that have a result; by default all images are candidates.
        out: a new or empty directory; it is not created if no image matches.
        where: condition on the columns of results and their labels, as in `Job.where` with `from_results`; an image is
            a candidate if any of its labels matches.
        sort: which candidates to choose, see `Order`; by default `Order.UNCERTAIN` (or `Order.NEWEST`, if no
            candidate has a label), or the order of `uris`.
        limit: how many pictures at most; by default 20, or all of `uris` without `sort`.
        seed: of `Order.RANDOM`.
        truth: local Ground Truth manifest for `Order.WRONG`; by default the labels of the manifest that was scored.
        max_px: maximum of a picture's longer side without the caption; None for the size of the image.
        model: images of this model only; see `open_results`.
        run_id: images of this run only.
        date: images of runs that started on this UTC day only.
        all_runs: all rows of an image that several runs scored, instead of the newest of each model.
        thresholds: leave out labels with a lower confidence. For `Order.UNCERTAIN` they are those that a confidence is
            compared with, and the labels below them remain.
        aws: for a root or images in S3.

    Returns:
        One row per chosen image, in the order of `sort`: `file` (null if there is no picture), `uri`, `version_id`,
        `model`, `labels` (text, the five most confident), `reason` (why it was chosen), `note` (what is special about
        the picture, such as that the image has changed since it was scored) and `error` (why there is no picture).

    Raises:
        UsageError: an argument is not valid, an image of `uris` has no result, or Pillow is not installed.
        OutputError: the root can't be read, or `out` can't be written.
        CredentialsError: there are none for S3.
    """
    aws = aws or Aws()
    opened = partial(
        open_results,
        root,
        model=model,
        run_id=run_id,
        date=date,
        all_runs=all_runs,
        thresholds=thresholds,
        aws=aws,
    )
    results = await anyio.to_thread.run_sync(opened, abandon_on_cancel=True)
    return await show_results(
        results, uris, out=out, where=where, sort=sort, limit=limit, seed=seed, truth=truth, max_px=max_px, aws=aws
    )


async def show_results(
    results: Results,
    uris: Sequence[str | os.PathLike[str]] = (),
    *,
    out: str | os.PathLike[str],
    where: str | None,
    sort: Order | str | None,
    limit: int | None,
    seed: int,
    truth: str | os.PathLike[str] | None,
    max_px: int | None,
    aws: Aws,
) -> pl.DataFrame:
    """`show` for a root that is open."""
    folder = Path(out)
    check_outside_root(str(folder), results.root, what="--out")
    condition = _check(folder, where=where, sort=sort, limit=limit, truth=truth, max_px=max_px)
    order = None if sort is None and uris else Order(sort or Order.UNCERTAIN)
    most = _LIMIT if limit is None else limit
    candidates = _Candidates(
        results.with_all_labels() if order is Order.UNCERTAIN else results, [os.fspath(uri) for uri in uris], condition
    )

    def choose() -> pl.DataFrame:
        if order is None:
            named = candidates.named()
            return named if limit is None else named.head(limit)
        chooser = _chooser(
            order,
            limit=most,
            seed=seed,
            thresholds=results.thresholds,
            truth=_truth(results, truth) if order is Order.WRONG else None,
        )
        chosen = candidates.best(chooser, most, by_matching_labels=order in _BY_CONFIDENCE)
        if sort is not None or not chosen.is_empty():
            return chosen
        unlabelled = _Candidates(results, (), condition)
        return unlabelled.best(partial(newest, limit=most), most, by_matching_labels=False)

    chosen = await anyio.to_thread.run_sync(choose, abandon_on_cancel=True)
    pictures = fetch_pictures(
        chosen, aws=aws, max_px=max_px, draw=True, quality=_QUALITY, concurrency=_CONCURRENCY, has_caption=True
    )
    names = list(_file_names(chosen["key"]))
    fetched: list[Picture] = []
    async with aclosing(pictures):
        async for picture in pictures:
            if picture.jpeg:
                await anyio.to_thread.run_sync(_write, folder / names[picture.row], picture.jpeg)
            fetched.append(replace(picture, jpeg=b""))
    table = _index(chosen, fetched, names)
    if fetched:
        await anyio.to_thread.run_sync(_write, folder / INDEX, _csv(table))
    return table


def _check(
    folder: Path,
    *,
    where: str | None,
    sort: Order | str | None,
    limit: int | None,
    truth: str | os.PathLike[str] | None,
    max_px: int | None,
) -> Condition | None:
    """Check what can be checked before anything is read. Returns the condition."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} is not at least 1")
    if max_px is not None and max_px < _LEAST_PX:
        raise UsageError(f"--max-px {max_px} is not at least {_LEAST_PX}")
    if sort is not None and sort not in list(Order):
        raise UsageError(f"--sort {sort} is not one of {', '.join(Order)}")
    if truth is not None and sort != Order.WRONG:
        raise UsageError("--truth needs --sort wrong", code=ErrorCode.CONFLICTING_OPTIONS)
    if str(folder).startswith("s3:"):
        raise UsageError(
            f"--out {folder} is not a local directory; write the pictures to one, then `aws s3 cp` it",
            code=ErrorCode.INVALID_TARGET,
        )
    require_extra("images", "`batchcl show`")
    condition = None if where is None else Condition(where)
    if condition is not None:
        condition.check(CONDITION_COLUMNS)
    try:
        is_empty = not folder.exists() or next(folder.iterdir(), None) is None
    except NotADirectoryError as error:
        raise UsageError(f"--out {folder} is not a directory; name a new one", code=ErrorCode.INVALID_TARGET) from error
    except OSError as error:
        raise OutputError(
            f"--out {folder} can't be used: {error.strerror}; name another directory", code=ErrorCode.WRITE_FAILED
        ) from error
    if not is_empty:
        raise UsageError(
            f"--out {folder} is not empty, and its files are not overwritten; name a new directory",
            code=ErrorCode.TARGET_EXISTS,
        )
    return condition


class _Candidates:
    """The images to choose from.

    Args:
        results: of the root.
        uris: only these images, if any.
        condition: only images that match it, if not None.
    """

    def __init__(self, results: Results, uris: Sequence[str], condition: Condition | None) -> None:
        self._results = results
        self._named = [uri if uri.startswith("s3://") else escape_name(os.path.abspath(uri)) for uri in uris]
        self._condition = condition
        used = {*COLUMNS, *PICTURE_COLUMNS, "model", *(condition_columns(condition) if condition else ())}
        schema = results.images().collect_schema()
        self._schema = {name: dtype for name, dtype in schema.items() if name in used}

    def named(self) -> pl.DataFrame:
        """The named images that match, in their order."""
        return self._matching(self._named_rows())[0].with_columns(pl.lit("named").alias("reason"))

    def best(
        self, choose: Callable[[pl.DataFrame], pl.DataFrame], limit: int, *, by_matching_labels: bool
    ) -> pl.DataFrame:
        """The best images, chosen by all of their labels or by those that match the condition."""

        def choose_from(frame: pl.DataFrame) -> pl.DataFrame:
            complete, reduced = self._matching(frame)
            chosen = choose((reduced if by_matching_labels else complete).with_row_index(_ROW))
            return complete[chosen[_ROW]].with_columns(chosen.select("reason", "rank"))

        frames = [self._named_rows()] if self._named else self._results.frames(list(self._schema))
        return best(chain([pl.DataFrame(schema=self._schema)], frames), choose_from, limit=limit)

    def _matching(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The matching images, with all of their labels and with the matching ones."""
        if self._condition is None:
            return frame, frame
        reduced = matching(frame.with_row_index(_ROW), self._condition)
        return frame[reduced[_ROW]], reduced.drop(_ROW)

    def _named_rows(self) -> pl.DataFrame:
        order = pl.DataFrame({"uri": list(dict.fromkeys(self._named))})
        images = self._results.images().select(list(self._schema)).filter(pl.col("uri").is_in(self._named))
        rows = order.join(images.collect(engine="in-memory"), on="uri", how="left", maintain_order="left")
        missing = rows.filter(pl.col("model_arn").is_null())["uri"]
        if missing.is_empty():
            return rows.select(list(self._schema))
        more = f" and {missing.len() - _SOME} more" if missing.len() > _SOME else ""
        query = command("query", self._results.root, "SELECT uri FROM results")
        raise UsageError(
            f"there is no result of {', '.join(missing[:_SOME])}{more}; {query} lists the images",
            code=ErrorCode.NO_RESULTS,
        )


def _chooser(
    order: Order, *, limit: int, seed: int, thresholds: Thresholds | None, truth: Truth | None
) -> Callable[[pl.DataFrame], pl.DataFrame]:
    match order:
        case Order.UNCERTAIN:
            known = thresholds or Thresholds()
            return partial(most_uncertain, limit=limit, thresholds=known.labels, default_threshold=known.default)
        case Order.CONFIDENCE | Order.MOST_CONFIDENT:
            return partial(by_confidence, limit=limit, descending=order is Order.MOST_CONFIDENT)
        case Order.NEWEST:
            return partial(newest, limit=limit)
        case Order.RANDOM:
            return partial(random, limit=limit, seed=seed)
        case Order.WRONG:
            assert truth is not None
            return partial(wrong, truth=truth, limit=limit)


def _truth(results: Results, manifest: str | os.PathLike[str] | None) -> Truth:
    return carried_truth(results.images()) if manifest is None else read_truth(manifest, images=results.images())


def _file_names(keys: Iterable[str]) -> Iterator[str]:
    """A name for each image that is safe on any file system: its number, and the letters of the key's last part."""
    keys = list(keys)
    digits = max(3, len(str(len(keys))))
    for number, key in enumerate(keys, 1):
        last = unicodedata.normalize("NFC", re.split(r"[/\\#]", key)[-1])
        stem = "".join(each if _is_safe(each) else "_" for each in os.path.splitext(last)[0][:_MAX_STEM])
        yield f"{number:0{digits}}-{stem or '_'}.jpg"


def _is_safe(character: str) -> bool:
    """Whether it is a letter, mark, digit, `-`, `_` or `.` that the file system's encoding has."""
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return character in "-_." or unicodedata.category(character)[0] in "LMN"


def _write(path: Path, data: bytes) -> None:
    """Write a new file, in a directory that is created if it does not exist."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(
            f"writing {path} failed: {error.strerror}; check --out", code=ErrorCode.WRITE_FAILED
        ) from error


def _index(chosen: pl.DataFrame, pictures: Sequence[Picture], names: Sequence[str]) -> pl.DataFrame:
    label = pl.element().struct
    texts = pl.format("{} {}", label.field("name"), label.field("confidence").cast(pl.Float64).round(1))
    labels = pl.col("labels").list.head(_INDEXED_LABELS).list.eval(texts).list.join(", ")
    files = [None if picture.error else names[picture.row] for picture in pictures]
    return chosen.with_columns(shown_model()).select(
        pl.Series("file", files, pl.String),
        "uri",
        "version_id",
        "model",
        pl.when(pl.col("labels").list.len() > _INDEXED_LABELS)
        .then(pl.format("{} and {} more", labels, pl.col("labels").list.len() - _INDEXED_LABELS))
        .otherwise(labels)
        .alias("labels"),
        "reason",
        pl.Series("note", [picture.note or None for picture in pictures], pl.String),
        pl.Series("error", [picture.error or None for picture in pictures], pl.String),
    )


def _csv(table: pl.DataFrame) -> bytes:
    text = io.StringIO()
    lines = csv_writer(text, lineterminator="\n")
    lines.writerow(table.columns)
    lines.writerows(table.iter_rows())
    return text.getvalue().encode()
