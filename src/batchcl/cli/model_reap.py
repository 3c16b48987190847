"""`batchcl model reap`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import ReapResult, WorkflowClients

__all__ = ["reap"]


def reap(
    *,
    project: Annotated[
        str | None, typer.Option("--project", help="Only models of this project.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")] = False,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Stop RUNNING models whose lease has expired, because their run has died. Other models are not touched.

    A run tags a model that it starts with a lease and renews it; `model start --for` sets one, too. Call this command
    from cron every few minutes, and no kill -9 or power cut leaves a model running for long.

    Exits with 0 if nothing is left to do, and with 4 if a model could not be stopped yet: repeat the command.

    Examples:

      batchcl model reap --dry-run

      batchcl model reap --region eu-west-1 --json
    """
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit
    from batchcl.errors import StoppedError

    async def work(service: WorkflowClients, _: InterruptMessage) -> list[ReapResult]:
        return await workflow.reap(
            service.rekognition,
            project=None if project is None else (await workflow.find_project(service.rekognition, project)).project,
            dry_run=dry_run,
            now=service.clock.now,
            remove_schedule=service.remove_schedule,
        )

    found = with_service(work, profile=profile, region=region, named=project)
    columns = ("model", "status", "done", "reason", "arn") if json else ("model", "status", "done", "reason")
    rows = [{name: str(asdict(each)[name]) for name in columns} for each in found]
    if rows or json:
        emit(pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String)), json=json)
    else:
        write_line("no model is running, and no lease has expired")
    unfinished = [each for each in found if each.done.unfinished]
    if unfinished:
        which = "; ".join(f"{each.model}: {each.reason}" for each in unfinished)
        raise StoppedError(f"some models are not stopped yet; repeat the command: {which}")
