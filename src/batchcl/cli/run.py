"""`batchcl run`."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar, get_type_hints

import orjson
import typer

from batchcl.cli.options import (
    AllowOverlap,
    AllVersions,
    AnyName,
    AsOf,
    Attribute,
    BucketColumn,
    Config,
    CrossRegion,
    Deadline,
    DeadManRole,
    Emulator,
    EmulatorState,
    Exclude,
    Fit,
    FromResults,
    Grace,
    Include,
    Incremental,
    Json,
    KeepModel,
    KeyColumn,
    Kind,
    Lease,
    Limit,
    LogFormat,
    LogFormatOption,
    MaxCost,
    MaxFailures,
    MaxInFlight,
    MaxResults,
    MaxSize,
    MaxTps,
    MinConfidence,
    MinSize,
    ModelArnOption,
    NewerThan,
    OlderThan,
    Out,
    Profile,
    Region,
    RetryFailed,
    RunId,
    Sample,
    SampleSeed,
    ShardSize,
    SingleWriter,
    SkipBadLines,
    Sources,
    Sse,
    SseKmsKeyId,
    StartModel,
    TransportOption,
    UriColumn,
    UriField,
    Where,
    flags,
)
from batchcl.cli.streams import StreamError, log, write_line
from batchcl.errors import BatchclError, ExitCode, command
from batchcl.quantities import counted

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = ["finish", "run", "takes_arguments_of_run"]

_F = TypeVar("_F", bound=Callable[..., None])


def run(
    sources: Sources = None,
    *,
    from_results: FromResults = None,
    config: Config = None,
    model: ModelArnOption = None,
    out: Out = None,
    run_id: RunId = None,
    min_confidence: MinConfidence = None,
    max_results: MaxResults = None,
    fit: Fit = None,
    max_tps: MaxTps = None,
    max_in_flight: MaxInFlight = None,
    transport: TransportOption = None,
    include: Include = None,
    exclude: Exclude = None,
    newer_than: NewerThan = None,
    older_than: OlderThan = None,
    min_size: MinSize = None,
    max_size: MaxSize = None,
    where: Where = None,
    sample: Sample = None,
    sample_seed: SampleSeed = None,
    limit: Limit = None,
    source_kind: Kind = None,
    uri_column: UriColumn = None,
    bucket_column: BucketColumn = None,
    key_column: KeyColumn = None,
    uri_field: UriField = None,
    attribute: Attribute = None,
    all_versions: AllVersions = None,
    as_of: AsOf = None,
    any_name: AnyName = None,
    skip_bad_lines: SkipBadLines = None,
    max_failures: MaxFailures = None,
    deadline: Deadline = None,
    grace: Grace = None,
    max_cost: MaxCost = None,
    incremental: Incremental = None,
    retry_failed: RetryFailed = None,
    allow_overlap: AllowOverlap = None,
    sse: Sse = None,
    sse_kms_key_id: SseKmsKeyId = None,
    shard_size: ShardSize = None,
    single_writer: SingleWriter = None,
    start_model: StartModel = None,
    keep_model: KeepModel = None,
    lease: Lease = None,
    dead_man_role: DeadManRole = None,
    cross_region: CrossRegion = None,
    emulator: Emulator = None,
    emulator_state: EmulatorState = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
    log_format: LogFormatOption = None,
) -> None:
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

    job = load_job(
        config,
        flags(
            sources=sources,
            from_results=from_results,
            model=model,
            out=out,
            run_id=run_id,
            min_confidence=min_confidence,
            max_results=max_results,
            fit=fit,
            max_tps=max_tps,
            max_in_flight=max_in_flight,
            transport=transport,
            include=include,
            exclude=exclude,
            newer_than=newer_than,
            older_than=older_than,
            min_size=min_size,
            max_size=max_size,
            where=where,
            sample=sample,
            sample_seed=sample_seed,
            limit=limit,
            source_kind=source_kind,
            uri_column=uri_column,
            bucket_column=bucket_column,
            key_column=key_column,
            uri_field=uri_field,
            attribute=attribute,
            all_versions=all_versions,
            as_of=as_of,
            any_name=any_name,
            skip_bad_lines=skip_bad_lines,
            max_failures=max_failures,
            deadline=deadline,
            grace=grace,
            max_cost=max_cost,
            incremental=incremental,
            retry_failed=retry_failed,
            allow_overlap=allow_overlap,
            sse=sse,
            sse_kms_key_id=sse_kms_key_id,
            single_writer=single_writer,
            shard_size=shard_size,
            start_model=start_model,
            keep_model=keep_model,
            lease=lease,
            dead_man_role=dead_man_role,
            cross_region=cross_region,
            emulator=emulator,
            emulator_state=emulator_state,
            profile=profile,
            region=region,
        ),
    )

    async def work(stopper: StopSignal) -> Summary:
        async with reporting(log_format) as observer:
            return await score(job, observer=observer, stop_signal=stopper)

    finish(lambda: run_until_signalled(work, grace_s=job.grace_s), json=json, log_format=log_format)


def takes_arguments_of_run(*, without: Collection[str] = ()) -> Callable[[_F], _F]:
    """The decorated command takes the arguments of `run`, but for those named: Typer reads them from its signature."""

    def give(command: _F) -> _F:
        signature = inspect.signature(run, eval_str=True)
        taken = [each for each in signature.parameters.values() if each.name not in without]
        command.__signature__ = signature.replace(parameters=taken)  # type: ignore[attr-defined]
        command.__annotations__ = get_type_hints(run, include_extras=True)
        return command

    return give


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
