"""`batchcl model reap`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchcl.cli.options import Json, Profile, Region, flags, takes_job_options
from batchcl.cli.service import AllRegions, InterruptMessage, report_skipped, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.monitoring import Targets
    from batchcl.workflow import ReapedRegion, ReapResult, RegionOutcome, RunningModel, WorkflowClients

__all__ = ["reap"]

_TARGETS = ("metrics_file", "ping", "webhook", "sns_topic")


@takes_job_options(*_TARGETS)
def reap(
    *,
    project: Annotated[
        str | None, typer.Option("--project", help="Only models of this project.", show_default=False)
    ] = None,
    all_regions: AllRegions = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and change and send nothing.")
    ] = False,
    alarm: Annotated[
        bool,
        typer.Option("--alarm", help="Also report models without a lease, which are left running; exit with 3."),
    ] = False,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="1h",
            help="With --alarm: exclude models that are STARTING or have been running for less than this.",
            show_default=False,
        ),
    ] = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Stop RUNNING models whose lease has expired, because their run has died. Other models are not touched.

    A run tags a model that it starts with a lease and renews it; `model start --for` sets one, too. Call this command
    from cron every few minutes, and no kill -9 or power cut leaves a model running for long.

    With --alarm, models that run without a lease, which nothing stops, are reported on stderr and to the ping, webhook,
    SNS topic and metrics file that are given here or in BATCHCL_ALARM_... variables, such as BATCHCL_ALARM_WEBHOOK.
    Don't use the ping and the metrics file of a run.

    Exits with 0 if nothing is left to do, with 4 if a model could not be stopped yet or a region did not respond
    (repeat the command), and with 3 if --alarm found a model without a lease.

    Examples:

      batchcl model reap --dry-run

      batchcl model reap --all-regions --alarm --older-than 1h

      batchcl model reap --region eu-west-1 --json
    """
    from batchcl import workflow
    from batchcl.errors import ErrorCode, ExitCode, StoppedError, UsageError
    from batchcl.monitoring import Targets, send_event
    from batchcl.quantities import parse_duration

    if not alarm and (older_than is not None or flags(options)):
        raise UsageError(
            "--older-than and the options that send alarms need --alarm; add it", code=ErrorCode.CONFLICTING_OPTIONS
        )
    older_than_s = 0.0 if older_than is None else parse_duration(older_than)
    targets = _targets(options) if alarm else Targets()

    async def work(
        service: WorkflowClients, _: InterruptMessage
    ) -> tuple[RegionOutcome[ReapedRegion], list[RunningModel]]:
        outcome = await workflow.reap_regions(
            service.aws,
            workflow.rekognition_regions(service.region) if all_regions else [service.region],
            project=project,
            dry_run=dry_run,
            with_running=alarm,
        )
        running = [model for region in outcome.results.values() for model in region.running]
        found = workflow.unleased(running, older_than_s=older_than_s)
        if alarm and not dry_run:
            unread = [each.region for each in outcome.skipped if each.why is workflow.RegionSkip.UNREACHABLE]
            event = workflow.unleased_event(found, unread=unread)
            for failure in await send_event(targets, event, aws=service.aws):
                write_line(failure, event="monitoring", level="warning")
        return outcome, found

    outcome, unleased = with_service(work, profile=profile, region=region, named=project)
    results = [result for region in outcome.results.values() for result in region.results]
    _show(results, unleased if alarm else None, with_region=all_regions, json=json)
    unfinished = [each for each in results if each.done.unfinished]
    if unfinished:
        which = "; ".join(f"{each.model}: {each.reason}" for each in unfinished)
        raise StoppedError(f"some models are not stopped yet; repeat the command: {which}")
    report_skipped(outcome.skipped)
    if unleased and alarm:
        write_line(workflow.unleased_event(unleased).text, event="models-without-lease", level="warning")
        raise typer.Exit(ExitCode.FAILURES)


def _targets(options: dict[str, Any]) -> Targets:
    """The back ends of alarms, by the flags, else by their own variables: the ping of runs must not receive alarms."""
    from batchcl.monitoring import Targets, environment

    given = flags(options)
    variables = environment(without={"otel", *given}, variable=lambda name: f"BATCHCL_ALARM_{name.upper()}")
    return Targets.read(variables | given)


def _show(
    results: Sequence[ReapResult], unleased: Sequence[RunningModel] | None, *, with_region: bool, json: bool
) -> None:
    """Write what was done with each model; in JSON with `alarm` if alarms were requested."""
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit

    alarming = {each.arn for each in unleased or ()}
    rows: list[dict[str, Any]] = []
    for each in results:
        fields = {name: str(value) for name, value in asdict(each).items()}
        row: dict[str, Any] = {name: fields[name] for name in ("model", "status", "done", "reason")}
        if json or with_region:
            row["region"] = workflow.ModelArn.parse(each.arn).region
        if json:
            row["arn"] = each.arn
            if unleased is not None:
                row["alarm"] = each.arn in alarming
        rows.append(row)
    if rows or json:
        emit(pl.DataFrame(rows, infer_schema_length=None), json=json)
    else:
        write_line("no model is running, and no lease has expired")
