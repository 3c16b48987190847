"""`batchcl show`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchcl.choices import Order
from batchcl.cli.output import (
    AllRuns,
    Csv,
    Date,
    Json,
    MinConfidence,
    Model,
    Profile,
    Region,
    Root,
    Run,
    ThresholdsFile,
    check_format,
    emit,
    open_root_results,
    printable,
)
from batchcl.cli.streams import write_line
from batchcl.errors import ExitCode

if TYPE_CHECKING:
    import polars as pl

__all__ = ["show"]

_MOST_ERRORS: Final = 10


def show(
    root: Root,
    uris: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URI...]", help="Only these images: s3://bucket/key or paths.", show_default=False),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New or empty directory for the pictures.")],
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="SQL",
            help="Condition on the columns of results and labels; an image is a candidate if any label matches.",
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        Order | None, typer.Option("--sort", help="Which images to choose (default: uncertain).", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="Maximum number of pictures (default: 20, or all named images without --sort).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of --sort random.")] = 0,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth",
            metavar="MANIFEST",
            help="For --sort wrong: Ground Truth manifest, local or s3:// (default: the manifest that was scored).",
            show_default=False,
        ),
    ] = None,
    max_px: Annotated[
        int | None,
        typer.Option(
            "--max-px",
            metavar="N",
            min=16,
            help="Shrink the longer side to N pixels (default: never).",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    run: Run = None,
    date: Date = None,
    all_runs: AllRuns = False,
    min_confidence: MinConfidence = None,
    thresholds: ThresholdsFile = None,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Write pictures of scored images with their stored boxes and labels; the model is not called.

    Sort orders: uncertain (smallest margin to another result), confidence (of the top label, or of
    the label that --where selects; lowest first), -confidence (highest first), newest, random, wrong (the top label is
    not a true label). The table of pictures is also in DIR/index.csv. Exit code 3: an image could not be shown.

    Examples:

      batchcl show out --out pictures

      batchcl show out --where "label = 'dog'" --sort confidence --limit 50 --out least-confident-dogs

      batchcl show out --sort wrong --truth test.manifest --out wrong

      batchcl show out s3://photos/a.jpg photos/b.png --out two
    """
    check_format(json=json, csv=csv)
    import anyio

    from batchcl.aws.session import Aws
    from batchcl.cli.evaluate import local_copy
    from batchcl.cli.signals import run_until_first_signal
    from batchcl.report.show import INDEX, show_results

    results = open_root_results(
        root,
        model=model,
        run=run,
        date=date,
        all_runs=all_runs,
        min_confidence=min_confidence,
        thresholds=thresholds,
        profile=profile,
        region=region,
    )
    with ExitStack() as stack:
        manifest = None if truth is None else stack.enter_context(local_copy(truth, profile=profile, region=region))
        work = partial(
            show_results,
            results,
            uris or (),
            out=out,
            where=where,
            sort=sort,
            limit=limit,
            seed=seed,
            truth=manifest,
            max_px=max_px,
            aws=Aws.from_environment(profile=profile, region=region),
        )
        index = anyio.run(run_until_first_signal, work)
    shown = index if json or csv else index.select("file", "reason", "labels", "uri")
    emit(shown, json=json, csv=csv)
    if _report(index, out / INDEX):
        raise typer.Exit(ExitCode.FAILURES)


def _report(index: pl.DataFrame, file: Path) -> bool:
    """Write what people should know to stderr. Returns whether an image has no picture."""
    failed = index.drop_nulls("error")
    for uri, error in failed.select("uri", "error").head(_MOST_ERRORS).iter_rows():
        write_line(printable(f"{uri}: {error}"))
    if failed.height > _MOST_ERRORS:
        write_line(f"and {failed.height - _MOST_ERRORS} more images; see {file}")
    changed = index["note"].is_not_null().sum()
    if changed:
        write_line(f"images that have changed since they were scored: {changed}; see the column note")
    write_line(f"{index.height - failed.height} pictures in {file.parent}" if index.height else "no image matches")
    return not failed.is_empty()
