"""`batchcl evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer

from batchcl.cli.output import (
    Csv,
    Date,
    Json,
    MinConfidence,
    Model,
    Profile,
    Region,
    RelativeTo,
    Root,
    Run,
    ThresholdsFile,
    check_format,
    emit,
    emit_object,
    open_root_results,
)

if TYPE_CHECKING:
    import polars as pl

    from batchcl.analysis.evaluate import Evaluation
    from batchcl.analysis.results import Results
    from batchcl.analysis.truth import Truth

__all__ = ["Attribute", "SkipBadLines", "TruthFile", "evaluate", "local_copy", "read_labels", "show_confusion"]

TruthFile = Annotated[
    str | None,
    typer.Option(
        "--truth",
        metavar="TRUTH",
        help="True labels: manifest, COCO, Label Studio or CVAT file, local or s3://, or directory with a folder "
        "per label (default: the labels of the manifest that was scored).",
        show_default=False,
    ),
]
Attribute = Annotated[
    str | None,
    typer.Option(help="Label attribute of the manifest (default: all, or the adjusted one).", show_default=False),
]
SkipBadLines = Annotated[bool, typer.Option("--skip-bad-lines", help="Skip and count invalid lines.")]

_WIDEST_MATRIX: Final = 12
_MOST_MISTAKES: Final = 20


def evaluate(
    root: Root,
    *,
    truth: TruthFile = None,
    attribute: Attribute = None,
    relative_to: RelativeTo = None,
    skip_bad_lines: SkipBadLines = False,
    model: Model = None,
    run: Run = None,
    date: Date = None,
    min_confidence: MinConfidence = None,
    thresholds: ThresholdsFile = None,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Compare results with true labels: precision, recall and F1 per label, confusion, mean average precision.

    Without --truth, the true labels are those of the manifest that was scored, which the results contain.

    --json writes one object with `summary`, `labels` and `confusion`; --csv writes the table of labels.

    Examples:

      batchcl evaluate out

      batchcl evaluate out --truth test.manifest

      batchcl evaluate out --truth test.manifest --model cats@v2 --min-confidence 70

      batchcl evaluate out --truth instances.json --relative-to s3://acme-photos/2026

      batchcl evaluate s3://bucket/out --truth test.manifest --json | jq .summary.macro_f1
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.evaluate import evaluate as evaluated

    results = open_root_results(
        root,
        model=model,
        run=run,
        date=date,
        min_confidence=min_confidence,
        thresholds=thresholds,
        of_one_model=True,
        profile=profile,
        region=region,
    )
    labels = read_labels(
        truth,
        results,
        attribute=attribute,
        skip_bad_lines=skip_bad_lines,
        relative_to=relative_to,
        profile=profile,
        region=region,
    )
    evaluation = evaluated(results, labels, min_confidence=min_confidence, failures=results.failures())
    if json:
        emit_object(_as_object(evaluation), json=True)
    elif csv:
        emit(evaluation.labels, csv=True)
    else:
        _show(evaluation, root)


def read_labels(
    truth: str | None,
    results: Results,
    *,
    attribute: str | None,
    skip_bad_lines: bool,
    relative_to: str | None,
    profile: str | None,
    region: str | None,
) -> Truth:
    """The true labels: of the file `truth`, or those in `results`."""
    from batchcl.analysis.truth import carried_truth, read_truth
    from batchcl.errors import ErrorCode, UsageError

    if truth is None and relative_to is not None:
        raise UsageError(
            "--relative-to needs --truth: the labels that the results contain are of their own images",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    if truth is None:
        return carried_truth(results.images(), attribute=attribute, skip_bad_lines=skip_bad_lines)
    with local_copy(truth, profile=profile, region=region) as path:
        return read_truth(
            path,
            name=truth,
            attribute=attribute,
            skip_bad_lines=skip_bad_lines,
            images=results.images(),
            relative_to=relative_to,
        )


@contextmanager
def local_copy(manifest: str, *, profile: str | None, region: str | None) -> Iterator[Path]:
    """The manifest, or a temporary copy if it is in S3, as the snapshots of trainings are."""
    if not manifest.startswith("s3://"):
        yield Path(manifest)
        return
    from batchcl.aws.session import Aws
    from batchcl.sources.files import fetch

    aws = Aws.from_environment(profile=profile, region=region)
    copy = anyio.run(partial(fetch, manifest, aws, region=aws.region))
    try:
        yield copy
    finally:
        copy.unlink()


def _as_object(evaluation: Evaluation) -> dict[str, object]:
    confusion = evaluation.confusion
    return {
        "summary": evaluation.summary,
        "labels": evaluation.labels.to_dicts(),
        "confusion": None if confusion is None else confusion.to_dicts(),
    }


def _show(evaluation: Evaluation, root: str) -> None:
    shown = {name: value for name, value in evaluation.summary.items() if value not in (None, [])}
    emit_object(shown, title=f"Evaluation of {root}")
    sys.stdout.write("\n")
    emit(evaluation.labels, title="Labels")
    if evaluation.confusion is not None:
        sys.stdout.write("\n")
        show_confusion(evaluation.confusion)


def show_confusion(confusion: pl.DataFrame, *, values: str = "images") -> None:
    """A matrix of `values`, counts or shares, if it fits; else the most frequent mistakes."""
    import polars as pl

    if confusion["predicted"].n_unique() <= _WIDEST_MATRIX:
        corner = "true ╲ predicted"
        wide = confusion.rename({"truth": corner}).pivot("predicted", index=corner, values=values, sort_columns=True)
        emit(wide.fill_null(0), title=f"{values.capitalize()} by true label (rows) and most confident label (columns)")
        return
    mistakes = confusion.filter(pl.col("truth") != pl.col("predicted")).sort(values, descending=True)
    emit(mistakes.head(_MOST_MISTAKES), title=f"Most frequent mistakes, by {values}; all: --json")
