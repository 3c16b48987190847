"""`batchcl demo`."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.streams import write_line
from batchcl.extras import require_extra

if TYPE_CHECKING:
    import polars as pl

__all__ = ["demo"]

_QUERY = "SELECT label, count(*) AS n, avg(confidence) AS mean FROM detections GROUP BY label"


def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Output directory.")] = Path("demo"),
    *,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Only write labelled pictures, to train your own model.")
    ] = False,
) -> None:
    """Train a model, score a few hundred real images and analyse the results, offline and free of charge.

    Trains a model on handwritten digits in the local emulator, scores pictures that were not trained on with
    `batchcl run`, and compares the results with the true labels. With the extra `report`, it also writes a report.

    Examples:

      batchcl demo

      batchcl demo /tmp/demo

      batchcl demo digits --pictures
    """
    require_extra("emulator", "the demo")
    from batchcl.emulator.demo import demo_data, demo_folders, demo_model

    if pictures:
        data = demo_folders(directory)
        write_line(f"{directory}/labelled has one folder of pictures per digit; pictures to score are in {data.images}")
        return
    import anyio

    from batchcl.analysis.counts import label_table
    from batchcl.analysis.results import open_results
    from batchcl.cli.evaluate import evaluate
    from batchcl.cli.output import emit
    from batchcl.cli.run import run

    begun = time.monotonic()
    state, out = directory / "emulator", directory / "out"
    write_line(f"1/3 training a model on digits (once, in {state})")
    arn = anyio.run(demo_model, state.absolute())
    data = demo_data(directory, state)
    write_line(f"    trained {arn}")
    write_line(f"2/3 batchcl run {data.images} --emulator --emulator-state {state} --out {out}")
    run(sources=[str(data.images)], model=arn, out=str(out), emulator=True, emulator_state=state)
    write_line("3/3 results")
    results = open_results(str(out))
    newest = str(results.images().select("run_id").max().collect(engine="in-memory").item())
    images = results.images(run_id=newest)
    emit(label_table(open_results(str(out), run_id=newest)), title="Labels")
    sys.stdout.write("\n")
    evaluate(str(out), truth=str(data.truth), run=newest)
    sys.stdout.write("\n")
    emit(_examples(images), title="A few rows")
    sys.stdout.flush()
    _write_report(directory, out, truth=data.truth, run=newest)
    write_line(f"done in {time.monotonic() - begun:.0f} s; results are in {out}/results (Parquet). Try:")
    command, scored = _command(), f"{data.images} --emulator --emulator-state {state} --out {out}"
    for line in (
        f"{command} confidence {out}",
        f'{command} query {out} "{_QUERY}"',
        f"{command} run {scored} --min-confidence 5 --max-results 3",
    ):
        write_line(f"  {line}")


def _write_report(directory: Path, out: Path, *, truth: Path, run: str) -> None:
    """Write `report.html` and its path; without the extra `report`, what it needs."""
    from batchcl.cli.report import report
    from batchcl.errors import UsageError

    try:
        report(str(out), out=str(directory / "report.html"), truth=str(truth), run=run)
    except UsageError as error:
        write_line(f"no report: {error}")


def _command() -> str:
    """How to call `batchcl` here: its path if it isn't on PATH, as in a fresh clone."""
    installed = Path(sys.executable).with_name("batchcl")
    if shutil.which("batchcl") or not installed.exists():
        return "batchcl"
    return str(installed.relative_to(Path.cwd())) if installed.is_relative_to(Path.cwd()) else str(installed)


def _examples(images: pl.LazyFrame) -> pl.DataFrame:
    """Three rows with the most important columns."""
    import polars as pl

    surest = pl.col("labels").list.first()
    return (
        images.sort("uri")
        .head(3)
        .select(
            pl.col("uri").str.split("/").list.last().alias("image"),
            surest.struct.field("name").alias("label"),
            surest.struct.field("confidence").alias("confidence"),
            "attempts",
            "latency_ms",
            "scored_at",
        )
        .collect(engine="in-memory")
    )
