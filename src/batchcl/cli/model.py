"""`batchcl model list|show|start|wait|stop`, and the group of all commands on models."""

from __future__ import annotations

import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchcl.cli import model_reap, model_train, model_versions
from batchcl.cli.model_versions import Name, Timeout, emit_model
from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import AllRegions, InterruptMessage, report_skipped, report_state, with_service
from batchcl.cli.streams import write_line
from batchcl.prices import unit_hour_usd

if TYPE_CHECKING:
    from batchcl.workflow import Model, RegionOutcome, RunningModel, RunningModels, WorkflowClients

__all__ = ["app"]

app = typer.Typer(help="Train, evaluate, start, stop and inspect models.", no_args_is_help=True)

_TRANSITIONS = {
    "RUNNING": ({"STARTING"}, 45.0),
    "STOPPED": ({"RUNNING", "STOPPING"}, 45.0),
    "TRAINING_COMPLETED": ({"TRAINING_IN_PROGRESS"}, 24 * 60.0),
    "COPYING_COMPLETED": ({"COPYING_IN_PROGRESS"}, 24 * 60.0),
}
"""Target status: the statuses before it, and the default timeout in minutes."""

app.command("train")(model_train.train)
app.command("evaluate")(model_train.evaluate)
app.command("copy")(model_versions.copy)


@app.command("list")
def list_models(
    *,
    running: Annotated[
        bool,
        typer.Option("--running", help="Only models that are RUNNING or STARTING, with lease, age and cost."),
    ] = False,
    all_regions: AllRegions = False,
    project: Annotated[
        str | None, typer.Option("--project", help="Only models of this project.", show_default=False)
    ] = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """List the models of the account and region.

    Age and cost are those since the start: by the lease of the run that started the model, else by CloudWatch.

    Exits with 0, and with 4 if a region did not respond. Regions that refuse are reported, and are no error.

    Examples:

      batchcl model list --all-regions --running

      batchcl model list --project cats --json
    """
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit

    if running:
        _list_running(all_regions=all_regions, project=project, profile=profile, region=region, json=json)
        return

    async def work(service: WorkflowClients, _: InterruptMessage) -> RegionOutcome[list[Model]]:
        async def read(client: Any, _: str) -> list[Model]:
            name = await workflow.project_name(client, project, must_exist=not all_regions)
            return await workflow.list_models(client, project=name)

        regions = workflow.rekognition_regions(service.region) if all_regions else [service.region]
        return await workflow.in_regions(service.aws, regions, read)

    outcome = with_service(work, profile=profile, region=region, named=project)
    models = [model for found in outcome.results.values() for model in found]
    if json:
        rows = [{"model": model.name} | asdict(model) for model in models]
        emit(pl.DataFrame(rows, infer_schema_length=None), json=True)
        report_skipped(outcome.skipped)
        return
    rows = [
        {"model": model.name, "status": model.status, "units": _units(model), "F1": model.f1, "arn": model.arn}
        for model in models
    ]
    schema = {"model": pl.String, "status": pl.String, "units": pl.String, "F1": pl.Float64, "arn": pl.String}
    emit(pl.DataFrame(rows, schema=schema))
    report_skipped(outcome.skipped)


def _list_running(
    *, all_regions: bool, project: str | None, profile: str | None, region: str | None, json: bool
) -> None:
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit
    from batchcl.quantities import pluralize

    async def work(service: WorkflowClients, _: InterruptMessage) -> RunningModels:
        return await workflow.running_models(all_regions=all_regions, project=project, aws=service.aws)

    found = with_service(work, profile=profile, region=region, named=project)
    if json:
        emit(pl.DataFrame([asdict(each) for each in found.models], infer_schema_length=None), json=True)
    elif found.models:
        emit(pl.DataFrame([_running_row(each) for each in found.models]))
    else:
        write_line(f"no model is running in {pluralize(len(found.regions), 'region')}")
    for each in found.models:
        if each.note:
            write_line(f"age or cost of {each.model} in {each.region} is unknown: {each.note}")
    report_skipped(found.skipped)


def _running_row(model: RunningModel) -> dict[str, str]:
    from batchcl.workflow import AgeSource, age_text

    at_most = "up to " if model.since_source is AgeSource.LEASE else ""
    return {
        "model": model.model,
        "region": model.region,
        "status": model.status,
        "units": _units(model),
        "age": "unknown" if model.age_s is None else age_text(model.age_s),
        "cost": "unknown" if model.cost_usd is None else f"{at_most}${model.cost_usd:,.2f}",
        "lease": model.lease,
    }


@app.command()
def show(model: Name, profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """Show a model: its status, units, F1, and the location of its training results.

    Examples:

      batchcl model show cats@v2

      batchcl model show ARN --json
    """
    from batchcl import workflow

    async def work(service: WorkflowClients, _: InterruptMessage) -> Model:
        return await workflow.describe(service.rekognition, await workflow.find_model(service.rekognition, model))

    emit_model(with_service(work, profile=profile, region=region, named=model), json=json)


@app.command()
def start(
    model: Name,
    *,
    units: Annotated[str, typer.Option("--units", metavar="MIN[:MAX]", help="Inference units, 1 to 5.")] = "1",
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="2h",
            help="Let `model reap` stop the model this long after this command.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is RUNNING.")] = True,
    timeout: Timeout = 45,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Start a model. It costs $4 (BATCHCL_UNIT_HOUR_USD) per inference unit and hour while it is RUNNING.

    Examples:

      batchcl model start cats@v2 --units 1:3

      batchcl model start cats@v2 --for 2h
    """
    from batchcl import workflow
    from batchcl.errors import RefusedError
    from batchcl.quantities import parse_duration

    wanted = workflow.Units.parse(units)
    seconds = None if for_ is None else parse_duration(for_)

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Model:
        arn = await workflow.find_model(service.rekognition, model)
        reaped = "" if seconds is None else f", or let `batchcl model reap` stop it after {for_}"
        afterwards.is_(
            f"{arn.name} may be starting in AWS; while RUNNING it costs "
            f"${unit_hour_usd() * wanted.minimum:.2f} an hour or more. "
            f"Stop it with `batchcl model stop {arn.name}`{reaped}",
            unless_refused=True,
        )
        if seconds is None:
            await workflow.start(service.rekognition, arn, wanted)
            try:
                await workflow.clear_leases(service.rekognition, arn, remove_schedule=service.remove_schedule)
            except RefusedError as error:
                write_line(f"old leases of {arn.name} were not removed, so `batchcl model reap` may stop it: {error}")
        else:
            lease = await workflow.start_with_lease(
                service.rekognition,
                arn,
                wanted,
                seconds=seconds,
                holder=f"batchcl model start on {socket.gethostname()}",
                now=service.clock.now,
                remove_schedule=service.remove_schedule,
            )
            write_line(f"`batchcl model reap` stops {arn.name} after {lease.until:%Y-%m-%dT%H:%M:%SZ}")
        if not wait:
            return await workflow.describe(service.rekognition, arn)
        afterwards.is_(
            f"{arn.name} is still starting in AWS; while RUNNING it costs "
            f"${unit_hour_usd() * wanted.minimum:.2f} an hour or more. "
            f"Stop it with `batchcl model stop {arn.name}`{reaped}"
        )
        passing = {"STARTING", "STOPPED", "TRAINING_COMPLETED", "COPYING_COMPLETED"}
        return await workflow.wait(
            service.rekognition, arn, until="RUNNING", passing=passing, timeout_s=timeout * 60, on_state=report_state
        )

    emit_model(with_service(work, profile=profile, region=region, named=model), json=json, brief=True)


@app.command()
def wait(
    model: Name,
    *,
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="STATUS",
            help="Status to wait for: RUNNING, STOPPED, TRAINING_COMPLETED or COPYING_COMPLETED.",
        ),
    ] = "RUNNING",
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            help="Longest wait in minutes (default: 45, or a day for training and copying).",
            show_default=False,
        ),
    ] = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Wait until a model is RUNNING or STOPPED, or until its training or copying is complete.

    Examples:

      batchcl model wait cats@v2 --until TRAINING_COMPLETED

      batchcl model wait cats@v2 --until STOPPED --timeout 10
    """
    from batchcl import workflow
    from batchcl.errors import UsageError

    if until not in _TRANSITIONS:
        raise UsageError(f"--until {until}: expected {', '.join(_TRANSITIONS)}")
    passing, minutes = _TRANSITIONS[until]
    timeout_s = (minutes if timeout is None else timeout) * 60

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Model:
        arn = await workflow.find_model(service.rekognition, model)
        afterwards.is_(f"only the waiting has ended; check the model with `batchcl model show {arn.name}`")
        if until == "TRAINING_COMPLETED":
            return await workflow.wait_trained(service.rekognition, arn, timeout_s=timeout_s, on_state=report_state)
        if until == "COPYING_COMPLETED":
            return await workflow.wait_copied(service.rekognition, arn, timeout_s=timeout_s, on_state=report_state)
        return await workflow.wait(
            service.rekognition, arn, until=until, passing=passing, timeout_s=timeout_s, on_state=report_state
        )

    emit_model(with_service(work, profile=profile, region=region, named=model), json=json, brief=True)


@app.command()
def stop(
    model: Name,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is STOPPED.")] = True,
    timeout: Timeout = 45,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Stop a model, which ends its billing. Does nothing if it is already stopped.

    Examples:

      batchcl model stop cats@v2
    """
    from batchcl import workflow
    from batchcl.errors import RefusedError

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Model:
        arn = await workflow.find_model(service.rekognition, model)
        found = await workflow.describe(service.rekognition, arn)
        if found.status not in {"STOPPED", "STOPPING", "TRAINING_COMPLETED", "COPYING_COMPLETED"}:
            await workflow.stop(service.rekognition, arn)
            try:
                await workflow.end_lease(service.rekognition, arn)
            except RefusedError as error:
                write_line(f"the lease of `batchcl model start --for` was not removed from {arn.name}: {error}")
        elif found.status != "STOPPING":
            return found
        if not wait:
            return await workflow.describe(service.rekognition, arn)
        afterwards.is_(f"{arn.name} is still stopping in AWS")
        return await workflow.wait(
            service.rekognition,
            arn,
            until="STOPPED",
            passing={"RUNNING", "STOPPING"},
            timeout_s=timeout * 60,
            on_state=report_state,
        )

    emit_model(with_service(work, profile=profile, region=region, named=model), json=json, brief=True)


app.command("reap")(model_reap.reap)
app.command("tag")(model_versions.tag)
app.command("delete")(model_versions.delete)


def _units(model: Model | RunningModel) -> str:
    if model.min_units is None:
        return "-"
    return f"{model.min_units}" if model.max_units is None else f"{model.min_units}:{model.max_units}"
