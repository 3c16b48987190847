"""`batchcl model list|show|start|wait|stop`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.run import tell

if TYPE_CHECKING:
    from batchcl.aws.lifecycle import Model

__all__ = ["app"]

app = typer.Typer(help="Look at, start and stop trained models.", no_args_is_help=True)

_T = TypeVar("_T")

Arn = Annotated[str, typer.Argument(metavar="ARN", help="The trained model's ARN.", show_default=False)]
Timeout = Annotated[float, typer.Option("--timeout", help="Minutes to wait at most.")]


@app.command("list")
def list_models(
    *,
    project: Annotated[str | None, typer.Option("--project", help="Of this project only.", show_default=False)] = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """All models of the account and region.

    Examples:

      batchcl model list --region eu-west-1

      batchcl model list --project cats --json
    """  # noqa: D412 - Typer shows the examples as they stand
    import polars as pl  # noqa: PLC0415 - `batchcl --help` goes without

    from batchcl.aws import lifecycle  # noqa: PLC0415
    from batchcl.cli.output import emit  # noqa: PLC0415

    async def work(client: Any) -> list[Model]:
        return await lifecycle.list_models(client, project=project)

    models = _with_client(work, profile=profile, region=region)
    if json:
        emit(pl.DataFrame([_shown(model) for model in models], infer_schema_length=None), json=True)
        return
    rows = [
        {"model": model.name, "status": model.status, "units": _units(model), "F1": model.f1, "arn": model.arn}
        for model in models
    ]
    schema = {"model": pl.String, "status": pl.String, "units": pl.String, "F1": pl.Float64, "arn": pl.String}
    emit(pl.DataFrame(rows, schema=schema))


@app.command()
def show(arn: Arn, profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """One model: its state, units and F1.

    Examples:

      batchcl model show ARN --json
    """  # noqa: D412
    from batchcl.aws import lifecycle  # noqa: PLC0415

    async def work(client: Any) -> Model:
        return await lifecycle.describe(client, _parsed(arn))

    _emit_model(_with_client(work, profile=profile, region=_region(arn, region)), json=json)


@app.command()
def start(
    arn: Arn,
    *,
    units: Annotated[str, typer.Option("--units", metavar="MIN[:MAX]", help="Inference units, 1 to 5.")] = "1",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is RUNNING.")] = True,
    timeout: Timeout = 45,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Start a model; it costs $4 per unit and hour from RUNNING until it is stopped.

    Examples:

      batchcl model start ARN --units 1:3
    """  # noqa: D412
    from batchcl.aws import lifecycle  # noqa: PLC0415

    async def work(client: Any) -> Model:
        parsed = _parsed(arn)
        await lifecycle.start(client, parsed, lifecycle.Units.parse(units))
        if not wait:
            return await lifecycle.describe(client, parsed)
        passing = {"STARTING", "STOPPED", "TRAINING_COMPLETED", "COPYING_COMPLETED"}
        return await lifecycle.wait(
            client, parsed, until="RUNNING", passing=passing, timeout_s=timeout * 60, on_state=_tell_state
        )

    _emit_model(_with_client(work, profile=profile, region=_region(arn, region)), json=json)


@app.command()
def wait(
    arn: Arn,
    *,
    until: Annotated[str, typer.Option("--until", metavar="STATUS", help="RUNNING or STOPPED.")] = "RUNNING",
    timeout: Timeout = 45,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Wait until a model is RUNNING or STOPPED.

    Examples:

      batchcl model wait ARN --until STOPPED --timeout 10
    """  # noqa: D412
    from batchcl.aws import lifecycle  # noqa: PLC0415
    from batchcl.errors import UsageError  # noqa: PLC0415

    ways = {"RUNNING": {"STARTING"}, "STOPPED": {"RUNNING", "STOPPING"}}
    if until not in ways:
        raise UsageError(f"--until {until}: wait for RUNNING or STOPPED")

    async def work(client: Any) -> Model:
        return await lifecycle.wait(
            client, _parsed(arn), until=until, passing=ways[until], timeout_s=timeout * 60, on_state=_tell_state
        )

    _emit_model(_with_client(work, profile=profile, region=_region(arn, region)), json=json)


@app.command()
def stop(
    arn: Arn,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is STOPPED.")] = True,
    timeout: Timeout = 45,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Stop a model, which ends its billing. One that is stopped already is left so.

    Examples:

      batchcl model stop ARN
    """  # noqa: D412
    from batchcl.aws import lifecycle  # noqa: PLC0415

    async def work(client: Any) -> Model:
        parsed = _parsed(arn)
        model = await lifecycle.describe(client, parsed)
        if model.status not in {"STOPPED", "STOPPING", "TRAINING_COMPLETED", "COPYING_COMPLETED"}:
            await lifecycle.stop(client, parsed)
        elif model.status != "STOPPING":
            return model
        if not wait:
            return await lifecycle.describe(client, parsed)
        return await lifecycle.wait(
            client,
            parsed,
            until="STOPPED",
            passing={"RUNNING", "STOPPING"},
            timeout_s=timeout * 60,
            on_state=_tell_state,
        )

    _emit_model(_with_client(work, profile=profile, region=_region(arn, region)), json=json)


def _with_client(work: Callable[[Any], Awaitable[_T]], *, profile: str | None, region: str | None) -> _T:
    import anyio  # noqa: PLC0415

    from batchcl.aws.session import Aws, AwsSettings  # noqa: PLC0415

    @asynccontextmanager
    async def client() -> AsyncIterator[Any]:
        aws = Aws(AwsSettings(profile=profile, region=region))
        await aws.check_credentials()
        async with aws.rekognition() as opened:
            yield opened

    async def main() -> _T:
        async with client() as opened:
            return await work(opened)

    return anyio.run(main)


def _parsed(arn: str) -> Any:
    from batchcl.aws.arn import ModelArn  # noqa: PLC0415

    return ModelArn.parse(arn)


def _region(arn: str, given: str | None) -> str:
    """The model's region; another one can't have it."""
    return given or str(_parsed(arn).region)


def _tell_state(model: Model) -> None:
    tell(f"{model.name} is {model.status}")


def _emit_model(model: Model, *, json: bool) -> None:
    from batchcl.cli.output import emit_object  # noqa: PLC0415

    emit_object(_shown(model), json=json)


def _shown(model: Model) -> dict[str, Any]:
    return {"model": model.name} | asdict(model)


def _units(model: Model) -> str:
    if model.min_units is None:
        return "-"
    return f"{model.min_units}" if model.max_units is None else f"{model.min_units}:{model.max_units}"
