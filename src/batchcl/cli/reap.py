"""`batchcl model reap`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import Reaped, WorkflowClients

__all__ = ["reap"]


def reap(
    *,
    project: Annotated[str | None, typer.Option("--project", help="Of this project only.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and change nothing.")] = False,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Stop the models whose run has died: RUNNING, with a lease that has ended. All others are left alone.

    A run tags a model that it starts with a lease, and renews that while it lives; `model start --for` gives one too.
    Have cron call this every few minutes: then no kill -9 and no power cut leaves a model running for long.

    Ends with 0 when there is nothing left to do, with 4 when a model could not be stopped yet: call it again.

    Examples:

      batchcl model reap --dry-run

      batchcl model reap --region eu-west-1 --json
    """
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit
    from batchcl.errors import StoppedError

    async def work(service: WorkflowClients, _: InterruptMessage) -> list[Reaped]:
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
        write_line("no model runs, and no lease has ended")
    unfinished = [each for each in found if each.done.unfinished]
    if unfinished:
        which = "; ".join(f"{each.model}: {each.reason}" for each in unfinished)
        raise StoppedError(f"there is something left to stop, so call it again: {which}")
