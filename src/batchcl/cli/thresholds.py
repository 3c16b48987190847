"""`batchcl thresholds`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchcl.cli.evaluate import Attribute, SkipBadLines, TruthFile, read_labels
from batchcl.cli.output import (
    Csv,
    Date,
    Json,
    Model,
    Profile,
    Region,
    RelativeTo,
    Root,
    Run,
    check_format,
    emit,
    emit_object,
)
from batchcl.cli.streams import write_line
from batchcl.quantities import pluralize

if TYPE_CHECKING:
    import polars as pl

    from batchcl.analysis.thresholds import ThresholdChoice

__all__ = ["thresholds"]


def thresholds(
    root: Root,
    *,
    truth: TruthFile = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Lowest threshold with this precision, such as 0.95 (default: best F1).", show_default=False),
    ] = None,
    recall: Annotated[
        float | None, typer.Option(help="Highest threshold with this recall, such as 0.9.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the thresholds to this TOML file, outside ROOT.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out file.")] = False,
    image_level: Annotated[
        bool, typer.Option("--image-level", help="Judge images, not boxes, where the truth has boxes.")
    ] = False,
    bins: Annotated[int, typer.Option(help="Number of calibration bins from 0 to 100.", min=1, max=1000)] = 10,
    attribute: Attribute = None,
    relative_to: RelativeTo = None,
    skip_bad_lines: SkipBadLines = False,
    model: Model = None,
    run: Run = None,
    date: Date = None,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Choose a confidence threshold for each label from true labels, and check how well confidences are calibrated.

    Chooses the threshold with the best F1, or one with enough --precision or --recall. --out writes them to a file that
    --thresholds of other commands reads. Without --truth, the true labels are those of the manifest that was scored.

    --json writes one object with `summary`, `labels`, `curves` and `calibration`; --csv writes the table of labels.

    Examples:

      batchcl thresholds out --truth test.manifest

      batchcl thresholds out --truth test.manifest --precision 0.95 --out thresholds.toml

      batchcl thresholds s3://bucket/out --recall 0.9 --json | jq '.labels[] | {label, threshold, precision}'
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.results import open_results
    from batchcl.analysis.thresholds import (
        check_thresholds_arguments,
        check_thresholds_path,
        choose_thresholds,
        write_thresholds,
    )

    check_thresholds_arguments(precision=precision, recall=recall, bins=bins)
    if out is not None:
        check_thresholds_path(out, root=root, overwrite=overwrite)
    results = open_results(root, model=model, run_id=run, date=date, profile=profile, region=region)
    labels = read_labels(
        truth,
        results,
        attribute=attribute,
        skip_bad_lines=skip_bad_lines,
        relative_to=relative_to,
        profile=profile,
        region=region,
    )
    choice = choose_thresholds(results, labels, precision=precision, recall=recall, image_level=image_level, bins=bins)
    if json:
        emit_object(_as_object(choice), json=True)
    elif csv:
        emit(choice.labels, csv=True)
    else:
        _show(choice, root)
    if out is not None:
        write_thresholds(choice, out, root=root, truth=truth, overwrite=overwrite)
        chosen = choice.labels["threshold"].count()
        without = choice.labels.height - chosen
        write_line(
            f"wrote {pluralize(chosen, 'threshold')} to {out}"
            + (f"; {pluralize(without, 'label')} without one: the comments say why" if without else "")
        )


def _as_object(choice: ThresholdChoice) -> dict[str, object]:
    return {
        "summary": choice.summary,
        "labels": choice.labels.to_dicts(),
        "curves": choice.curves.to_dicts(),
        "calibration": choice.calibration.to_dicts(),
    }


def _show(choice: ThresholdChoice, root: str) -> None:
    shown = {name: value for name, value in choice.summary.items() if value not in (None, [], 0)}
    shown["min_confidence"] = ", ".join(
        "the model's own" if each is None else f"{each:g}" for each in choice.summary["min_confidence"]
    )
    emit_object(shown, title=f"Thresholds of {root}")
    sys.stdout.write("\n")
    emit(_table(choice), title="Labels, with 95 % intervals")
    sys.stdout.write("\n")
    emit(_calibration(choice.calibration), title="Calibration of all labels")
    for note in _notes(choice):
        write_line(note)


def _table(choice: ThresholdChoice) -> pl.DataFrame:
    import polars as pl

    rows = [
        {
            "label": row["label"],
            "threshold": row["threshold"],
            "interval": _interval(row, "threshold", decimals=1),
            **{
                name: None if row[name] is None else f"{row[name]:.3f} ({_interval(row, name, decimals=2)})"
                for name in ("precision", "recall", "f1")
            },
            "true": row["positives"],
            "scored": row["scored"],
            "judged from": row["judged_from"],
            "calib. error": row["expected_calibration_error"],
            "remark": _remark(row, choice.summary["criterion"]),
        }
        for row in choice.labels.iter_rows(named=True)
    ]
    kinds = {"threshold": pl.Float64, "judged from": pl.Float64, "calib. error": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=kinds, infer_schema_length=None)


def _interval(row: dict[str, Any], name: str, *, decimals: int) -> str | None:
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if row["threshold"] is None or low is high is None:
        return None
    if low is None or high is None:
        return f"up to {high:.{decimals}f}" if low is None else f"{low:.{decimals}f} or more"
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _remark(row: dict[str, Any], criterion: str) -> str:
    from batchcl.analysis.thresholds import NO_THRESHOLD, ThresholdStatus

    if row["threshold"] is None:
        return f"no threshold: {NO_THRESHOLD[row['status']]}"
    remarks = [f"{criterion} not reached"] if row["status"] == ThresholdStatus.NOT_REACHED else []
    remarks += ["lower scores are cut off"] if row["at_cut"] else []
    remarks += ["every image has it: precision can't be judged"] if row["negatives"] == 0 else []
    remarks += ["few images"] if row["few_images"] else []
    return ", ".join(remarks)


def _calibration(calibration: pl.DataFrame) -> pl.DataFrame:
    """The bins of all labels together, without empty ones."""
    import polars as pl

    detections = pl.col("detections")
    return (
        calibration.filter(detections > 0)
        .group_by("from", "to")
        .agg(
            detections.sum(),
            ((pl.col("mean_confidence") * detections).sum() / detections.sum()).alias("mean confidence"),
            ((pl.col("share_correct") * detections).sum() / detections.sum() * 100).alias("correct %"),
        )
        .sort("from")
    )


def _notes(choice: ThresholdChoice) -> list[str]:
    """What limits the choice, for stderr."""
    labels, summary = choice.labels, choice.summary
    notes = []
    if cut := labels.filter(labels["judged_from"] > 0).height:
        notes.append(
            f"the low scores of {pluralize(cut, 'label')} are missing, so thresholds below `judged from` can't be "
            "judged; score with --min-confidence 0 for all"
        )
    if reached := summary["max_results_reached"]:
        notes.append(
            f"--max-results may have cut off labels of {pluralize(reached, 'image')}, which count as not found; score "
            "without it"
        )
    if few := int(labels["few_images"].sum()):
        notes.append(
            f"the figures of {pluralize(few, 'label')} are based on fewer than 30 images: see the intervals, or label "
            "more images"
        )
    return notes
