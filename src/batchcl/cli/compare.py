"""`batchcl compare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from batchcl.cli.output import (
    Csv,
    Json,
    MinConfidence,
    Model,
    Profile,
    Region,
    Root,
    ThresholdsFile,
    cell,
    check_format,
    emit,
    emit_object,
    thresholds_of,
)
from batchcl.cli.streams import write_line
from batchcl.quantities import pluralize

if TYPE_CHECKING:
    import polars as pl

    from batchcl.analysis.compare import ComparedSide, Comparison

__all__ = ["compare"]

_COMPARED: Final = {"common": "those in both, in pairs", "all": "all, as two samples"}
_WIDEST_MATRIX: Final = 12
_MOST_CHANGES: Final = 10
_MOST_ROWS: Final = 10
_MOST_RUNS: Final = 3
_LEAST_Q: Final = 0.001


def compare(
    root: Root,
    a: Annotated[
        str | None,
        typer.Argument(metavar="A", help="Run, date or model (default: the run before B).", show_default=False),
    ] = None,
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Run, date or model (default: the newest run).", show_default=False),
    ] = None,
    *,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Instead of A: all runs in this time before B, such as 7d.", show_default=False
        ),
    ] = None,
    root2: Annotated[str | None, typer.Option(metavar="ROOT", help="Output root of B.", show_default=False)] = None,
    images: Annotated[
        Literal["common", "all"] | None,
        typer.Option(
            help="Compare the images in both sides, in pairs, or all (default: common if most are in both).",
            show_default=False,
        ),
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="Exit with 3 if this condition holds for a row of the table of labels.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[int, typer.Option(help="Number of example URIs per change of the top label.", min=0)] = 1,
    model: Model = None,
    min_confidence: MinConfidence = None,
    thresholds: ThresholdsFile = None,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Compare two runs, dates or models: shares of labels, top labels, confidences, failures, pace and cost.

    Without A and B, compares the newest run with the previous run of its project. With one of them, compares it with
    the run before it.

    --json writes one object; --csv writes the table of labels.

    Examples:

      batchcl compare out

      batchcl compare out --baseline 7d --fail-if "significant AND abs(change) > 0.05"

      batchcl compare out 2026-11-20 2026-11-21

      batchcl compare out cats@v1 cats@v2 --min-confidence 60 --json

      batchcl compare s3://bucket/old 2026-11-21 2026-11-21 --root2 s3://bucket/new --csv > labels.csv
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.compare import compare as compared
    from batchcl.analysis.compare import fail_condition
    from batchcl.errors import ExitCode

    condition = None if fail_if is None else fail_condition(fail_if)
    comparison = compared(
        root,
        a,
        b,
        baseline=baseline,
        root2=root2,
        images=images,
        model=model,
        thresholds=thresholds_of(min_confidence, thresholds),
        examples=examples,
        profile=profile,
        region=region,
    )
    failing = None if condition is None else comparison.labels.filter(condition.matches(comparison.labels))
    if json:
        failed = {} if failing is None else {"failing": failing["label"].to_list()}
        emit_object(comparison.as_dict() | failed, json=True)
    elif csv:
        emit(comparison.labels, csv=True)
    else:
        _show(comparison)
    for note in comparison.notes:
        write_line(note, event="note")
    if failing is not None and failing.height:
        write_line(_failed(failing, str(fail_if)), event="error", level="error")
        raise typer.Exit(ExitCode.FAILURES)


def _show(comparison: Comparison) -> None:
    import polars as pl

    images, changes = comparison.images, comparison.top_labels.filter(pl.col("top_a") != pl.col("top_b"))
    emit(_side_table(comparison.a, comparison.b), title=f"A: {comparison.a.name}; B: {comparison.b.name}")
    sys.stdout.write(
        f"\n{images.both:,} images in both, {images.only_a:,} only in A, {images.only_b:,} only in B; "
        f"compared: {_COMPARED[images.compared]}, with {images.test}\n\n"
    )
    emit(
        _label_table(comparison.labels), title="Share of images with each label in % (95 % interval), change in points"
    )
    if images.both:
        share = f"{images.top_changed / images.both:.1%}"
        sys.stdout.write(f"\nThe top label of {images.top_changed:,} of {images.both:,} images ({share}) differs\n")
    if changes.is_empty():
        return
    corner, columns = "A ╲ B", comparison.top_labels["top_b"].unique()
    if len(columns) <= _WIDEST_MATRIX and corner not in columns:
        matrix = comparison.top_labels.rename({"top_a": corner}).sort(corner)
        wide = matrix.pivot("top_b", index=corner, values="images", sort_columns=True).fill_null(0)
        emit(wide, title="Images by top label in A (rows) and B (columns)")
        sys.stdout.write("\n")
    more = f"; the {_MOST_CHANGES} most frequent of {changes.height:,}" if changes.height > _MOST_CHANGES else ""
    emit(changes.head(_MOST_CHANGES), title=f"Changes of the top label{more}")


def _side_table(a: ComparedSide, b: ComparedSide) -> pl.DataFrame:
    """One row per attribute."""
    import polars as pl

    rows = [
        (name, *(_attribute(name, value) for value in values))
        for name, values in _pairs(asdict(a), asdict(b))
        if name not in {"name", "throttled", "calls"}
        and values != (None, None)
        and (name != "root" or a.root != b.root)
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("", "A", "B"), pl.String), orient="row")


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    return ((name, (value, b[name])) for name, value in a.items())


def _attribute(name: str, value: Any) -> str:
    if name == "min_confidence":
        return ", ".join("model's own" if each is None else f"{each:g}" for each in value) or "-"
    if name == "runs" and len(value) > _MOST_RUNS:
        return f"{len(value):,}, {value[0]} to {value[-1]}"
    return (", ".join(value) or "-") if isinstance(value, tuple) else cell(value)


def _label_table(labels: pl.DataFrame) -> pl.DataFrame:
    """The table of labels for people."""
    import polars as pl

    rows = [
        (
            row["label"],
            _share(row, "a"),
            _share(row, "b"),
            _change(row),
            "-"
            if row["p_value"] is None
            else f"{row['q_value']:.3f}"
            if row["q_value"] >= _LEAST_Q
            else f"<{_LEAST_Q}",
            "significant" if row["significant"] else "",
            cell(row["confidence_a"], decimals=1),
            cell(row["confidence_b"], decimals=1),
            cell(row["confidence_distance"], decimals=1),
            row["presence"] or "",
        )
        for row in labels.iter_rows(named=True)
    ]
    names = ["label", "A", "B", "change", "q", "", "mean A", "mean B", "distance", " "]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _share(row: Mapping[str, Any], side: str) -> str:
    if row[f"share_{side}"] is None:
        return "-"
    share, low, high = (100 * row[f"{name}_{side}"] for name in ("share", "low", "high"))
    return f"{share:5.1f} ({low:.1f} to {high:.1f})"


def _change(row: Mapping[str, Any]) -> str:
    if row["change"] is None:
        return "-"
    return f"{100 * row['change']:+5.1f} ({100 * row['change_low']:+.1f} to {100 * row['change_high']:+.1f})"


def _points(change: float | None) -> str:
    return "no images" if change is None else f"{100 * change:+.1f} points"


def _failed(failing: pl.DataFrame, condition: str) -> str:
    """One sentence with the rows for which the condition holds."""
    shown = [f"{row['label']!r} ({_points(row['change'])})" for row in failing.head(_MOST_ROWS).to_dicts()]
    more = f" and {failing.height - _MOST_ROWS:,} more" if failing.height > _MOST_ROWS else ""
    return f"--fail-if {condition!r} holds for {pluralize(failing.height, 'label')}: {', '.join(shown)}{more}"
