"""`batchcl run`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import typer

from batchcl.cli.local_emulator import Emulator, EmulatorState, default_model, emulated, emulator_options
from batchcl.cli.options import Config, Json, LogFormat, LogFormatOption, flags, takes_job_options
from batchcl.cli.streams import StreamError, log, write_line
from batchcl.errors import BatchclError, ExitCode, command
from batchcl.quantities import pluralize

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = ["finish", "report_end", "run"]


@takes_job_options()
def run(
    *,
    config: Config = None,
    json: Json = False,
    log_format: LogFormatOption = None,
    emulator: Emulator = False,
    emulator_state: EmulatorState = None,
    **options: Any,
) -> None:
    """Score every image of the sources and publish the results as partitioned Parquet.

    Each image becomes one row in ROOT/results or ROOT/failures. Run the command again with the same run id to resume;
    it does nothing if the run is done. The first ^C, SIGTERM, SIGHUP or SIGQUIT waits for calls in flight, saves their
    results and stops a model that this run started; a second one limits that stop to ten seconds.

    Examples:

      batchcl run s3://photos/2026/ --model ARN --out s3://tables/labels --start-model 2

      batchcl run photos/ --emulator --out out

      list-keys | batchcl run - --model ARN --out out --run-id 2026-11-21

      batchcl run --from-results s3://tables/labels --where "top_confidence < 60" --model ARN --out s3://tables/second

      batchcl run --config configs/nightly.toml --max-failures 0.5%
    """
    from batchcl.cli.reporter import reporting
    from batchcl.cli.signals import run_until_signalled
    from batchcl.job import load_job
    from batchcl.scoring.run import run as score
    from batchcl.stop_signal import StopSignal

    job = load_job(config, flags(options), defaults=default_model(emulator=emulator))

    async def work(stop_signal: StopSignal) -> Summary:
        async with (
            reporting(log_format) as observer,
            emulated(job, emulator=emulator, state=emulator_state) as (scored, aws),
        ):
            return await score(scored, observer=observer, stop_signal=stop_signal, aws=aws)

    finish(
        lambda: run_until_signalled(work, grace_s=job.grace_s),
        json=json,
        log_format=log_format,
        options=emulator_options(emulator=emulator, state=emulator_state),
    )


def finish(
    work: Callable[[], Summary], *, json: bool, log_format: LogFormat | None, options: Sequence[str] = ()
) -> None:
    """Do `work`, show its summary, and exit with the code for it. Commands that retry it have the `options`."""
    try:
        summary = work()
    except BatchclError as error:
        if error.summary is not None:
            report_end(error.summary, json=json, log_format=log_format, options=options)
        raise
    report_end(summary, json=json, log_format=log_format, options=options)
    if not summary.tolerated:
        write_line(
            f"{pluralize(summary.failed, 'image')} failed, more than tolerated; list them with "
            f"{command('failures', summary.out)}{_retry_commands(summary, options)}",
            level="error",
        )
        raise typer.Exit(ExitCode.FAILURES)


def _retry_commands(summary: Summary, options: Sequence[str]) -> str:
    """Which commands retry the failed images that can succeed."""
    if summary.retryable is None:
        return ""
    counts = {(): summary.retryable, ("--fit",): summary.fittable}
    commands = [
        f"{command('retry', summary.out, summary.run_id, *more, *options)} to retry {pluralize(images, 'image')}"
        for more, images in counts.items()
        if images
    ]
    return f"; run {' or '.join(commands)}" if commands else "; a retry would fail again"


def report_end(summary: Summary, *, json: bool, log_format: LogFormat | None, options: Sequence[str]) -> None:
    """Write the summary of a run that has ended, and how to resume it."""
    from batchcl.runs.layout import RunPaths
    from batchcl.sources.filters import describe_filters

    is_postponed = summary.status == "postponed"
    left = 0 if is_postponed else summary.planned - summary.scored - summary.failed - summary.skipped
    resume = _how_to_resume(summary, options, left=left)
    if json:
        try:
            sys.stdout.write(orjson.dumps(summary.as_dict(), option=orjson.OPT_UTC_Z).decode() + "\n")
            sys.stdout.flush()
        except StreamError as error:  # the run ends by its result
            write_line(f"{error}; the summary is in {summary.out}/{RunPaths(summary.run_id).summary}", level="warning")
        if resume:
            write_line(resume)
        return
    if is_postponed and log_format is not LogFormat.JSON:  # the notice has said it
        return
    parts = [f"{summary.scored:,} scored", f"{summary.failed:,} failed", f"{summary.skipped:,} skipped"]
    if left:
        parts.append(f"{left:,} left")
    cost = "" if summary.cost_usd is None else f", at least ${summary.cost_usd:.2f} for the model"
    worked = sum(each.calls > 0 for each in summary.sessions)
    over = f" of {worked:,} sessions" if worked > 1 else ""
    retry = f"round {summary.round} of " if summary.round and summary.status == "stopped" else ""
    text = (
        f"{retry}run {summary.run_id} is {summary.status}: {summary.planned:,} planned = {' + '.join(parts)}, in "
        f"{summary.seconds:.1f} s{over} ({summary.images_per_second:.1f} images/s, {summary.throttled:,} of "
        f"{summary.calls:,} calls throttled{cost})"
    )
    if log_format is LogFormat.JSON:
        log("summary", text, fields=summary.as_dict())
        if resume:
            write_line(resume)
        return
    write_line(text)
    if bill := summary.describe_bill():
        write_line(bill)
    if summary.lines is not None or summary.excluded:
        write_line(f"lists: {summary.describe_sources()}")
    for name, count in summary.filtered_by.items():
        write_line(f"  {count:,} excluded by {describe_filters(name)}")
    if resume:
        write_line(resume)
        write_line(f"its state: {command('status', summary.out, summary.run_id)}")
        return
    _say_where_results_are(summary)


def _say_where_results_are(summary: Summary) -> None:
    if summary.scored:
        if summary.unlabelled:
            write_line(f"{pluralize(summary.unlabelled, 'image')} without a label")
        write_line(f"results are in {summary.out}/results; query them with {command('labels', summary.out)}")
    elif summary.failed or summary.skipped:
        write_line(
            f"no image was scored; list the reasons with {command('failures', summary.out, '--run', summary.run_id)}"
        )


def _how_to_resume(summary: Summary, options: Sequence[str], *, left: int) -> str:
    """The command that resumes a run or retry that ended early; empty if nothing is left."""
    if summary.round and summary.status == "stopped":
        return f"results so far are saved; resume with {command('retry', summary.out, summary.run_id, *options)}"
    if left:
        run_id = shlex.quote(summary.run_id)
        return f"results so far are saved; resume with the same `batchcl run` and --run-id {run_id}"
    return ""
