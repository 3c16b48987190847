"""`batchcl run`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import typer

from batchcl.cli.options import Config, Json, LogFormat, LogFormatOption, flags, takes_job_options
from batchcl.cli.streams import StreamError, log, write_line
from batchcl.errors import BatchclError, ExitCode, command
from batchcl.quantities import counted

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = ["finish", "run"]


@takes_job_options()
def run(*, config: Config = None, json: Json = False, log_format: LogFormatOption = None, **options: Any) -> None:
    """Score every image of the sources and publish the results as partitioned Parquet.

    Each image ends as one row below ROOT/results or ROOT/failures. The same run id again goes on with what is left, and
    does nothing when the run is done. The first ^C, SIGTERM, SIGHUP or SIGQUIT ends calls in flight, keeps
    what is done and stops a model that this run started; the second one gives that stop ten seconds.

    Examples:

      batchcl run s3://photos/2026/ --model ARN --out s3://tables/labels --start-model 2

      batchcl run photos/ --emulator --out out

      aws s3 ls ... | make-keys | batchcl run - --model ARN --out out --run-id 2026-11-21

      batchcl run --from-results s3://tables/labels --where "top_confidence < 60" --model ARN --out s3://tables/second

      batchcl run --config configs/nightly.toml --max-failures 0.5%
    """
    from batchcl.cli.reporter import reporting
    from batchcl.cli.signals import run_until_signalled
    from batchcl.job import load_job
    from batchcl.scoring.run import run as score
    from batchcl.stop_signal import StopSignal

    job = load_job(config, flags(options))

    async def work(stopper: StopSignal) -> Summary:
        async with reporting(log_format) as observer:
            return await score(job, observer=observer, stopper=stopper)

    finish(lambda: run_until_signalled(work, grace_s=job.grace_s), json=json, log_format=log_format)


def finish(work: Callable[[], Summary], *, json: bool, log_format: LogFormat | None) -> None:
    """Do `work`, show what it came to, and end with the exit code for it."""
    try:
        summary = work()
    except BatchclError as error:
        if error.summary is not None:
            _end(error.summary, json=json, log_format=log_format)
        raise
    _end(summary, json=json, log_format=log_format)
    if not summary.tolerated:
        write_line(
            f"{counted(summary.failed, 'image')} failed, more than --max-failures allows; see "
            f"{command('failures', summary.out)}{_what_helps(summary)}",
            level="error",
        )
        raise typer.Exit(ExitCode.FAILURES)


def _what_helps(summary: Summary) -> str:
    """Which command scores failed images again, for those that can succeed."""
    if summary.retryable is None:
        return ""
    helps = {(): summary.retryable, ("--fit",): summary.fittable}
    commands = [
        f"{command('retry', summary.out, summary.run_id, *more)} to score {images:,} again"
        for more, images in helps.items()
        if images
    ]
    return f", and {' or '.join(commands)}" if commands else "; a retry would not change that"


def _end(summary: Summary, *, json: bool, log_format: LogFormat | None) -> None:
    from batchcl.runs.layout import RunPaths
    from batchcl.scoring.source_counts import SourceCounts
    from batchcl.sources.filters import describe_filters

    left = summary.planned - summary.scored - summary.failed - summary.skipped
    goes_on = _goes_on(summary, left=left)
    if json:
        try:
            sys.stdout.write(orjson.dumps(summary.as_dict(), option=orjson.OPT_UTC_Z).decode() + "\n")
            sys.stdout.flush()
        except StreamError as error:  # the run ends by its result
            write_line(f"{error}; the summary is in {summary.out}/{RunPaths(summary.run_id).summary}", level="warning")
        if goes_on:
            write_line(goes_on)
        return
    parts = [f"{summary.scored:,} scored", f"{summary.failed:,} failed", f"{summary.skipped:,} skipped"]
    if left:
        parts.append(f"{left:,} not done")
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
        if goes_on:
            write_line(goes_on)
        return
    write_line(text)
    tally = SourceCounts(
        lines=summary.lines,
        bad=summary.bad_lines,
        left_out=summary.left_out,
        repeated=summary.repeated,
        filtered=summary.filtered,
        known=summary.known,
        known_failed=summary.known_failed,
        planned=summary.planned,
    )
    if tally.lines is not None or tally.leaves_out:
        write_line(f"the lists: {tally}")
    for name, count in summary.filtered_by.items():
        write_line(f"  {describe_filters(name)} left {count:,} out")
    if goes_on:
        write_line(goes_on)
        write_line(f"see {command('status', summary.out, summary.run_id)}")
        return
    if summary.scored:
        write_line(f"the table lies in {summary.out}/results; ask it with {command('labels', summary.out)}")
    elif summary.failed or summary.skipped:
        write_line(f"no image was scored; see {command('failures', summary.out, '--run', summary.run_id)} for why")


def _goes_on(summary: Summary, *, left: int) -> str:
    """Which command goes on with what was ended early; empty where there is nothing left."""
    if summary.round and summary.status == "stopped":
        return (
            f"what is done is kept; {command('retry', summary.out, summary.run_id)} goes on with the rest of the retry"
        )
    if left:
        run_id = shlex.quote(summary.run_id)
        return f"what is done is kept; the same `batchcl run` with --run-id {run_id} goes on with the rest"
    return ""
