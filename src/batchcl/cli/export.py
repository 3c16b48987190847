"""`batchcl export`: copies of the results in another location or format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchcl.cli.options import Sse, SseKmsKeyId
from batchcl.cli.output import (
    AllRuns,
    Date,
    Json,
    MinConfidence,
    Model,
    Profile,
    Region,
    Root,
    Run,
    ThresholdsFile,
    emit_object,
    open_root_results,
)
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.analysis.export_annotations import AnnotationExport, ExportFormat

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Copy results to another location or format.")


@app.callback()
def _group() -> None:
    pass


@app.command("parquet")
def parquet(
    root: Root,
    *,
    out: Annotated[
        str, typer.Option("--out", metavar="NEW", help="Destination: empty directory or s3://bucket/prefix.")
    ],
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="YYYY-MM-DD", help="Only runs that started before this UTC day.", show_default=False
        ),
    ] = None,
    target_mb: Annotated[
        float, typer.Option("--target-mb", min=1, help="Size of a file in MB; needs about ten times that in memory.")
    ] = 128,
    sse: Sse = None,
    sse_kms_key_id: SseKmsKeyId = None,
    json: Json = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Copy both tables into few large files, sorted by URI.

    Partitions, columns and rows stay the same, and ROOT is not changed. The manifest export.json is written last, after
    the rows were counted; a copy without it is incomplete.

    Examples:

      batchcl export parquet out --out archive

      batchcl export parquet s3://tables/labels --out s3://tables/labels-2026 --before 2027-01-01
    """
    import sys

    import anyio
    import orjson

    from batchcl.analysis.export import export_parquet
    from batchcl.choices import Encryption

    work = partial(
        export_parquet,
        root,
        out,
        before=before,
        target_bytes=int(target_mb * 1024 * 1024),
        encryption=Encryption(sse, sse_kms_key_id),
        profile=profile,
        region=region,
    )
    export = anyio.run(work)
    if json:
        sys.stdout.write(orjson.dumps(export.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode() + "\n")
        return
    copied = {
        **export.rows,
        "source files": sum(len(file.sources) for file in export.files),
        "files": len(export.files),
        "bytes": sum(file.size_bytes for file in export.files),
    }
    emit_object(copied, title=f"Exported {export.source} to {export.out}")


_MOST_SHOWN: Final = 5

_HELP: Final[dict[ExportFormat, str]] = {
    "coco": """Write boxes and labels as COCO: a directory with instances.json and results.json.

    The results are the list of scores that pycocotools reads; the instances have the same boxes as annotations. Labels
    of whole images are annotations without a box, and results-labels.json. An empty list is not written.

    Examples:

      batchcl export coco out --out coco

      batchcl export coco s3://tables/labels --date 2026-11-21 --relative-to s3://acme-photos/2026 --out coco
    """,
    "yolo": """Write boxes as YOLO: a directory with data.yaml, labels/ and predictions/, which have the scores.

    images.txt has the URI of each image. Copy the images into the folder images/ to train with them.

    Examples:

      batchcl export yolo out --out yolo
    """,
    "label-studio": """Write tasks with predictions for Label Studio: a directory with tasks.json and config.xml.

    Paste config.xml into the project's labelling interface, then import tasks.json. Images in S3 keep their URI; local
    files must be below --relative-to, which is Label Studio's LOCAL_FILES_DOCUMENT_ROOT.

    Examples:

      batchcl export label-studio out --where "top_confidence < 70" --out tasks

      batchcl export label-studio out --images uncertain/index.csv --relative-to /data/photos --out tasks
    """,
    "cvat": """Write boxes and tags as CVAT for images 1.1: an XML file for a task that has the images.

    Names are relative to the folder that contains all images, or to --relative-to; they must be those of the task.

    Examples:

      batchcl export cvat out --out annotations.xml
    """,
    "ground-truth": """Write a Ground Truth manifest, which Custom Labels and batchcl read.

    Examples:

      batchcl export ground-truth out --where "top_confidence > 95" --out sure.manifest
    """,
    "csv": """Write CSV with one row per label, and one for an image without labels.

    Examples:

      batchcl export csv out --out labels.csv

      batchcl export csv out --run 2026-11-21 --out labels.csv --overwrite
    """,
}


def _add(form: ExportFormat) -> None:
    def export(
        root: Root,
        *,
        out: Annotated[str, typer.Option("--out", metavar="NEW", help="File or directory to write.")],
        images: Annotated[
            Path | None,
            typer.Option(
                "--images",
                metavar="FILE",
                help="Only these images: index.csv of `batchcl show`, CSV with a column uri, or one URI per line.",
                show_default=False,
            ),
        ] = None,
        where: Annotated[
            str | None,
            typer.Option(
                "--where",
                metavar="SQL",
                help='Only images with a label that matches, such as "confidence < 60"; with all of their labels.',
                show_default=False,
            ),
        ] = None,
        relative_to: Annotated[
            str | None,
            typer.Option(
                "--relative-to",
                metavar="FOLDER",
                help="Directory or s3://bucket/prefix: write names relative to it instead of URIs.",
                show_default=False,
            ),
        ] = None,
        image_size: Annotated[
            str | None,
            typer.Option(
                "--image-size",
                metavar="WxH",
                help="Size of all images in pixels, instead of reading it from each image.",
                show_default=False,
            ),
        ] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
        min_confidence: MinConfidence = None,
        thresholds: ThresholdsFile = None,
        all_runs: AllRuns = False,
        model: Model = None,
        run: Run = None,
        date: Date = None,
        json: Json = False,
        profile: Profile = None,
        region: Region = None,
    ) -> None:
        import anyio

        from batchcl.analysis.export_annotations import SEVERAL_ROWS, export_annotations
        from batchcl.aws.session import Aws

        size = None if image_size is None else _parsed_size(image_size, form)
        results = open_root_results(
            root,
            model=model,
            run=run,
            date=date,
            all_runs=all_runs,
            min_confidence=min_confidence,
            thresholds=thresholds,
            of_one_model=form not in SEVERAL_ROWS,
            profile=profile,
            region=region,
        )
        work = partial(
            export_annotations,
            results,
            form,
            out,
            aws=Aws.from_environment(profile=profile, region=region),
            uris=None if images is None else _read_uris(images),
            where=where,
            relative_to=relative_to,
            image_size=size,
            overwrite=overwrite,
        )
        _show(anyio.run(work), root, json=json)

    export.__doc__ = _HELP[form]
    app.command(form)(export)


for _form in _HELP:
    _add(_form)


def _read_uris(path: Path) -> list[str]:
    import csv
    import io

    from batchcl.errors import UsageError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"reading --images {path} failed: {reason}; check the path") from error
    if "uri" in next(csv.reader(text.splitlines()[:1]), []):
        return [row["uri"] for row in csv.DictReader(io.StringIO(text)) if row["uri"]]
    return [line for line in text.splitlines() if line]


def _parsed_size(text: str, form: ExportFormat) -> tuple[int, int]:
    from batchcl.errors import ErrorCode, UsageError

    if form not in {"coco", "cvat", "ground-truth"}:
        raise UsageError(
            f"--image-size does not apply to {form}, which has no sizes; omit it", code=ErrorCode.CONFLICTING_OPTIONS
        )
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--image-size {text!r} is not a size; write it as 1920x1080")
    return int(width), int(height)


def _show(export: AnnotationExport, root: str, *, json: bool) -> None:
    """Print the result; exit with code 3 if images were skipped."""
    from batchcl.errors import ExitCode

    if json:
        emit_object(export.as_dict(), json=True)
    else:
        shown: dict[str, object] = {"images": export.images, "boxes": export.boxes, "labels of images": export.labels}
        if export.relative_to is not None:
            shown["names are relative to"] = export.relative_to
        emit_object(shown, title=f"Exported {root} to {export.out}")
    for each in export.skipped[:_MOST_SHOWN]:
        write_line(f"skipped {each.uri}: {each.reason}")
    if len(export.skipped) > _MOST_SHOWN:
        write_line(f"skipped {len(export.skipped) - _MOST_SHOWN:,} more; --json lists all")
    if export.skipped:
        raise typer.Exit(ExitCode.FAILURES)
