"""What the commands that read results share: their options, and how a table reaches stdout.

stdout is data. People get an aligned table with every value whole, and a terminal that is too narrow for it one block
of lines a row, so that ids and URIs can be copied; `--json` and `--csv` are for programs.
"""

from __future__ import annotations

import datetime as dt
import math
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from csv import writer as csv_writer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from batchcl.cli.streams import printable, write_line
from batchcl.quantities import confidence_hint

if TYPE_CHECKING:
    import polars as pl

    from batchcl.analysis.results import Results
    from batchcl.thresholds import Thresholds

__all__ = [
    "AllRuns",
    "Csv",
    "Date",
    "Json",
    "MinConfidence",
    "Model",
    "Profile",
    "Region",
    "RelativeTo",
    "Root",
    "Run",
    "ThresholdsFile",
    "emit",
    "emit_object",
    "open_root_results",
    "printable",
    "thresholds_of",
]

Root = Annotated[str, typer.Argument(metavar="ROOT", help="Output root of runs: directory or s3://bucket/prefix.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Only this model: PROJECT@VERSION, ARN, or PROJECT for all versions.", show_default=False
    ),
]
Run = Annotated[str | None, typer.Option("--run", help="Only this run.", show_default=False)]
Date = Annotated[
    str | None,
    typer.Option("--date", metavar="YYYY-MM-DD", help="Only runs that started this UTC day.", show_default=False),
]
RelativeTo = Annotated[
    str | None,
    typer.Option(
        "--relative-to",
        metavar="FOLDER",
        help="Directory or s3://bucket/prefix that names of images in the file are relative to.",
        show_default=False,
    ),
]
AllRuns = Annotated[
    bool,
    typer.Option("--all-runs", help="All rows of an image that several runs scored (default: the newest per model)."),
]
MinConfidence = Annotated[
    float | None,
    typer.Option("--min-confidence", min=0, max=100, help="Ignore labels below this confidence.", show_default=False),
]
ThresholdsFile = Annotated[
    Path | None,
    typer.Option(
        "--thresholds",
        metavar="FILE",
        help="Ignore labels below their thresholds in this file, as `batchcl thresholds` writes it.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Write CSV.")]
Profile = Annotated[str | None, typer.Option("--profile", help="AWS profile, if ROOT is in S3.", show_default=False)]
Region = Annotated[str | None, typer.Option("--region", help="AWS region, if ROOT is in S3.", show_default=False)]

_SLICE: Final = 10_000
_GAP: Final = "  "


def open_root_results(
    root: str,
    *,
    model: str | None = None,
    run: str | None = None,
    date: str | None = None,
    all_runs: bool = False,
    min_confidence: float | None = None,
    thresholds: Path | None = None,
    of_one_model: bool = False,
    profile: str | None = None,
    region: str | None = None,
) -> Results:
    """The results that a reading command's options select. Writes what a reader should know of them to stderr.

    Args other than the options:
        of_one_model: whether the command refuses results of several models, so that nothing is written about them.

    Raises:
        UsageError: see `open_results`; or both `min_confidence` and `thresholds` are given.
    """
    from batchcl.analysis.results import open_results

    results = open_results(
        root,
        model=model,
        run_id=run,
        date=date,
        all_runs=all_runs,
        thresholds=thresholds_of(min_confidence, thresholds),
        profile=profile,
        region=region,
    )
    for note in results.notes(of_one_model=of_one_model):
        write_line(note)
    return results


def thresholds_of(min_confidence: float | None, file: Path | None) -> Thresholds | float | None:
    """The thresholds of --min-confidence or --thresholds. Raises `UsageError` if both are given."""
    from batchcl.errors import ErrorCode, UsageError
    from batchcl.thresholds import Thresholds

    if (question := confidence_hint(min_confidence)) is not None:
        write_line(question)
    if min_confidence is not None and file is not None:
        raise UsageError(
            "--min-confidence and --thresholds exclude each other; choose one", code=ErrorCode.CONFLICTING_OPTIONS
        )
    return min_confidence if file is None else Thresholds.read(file)


def emit(frame: pl.DataFrame, *, json: bool = False, csv: bool = False, title: str | None = None) -> None:
    """Write `frame` to stdout: a table, one JSON array of objects (`json`), or CSV with a header (`csv`).

    Times are ISO 8601, to the second in a table. Lists and structs are JSON inside CSV. `title` is
    printed above a table only. On a terminal that is too narrow each row is a block of lines; a pipe gets the table.

    Raises:
        UsageError: both `json` and `csv` are set.
    """
    check_format(json=json, csv=csv)
    if json:
        _write_json(frame)
    elif csv:
        lines = csv_writer(sys.stdout, lineterminator="\n")
        lines.writerow(frame.columns)
        for part in frame.iter_slices(_SLICE):
            lines.writerows(_as_text(part).iter_rows())
    else:
        if title:
            sys.stdout.write(f"{printable(title)}\n")
        rows = [list(map(printable, frame.columns)), *_cells(frame)]
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        wide = sum(widths) + len(_GAP) * (len(widths) - 1) > shutil.get_terminal_size().columns
        if wide and len(rows) > 1 and sys.stdout.isatty():
            sys.stdout.writelines(_blocks(*rows))
        else:
            right = _numbers(frame)
            sys.stdout.writelines(_aligned(row, widths, right) + "\n" for row in rows)


def emit_object(value: Mapping[str, Any], *, json: bool = False, title: str | None = None) -> None:
    """Write one object to stdout: one line per value, or JSON."""
    if json:
        import orjson

        sys.stdout.write(orjson.dumps(dict(value), option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    width = max(map(_width, value), default=0)
    lines = [f"{_padded(name, width)}  {cell(item, decimals=_decimals([item]))}\n" for name, item in value.items()]
    sys.stdout.writelines([*([f"{printable(title)}\n"] if title else []), *lines])


def check_format(*, json: bool, csv: bool) -> None:
    """Raise `UsageError` if both are set; called before the work."""
    if json and csv:
        from batchcl.errors import ErrorCode, UsageError

        raise UsageError("--json and --csv exclude each other; choose one", code=ErrorCode.CONFLICTING_OPTIONS)


def cell(value: Any, *, decimals: int = 2) -> str:
    """`value` as text for a table: one line, no control characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.{decimals}f}"
    if not isinstance(value, int):
        return printable(_text(value))
    return f"{value:,}"


def _decimals(values: Iterable[Any]) -> int:
    """Decimals for one column: none for whole numbers, four for ratios, else two."""
    floats = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    if all(value.is_integer() for value in floats) and any(abs(value) > 1 for value in floats):
        return 0
    return 4 if all(abs(value) <= 1 for value in floats) else 2


def _text(value: Any) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return _json_text(value) if isinstance(value, list | dict) else str(value)


def _json_text(value: Any) -> str:
    import orjson

    return orjson.dumps(value, default=str).decode()


def _write_json(frame: pl.DataFrame) -> None:
    opening = "["
    for part in frame.iter_slices(_SLICE):
        for row in part.iter_rows(named=True):
            sys.stdout.write(f"{opening}\n{_json_text(row)}")
            opening = ","
    sys.stdout.write("[]\n" if opening == "[" else "\n]\n")


def _as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with its values as CSV has them. polars' own `write_csv` would run on its streaming engine."""
    import polars as pl

    def text(column: pl.Series) -> pl.Series:
        if column.dtype.is_nested():
            values = [None if each is None else _json_text(each) for each in column.to_list()]
            return pl.Series(column.name, values, pl.String)
        if column.dtype == pl.Datetime:
            return column.dt.to_string("%Y-%m-%dT%H:%M:%S%.6f%:z")
        return column.cast(pl.String)

    return pl.DataFrame([text(column) for column in frame.iter_columns()])


def _blocks(names: Sequence[str], *rows: Sequence[str]) -> Iterable[str]:
    """One block of `name  value` lines for each row, like psql's expanded display."""
    width = max(map(_width, names))
    for number, row in enumerate(rows, 1):
        yield f"-- {number:,} of {len(rows):,}\n"
        yield from (f"{_padded(name, width)}{_GAP}{text}\n" for name, text in zip(names, row, strict=True))


def _cells(frame: pl.DataFrame) -> list[tuple[str, ...]]:
    columns = []
    for column in frame.iter_columns():
        values = column.to_list()
        decimals = _decimals(values)
        columns.append([cell(value, decimals=decimals) for value in values])
    return list(zip(*columns, strict=True))


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = (_padded(text, width, right=r) for text, width, r in zip(row, widths, right, strict=True))
    return _GAP.join(cells).rstrip()


def _numbers(frame: pl.DataFrame) -> list[bool]:
    return [kind.is_numeric() for kind in frame.dtypes]


def _width(text: str) -> int:
    """Width of `text` on a terminal, in columns."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def _padded(text: str, width: int, *, right: bool = False) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap
