"""`batchcl report`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

import anyio
import typer

from batchcl.cli.evaluate import TruthFile
from batchcl.cli.output import (
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
    thresholds_of,
)
from batchcl.cli.streams import write_line
from batchcl.quantities import pluralize

__all__ = ["report"]


def report(
    root: Root,
    *,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="HTML file to write.", show_default=False)],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="RUN|DATE|MODEL|DURATION",
            help="Compare with this run, date or model, or all runs in this time before (default: the run before).",
            show_default=False,
        ),
    ] = None,
    truth: TruthFile = None,
    gallery: Annotated[int, typer.Option("--gallery", metavar="N", help="Largest number of pictures.")] = 60,
    max_mb: Annotated[float, typer.Option("--max-mb", metavar="MB", help="Largest size of the file.")] = 5.0,
    model: Model = None,
    run: Run = None,
    date: Date = None,
    min_confidence: MinConfidence = None,
    thresholds: ThresholdsFile = None,
    json: Json = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Write a report about results as one HTML file, with charts and pictures, to read or to send.

    The file needs no network. Its sections: changes since the baseline, runs, images and confidences of each label,
    throughput, failures, an evaluation if there are true labels, and a selection of pictures. The model is not called;
    pictures are read from where the images were scored.

    Examples:

      batchcl report out --out report.html

      batchcl report out --run 2026-11-21 --out report.html

      batchcl report out --date 2026-11-21 --baseline 7d --out report.html

      batchcl report out --truth test.manifest --gallery 200 --max-mb 20 --out report.html

      batchcl report s3://tables/labels --date 2026-11-21 --out report.html
    """
    from batchcl.aws.session import Aws
    from batchcl.cli.signals import run_until_first_signal
    from batchcl.report.write import write_report

    work = partial(
        write_report,
        root,
        out,
        model=model,
        run_id=run,
        date=date,
        thresholds=thresholds_of(min_confidence, thresholds),
        baseline=baseline,
        truth=truth,
        gallery=gallery,
        max_mb=max_mb,
        aws=Aws.from_environment(profile=profile, region=region),
    )
    written = anyio.run(run_until_first_signal, work)
    if json:
        emit_object(asdict(written), json=True)
        return
    size = f"{written.size_bytes / 1e6:.1f} MB with {pluralize(written.pictures, 'picture')}"
    write_line(f"wrote {written.path}, {size}")
    if written.unreadable:
        write_line(f"{pluralize(written.unreadable, 'image')} could not be read; the report shows why")
    if written.omitted:
        write_line(f"{pluralize(written.omitted, 'picture')} did not fit; allow more with --max-mb")
