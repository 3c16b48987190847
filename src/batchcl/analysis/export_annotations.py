"""Exports results to the formats of labelling tools and trainers: COCO, YOLO, Label Studio, CVAT, Ground Truth, CSV."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import aiohttp
import anyio.to_thread
import polars as pl
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.analysis.results import Results, shown_model
from batchcl.annotations.coco import CocoWriter
from batchcl.annotations.cvat import CvatWriter
from batchcl.annotations.label_studio import LabelStudioWriter
from batchcl.annotations.scored import ImageWriter, ScoredBox, ScoredImage, ScoredLabel, UnwritableError
from batchcl.annotations.tables import CsvWriter, ManifestWriter
from batchcl.annotations.yolo import YoloWriter
from batchcl.arns import ModelArn
from batchcl.aws.buckets import s3_error
from batchcl.aws.errors import S3_DENIED, error_code
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import CallError, ErrorCode, OutputError, SourceError, UnreachableError, UsageError
from batchcl.extras import require_extra
from batchcl.groundtruth import parse_extra
from batchcl.images import MAX_BYTES_S3, escape_name
from batchcl.imaging.decode import upright_size
from batchcl.runs.layout import check_outside_root
from batchcl.runs.schema import RESULTS
from batchcl.sources.from_results import COLUMNS, ROW_INDEX, condition_columns, condition_rows
from batchcl.sources.where import Condition

__all__ = ["EXPORT_FORMATS", "SEVERAL_ROWS", "AnnotationExport", "ExportFormat", "SkippedImage", "export_annotations"]

ExportFormat: TypeAlias = Literal["coco", "yolo", "label-studio", "cvat", "ground-truth", "csv"]

EXPORT_FORMATS: Final[tuple[ExportFormat, ...]] = get_args(ExportFormat)

_FOLDERS: Final[dict[ExportFormat, frozenset[str]]] = {
    "coco": frozenset({"instances.json", "results.json", "results-labels.json"}),
    "yolo": frozenset({"data.yaml", "images.txt", "labels", "predictions", "images"}),
    "label-studio": frozenset({"tasks.json", "config.xml"}),
}
"""What the formats that are directories contain; `images` of YOLO is where its users put the images."""

_SIZED: Final = frozenset({"coco", "cvat", "ground-truth"})
_NAMES_ARE_RELATIVE: Final = frozenset({"coco", "cvat", "yolo"})
SEVERAL_ROWS: Final = frozenset({"csv", "label-studio"})

_ROWS_AT_ONCE: Final = 500_000
"""Rows in memory; a larger root is read several times, a part of the images each time."""

_BATCH_ROWS: Final = 1000
_READS_AT_ONCE: Final = 32
_HEADER_BYTES: Final = 64 * 1024
_MEMBER: Final = ".tar#"
_OF_ONE_OBJECT: Final = (
    dict.fromkeys(S3_DENIED, "access denied")
    | dict.fromkeys(("NoSuchKey", "NoSuchVersion", "404"), "it does not exist")
    | {"InvalidRange": "it is empty", "InvalidObjectState": "it is archived"}
)
"""Errors of S3 that concern one object."""

_COLUMNS: Final = (
    "uri",
    "bucket",
    "key",
    "version_id",
    "model",
    "model_arn",
    "run_id",
    "date",
    "scored_at",
    "labels",
    "extra",
)


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """An image that is not in the export, and why."""

    uri: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationExport:
    """The result of an export.

    Attributes:
        form: the format.
        out: the file or directory that was written.
        relative_to: what the names of images are relative to; None if they are URIs.
        images: number of images in it.
        labels: number of labels of whole images in the results that were selected.
        boxes: number of boxes likewise.
        skipped: images that could not be written.
    """

    form: ExportFormat
    out: str
    relative_to: str | None
    images: int
    labels: int
    boxes: int
    skipped: tuple[SkippedImage, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


async def export_annotations(
    results: Results,
    form: ExportFormat,
    out: str | os.PathLike[str],
    *,
    aws: Aws | None = None,
    uris: Collection[str] | None = None,
    where: str | None = None,
    relative_to: str | None = None,
    image_size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> AnnotationExport:
    """Write the scored images of an output root, with their labels, boxes and scores, in another format.

    Results have boxes as ratios. COCO, CVAT and boxes of Ground Truth need pixels: the size of an image is
    `image_size`, else that of the manifest that was scored, else that of the image's header, which is read from disk or
    S3 (64 KB of each image). An image whose size can't be read is skipped.

    Args:
        results: as returned by `open_results`, with the rows and thresholds to export.
        form: the format.
        out: a new file or directory, which appears when it is complete.
        aws: to read the headers of images in S3; by default with the settings of the AWS CLI.
        uris: only these images; those without a result are reported as skipped. None for all.
        where: a condition as of `run --where`; all labels of the images that match are exported.
        relative_to: directory or `s3://bucket/prefix` that contains all images; the names of images are relative to it.
            By default URIs are used; in COCO, YOLO and CVAT names relative to the folder that contains all images.
        image_size: (width, height) in pixels, the same for all images.
        overwrite: replace what is at `out`.

    Raises:
        UsageError: `out` exists, or is inside the root; several models or rows of an image where the format has one;
            no image matches; an image is not below `relative_to`; labels that the format can't have.
        OutputError: the root can't be read.
        CredentialsError: headers of images have to be read from S3, and there are no credentials.
    """
    target = _checked_target(results, form, out, overwrite=overwrite)
    condition = None if where is None else Condition(where)
    if condition is not None:
        condition.check(COLUMNS)
    if results.all_runs and form not in SEVERAL_ROWS:
        raise UsageError(
            f"exporting all runs as {form} failed: it has one row for each image; omit --all-runs, or select a run "
            "with --run",
            code=ErrorCode.NOT_EXPORTABLE,
        )
    if form in _SIZED and image_size is None:
        require_extra("images", f"exporting as {form} without --image-size")
    wanted = None if uris is None else pl.Series("uri", list(dict.fromkeys(uris)), pl.String)
    rows = await anyio.to_thread.run_sync(partial(_Rows.open, results, condition, wanted, several=form in SEVERAL_ROWS))
    overview = await anyio.to_thread.run_sync(_overview, rows, form)
    base = overview.common_folder if relative_to is None and form in _NAMES_ARE_RELATIVE else relative_to
    skipped = [SkippedImage(uri, "it has no result that matches") for uri in overview.missing]
    images = 0
    with _staged(target) as staged:
        writer = _open_writer(form, staged, overview)
        try:
            async with AsyncExitStack() as stack:
                sizes = _Sizes(aws or Aws.from_environment(), stack, form, fixed=image_size)
                write = partial(_write, writer, name_of=_namer(base), skipped=skipped)
                for part in range(rows.parts):
                    frame = await anyio.to_thread.run_sync(rows.read, part)
                    for batch in _batches(frame):
                        images += await anyio.to_thread.run_sync(write, batch, await sizes.of(batch))
        finally:
            writer.close()
        if not images:
            raise UsageError(
                f"exporting as {form} failed: none of the {len(skipped):,} images can be written; {skipped[0].uri}: "
                f"{skipped[0].reason}",
                code=ErrorCode.NOT_EXPORTABLE,
            )
    return AnnotationExport(
        form=form,
        out=str(target),
        relative_to=base,
        images=images,
        labels=overview.labels,
        boxes=overview.boxes,
        skipped=tuple(skipped),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows to export, in parts that fit into memory; all rows of an image are in one part."""

    results: Results
    condition: Condition | None
    wanted: pl.Series | None
    several: bool
    parts: int
    only: list[pl.DataFrame]

    @classmethod
    def open(cls, results: Results, condition: Condition | None, wanted: pl.Series | None, *, several: bool) -> _Rows:
        count = int(results.images().select(pl.len()).collect(engine="in-memory").item())
        parts = 1 if wanted is not None else max(math.ceil(count / _ROWS_AT_ONCE), 1)
        return cls(results, condition, wanted, several, parts, [])

    def read(self, part: int) -> pl.DataFrame:
        """The rows of a part, sorted by uri; without `several`, only the newest row of an image. Blocks."""
        if self.only:
            return self.only[0]
        frame = self.results.images()
        if self.wanted is not None:
            frame = frame.filter(pl.col("uri").is_in(self.wanted.implode()))
        if self.parts > 1:
            frame = frame.filter(pl.col("uri").hash() % self.parts == part)
        needed = frozenset() if self.condition is None else condition_columns(self.condition)
        more = [name for name in RESULTS.names if name in needed and name not in _COLUMNS]
        rows = frame.select(*_COLUMNS, *more).collect(engine="in-memory")
        rows = rows.sort("uri", "model_arn", "scored_at", "run_id", descending=[False, False, True, False])
        if not self.several:
            _check_one_model(rows)
            rows = rows.unique("uri", keep="first", maintain_order=True)
        if self.condition is not None:
            tested = condition_rows(rows.with_columns(status=pl.lit("scored")), self.condition)
            rows = rows[tested.filter(self.condition.matches(tested))[ROW_INDEX].unique(maintain_order=True)]
        rows = rows.select(_COLUMNS)
        if self.parts == 1:
            self.only.append(rows)
        return rows


@dataclass(frozen=True, slots=True)
class _Overview:
    """What is known before the first row is written: the distinct labels, sorted, and wanted URIs without a row."""

    names: list[str]
    labels: int
    boxes: int
    common_folder: str | None
    missing: list[str]


def _overview(rows: _Rows, form: ExportFormat) -> _Overview:
    names: set[str] = set()
    uris: list[str] = []
    labels = boxes = 0
    for part in range(rows.parts):
        frame = rows.read(part)
        if frame.is_empty():
            continue
        each = frame["labels"].explode(empty_as_null=False, keep_nulls=False).struct
        names.update(each.field("name").unique())
        located = len(each.field("left").drop_nulls())
        boxes += located
        labels += len(each.field("name")) - located
        uris += [str(frame["uri"].min()), str(frame["uri"].max())]
    if not uris:
        raise UsageError(
            f"exporting as {form} failed: {rows.results.root} has no scored image that matches",
            code=ErrorCode.NO_RESULTS,
        )
    if form == "yolo" and not boxes:
        raise UsageError(
            "exporting as yolo failed: the results have no boxes, and YOLO has no labels of whole images",
            code=ErrorCode.NOT_EXPORTABLE,
        )
    missing = (
        [] if rows.wanted is None else rows.wanted.filter(~rows.wanted.is_in(rows.read(0)["uri"].implode())).to_list()
    )
    return _Overview(sorted(names), labels, boxes, _common_folder(min(uris), max(uris)), missing)


def _common_folder(first: str, last: str) -> str | None:
    """The deepest folder that contains all URIs from the first to the last by name; None for several buckets."""
    same = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    folder = first[:same].rpartition("/")[0]
    return folder if folder not in {"", "s3:", "s3:/"} else None


def _check_one_model(rows: pl.DataFrame) -> None:
    models = rows.select("model", "model_arn").unique().select(shown_model()).to_series().sort().to_list()
    if len(models) > 1:
        raise UsageError(
            f"the results are from {len(models)} models, {', '.join(models)}; choose one with --model, or one run "
            "with --run",
            code=ErrorCode.SEVERAL_MODELS,
        )


def _batches(frame: pl.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """The rows in lists of about `_BATCH_ROWS`, with all rows of an image in one."""
    begin = 0
    for length in (frame["uri"].rle_id() // _BATCH_ROWS).rle().struct.field("len"):
        yield frame.slice(begin, length).to_dicts()
        begin += length


def _open_writer(form: ExportFormat, path: Path, overview: _Overview) -> ImageWriter:
    if form in _FOLDERS:
        path.mkdir()
    if form == "label-studio":
        return LabelStudioWriter(path, overview.names, has_boxes=overview.boxes > 0, has_choices=overview.labels > 0)
    writers: dict[str, Callable[[Path, Sequence[str]], ImageWriter]] = {
        "coco": CocoWriter,
        "yolo": YoloWriter,
        "cvat": CvatWriter,
        "ground-truth": ManifestWriter,
        "csv": CsvWriter,
    }
    return writers[form](path, overview.names)


_Size: TypeAlias = tuple[int, int] | str | None
"""(width, height), why it can't be read, or None if it is not needed."""

_UNKNOWN: Final = (0, 0)


def _write(
    writer: ImageWriter,
    rows: Sequence[dict[str, Any]],
    sizes: Sequence[_Size],
    *,
    name_of: Callable[[str], str],
    skipped: list[SkippedImage],
) -> int:
    """Write rows that are sorted by uri; returns the number of images written, and adds the others to `skipped`."""
    written = 0
    for uri, group in groupby(zip(rows, sizes, strict=True), key=lambda item: str(item[0]["uri"])):
        name = name_of(uri)
        images = []
        try:
            for row, size in group:
                if isinstance(size, str):
                    raise UnwritableError(size)  # noqa: TRY301 - as the writers do
                images.append(_scored(row, name, size))
            writer.add(images)
        except UnwritableError as error:
            skipped.append(SkippedImage(uri, str(error)))
        else:
            written += 1
    return written


def _scored(row: dict[str, Any], name: str, size: tuple[int, int] | None) -> ScoredImage:
    labels = [
        ScoredLabel(
            each["name"],
            each["confidence"],
            None if each["left"] is None else ScoredBox(each["left"], each["top"], each["width"], each["height"]),
        )
        for each in row["labels"]
    ]
    labels.sort(key=lambda label: (-label.confidence, label.name))
    columns = ("uri", "version_id", "model", "model_arn", "run_id", "date", "scored_at")
    return ScoredImage(name=name, size=size, labels=labels, **{column: row[column] for column in columns})


def _namer(folder: str | None) -> Callable[[str], str]:
    """A function that returns the name of an image relative to `folder`; of None, the URI."""
    if folder is None:
        return str
    base = folder.rstrip("/") if folder.startswith("s3://") else escape_name(os.path.abspath(folder)).rstrip("/")

    def name_of(uri: str) -> str:
        if not uri.startswith(f"{base}/"):
            raise UsageError(
                f"the image {uri} is not below {base}; name a folder that has all images", code=ErrorCode.NOT_EXPORTABLE
            )
        return uri[len(base) + 1 :]

    return name_of


class _Sizes:
    """The sizes of images in pixels, as far as the format needs them."""

    def __init__(self, aws: Aws, stack: AsyncExitStack, form: ExportFormat, *, fixed: tuple[int, int] | None) -> None:
        self._aws = aws
        self._stack = stack
        self._form = form
        self._fixed = fixed
        self._client: Any = None

    async def of(self, rows: Sequence[dict[str, Any]]) -> list[_Size]:
        """For each row its size, or why it can't be read."""
        known = [self._known(row) for row in rows]
        unknown = [row for row, size in zip(rows, known, strict=True) if size == _UNKNOWN]
        if self._client is None and any(row["bucket"] for row in unknown):
            await self._aws.credentials.current()
            region = self._aws.settings.region or ModelArn.parse(rows[0]["model_arn"]).region
            opened = self._aws.s3(region=region, connections=_READS_AT_ONCE)
            self._client = await self._stack.enter_async_context(opened)
        read = iter(await gather(self._read, unknown, at_once=_READS_AT_ONCE))
        return [next(read) if size == _UNKNOWN else size for size in known]

    def _known(self, row: dict[str, Any]) -> _Size:
        """The size without a look at the image, or `_UNKNOWN`."""
        if not self._needs(row):
            return None
        return self._fixed or _stated_size(row) or _UNKNOWN

    def _needs(self, row: dict[str, Any]) -> bool:
        if self._form == "ground-truth":
            return any(label["left"] is not None for label in row["labels"])
        return self._form in _SIZED

    async def _read(self, row: dict[str, Any]) -> _Size:
        if _MEMBER in row["key"].lower():
            return "it is in an archive, which is not read; state the size of all images with --image-size"
        try:
            for size_bytes in (_HEADER_BYTES, MAX_BYTES_S3):
                if row["bucket"]:
                    data = await self._read_object(row, size_bytes)
                else:
                    data = await anyio.to_thread.run_sync(_read_file, row["key"], size_bytes)
                try:
                    return await anyio.to_thread.run_sync(upright_size, data)
                except CallError as error:
                    reason = f"its size can't be read: {error}"
                if len(data) < size_bytes:
                    break
        except UnwritableError as error:
            return str(error)
        return reason

    async def _read_object(self, row: dict[str, Any], size_bytes: int) -> bytes:
        """The beginning of an S3 object; raises `UnwritableError` if this object can't be read."""
        version = {} if row["version_id"] is None else {"VersionId": row["version_id"]}
        try:
            response = await self._client.get_object(
                Bucket=row["bucket"], Key=row["key"], Range=f"bytes=0-{size_bytes - 1}", **version
            )
            data = await response["Body"].read()
        except (ClientError, BotoCoreError, aiohttp.ClientError) as error:
            code = error_code(error) if isinstance(error, ClientError) else ""
            if code in _OF_ONE_OBJECT:
                raise UnwritableError(f"it can't be read from S3: {_OF_ONE_OBJECT[code]}") from error
            if isinstance(error, aiohttp.ClientError):
                raise UnreachableError(f"reading {row['uri']} failed: {error}; repeat the command") from error
            raise s3_error(error, f"reading {row['uri']}", row["bucket"]) from error
        return bytes(data)


def _read_file(path: str, size_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size_bytes)
    except OSError as error:
        raise UnwritableError(f"it can't be read: {error.strerror}") from error


def _stated_size(row: dict[str, Any]) -> tuple[int, int] | None:
    """The size in the manifest that was scored."""
    if row["extra"] is None or '"image_size"' not in row["extra"]:
        return None
    try:
        return parse_extra(row["extra"], row["uri"]).image_size
    except SourceError:
        return None


def _checked_target(results: Results, form: ExportFormat, out: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The absolute path of `out`; raises `UsageError` if it must not be written."""
    text = os.fspath(out)
    if text.startswith("s3://"):
        raise UsageError(
            f"exporting to {text} failed: the export is written to disk; copy it to S3 afterwards",
            code=ErrorCode.INVALID_TARGET,
        )
    target = Path(os.path.expanduser(text)).absolute()
    check_outside_root(str(target), results.root, what="--out")
    if not os.path.lexists(target):
        return target
    if not overwrite:
        raise UsageError(
            f"exporting to {target} failed: it exists; name a new location, or replace it with --overwrite",
            code=ErrorCode.TARGET_EXISTS,
        )
    if target.is_dir() != (form in _FOLDERS):
        kind = "directory" if form in _FOLDERS else "file"
        raise UsageError(
            f"exporting to {target} failed: {form} is a {kind}, and there is something else",
            code=ErrorCode.TARGET_EXISTS,
        )
    others = {path.name for path in target.iterdir()} - _FOLDERS[form] if form in _FOLDERS else set()
    if others:
        raise UsageError(
            f"exporting to {target} failed: it has files that are not of an earlier export, such as "
            f"{min(others)!r}; name another location",
            code=ErrorCode.TARGET_EXISTS,
        )
    return target


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A path beside `target`, which replaces it if the block succeeds, and is removed otherwise."""
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}-", dir=target.parent))
        staged = folder / "new"
        yield staged
        if target.is_dir():
            target.rename(folder / "old")
        staged.rename(target)
    except OSError as error:
        raise OutputError(
            f"writing {target} failed: {error.strerror or error}; name a location with enough space that you may write",
            code=ErrorCode.WRITE_FAILED,
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
