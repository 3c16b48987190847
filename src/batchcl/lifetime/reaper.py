"""Stop the models that nobody is left to stop: what `batchcl model reap` does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchcl.arns import ModelArn
from batchcl.aws.models import STARTABLE, UP, Model, describe, list_models, stop
from batchcl.aws.tags import list_tags
from batchcl.errors import CredentialsError, ModelError, RefusedError, UnreachableError
from batchcl.lifetime.lease_tags import ReapAction, ReapDecision, decide, leases_in
from batchcl.lifetime.model_lease import RemoveSchedule, drop_leases

__all__ = ["ReapOutcome", "Reaped", "reap"]


class ReapOutcome(StrEnum):
    """What was done with a model."""

    STOPPED = "stopped"
    WOULD_STOP = "would stop"
    CLEARED = "cleared"
    WOULD_CLEAR = "would clear"
    LEFT = "left"
    WAITING = "waiting"
    """Its lease has ended, but it is STARTING: the next one stops it."""
    FAILED = "failed"
    """It could not be looked at or stopped."""

    @property
    def unfinished(self) -> bool:
        """Whether there is something left to do, for the next one."""
        return self in {ReapOutcome.WAITING, ReapOutcome.FAILED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What became of a model, and why.

    Attributes:
        model: `<project>@<version>`.
        arn: its ARN.
        status: the service's own word, before anything was done.
        done: what was done.
        reason: why, in words.
    """

    model: str
    arn: str
    status: str
    done: ReapOutcome
    reason: str


async def reap(
    client: Any,
    *,
    project: str | None = None,
    dry_run: bool = False,
    now: Callable[[], dt.datetime],
    remove_schedule: RemoveSchedule | None = None,
) -> list[Reaped]:
    """Stop each RUNNING model whose leases have all ended, and leave all others alone.

    A model without a lease of somebody who started it is left alone, whoever runs it. Leases that have ended are
    removed, from models that don't run, too: they would have a model stopped that is started by other means later.

    Args:
        client: an open Rekognition client.
        project: of this project's name only; all of the account and region if None.
        dry_run: change nothing.
        now: the service's clock.
        remove_schedule: deletes the schedule of this name, a dead run's scheduled stop; None leaves it.

    Returns:
        What became of every model that runs or was changed. One failing model doesn't keep the others from being
        stopped; see `ReapOutcome.unfinished`.

    Raises:
        CredentialsError: AWS refuses the credentials, or that models are listed.
        RefusedError: models can't be listed.
    """
    found = []
    for model in await list_models(client, project=project):
        if model.status not in UP | STARTABLE:
            continue
        reaped = await _reap_one(client, model, dry_run=dry_run, now=now, remove_schedule=remove_schedule)
        if model.status in UP or reaped.done is not ReapOutcome.LEFT:
            found.append(reaped)
    return found


async def _reap_one(
    client: Any,
    model: Model,
    *,
    dry_run: bool,
    now: Callable[[], dt.datetime],
    remove_schedule: RemoveSchedule | None,
) -> Reaped:
    try:
        verdict = decide(model.status, leases_in(await list_tags(client, model.arn)), now())
        done, reason = _as_told(verdict, dry_run=dry_run)
        if done is ReapOutcome.STOPPED and (faster := await _stop(client, model)):
            done, reason = ReapOutcome.LEFT, faster
        if done in {ReapOutcome.STOPPED, ReapOutcome.CLEARED}:
            try:
                arn = ModelArn.parse(model.arn)
                gone = await drop_leases(client, arn, verdict.ended, remove_schedule=remove_schedule)
                done = ReapOutcome.LEFT if done is ReapOutcome.CLEARED and not gone else done
            except RefusedError as error:  # the next one clears it up
                done, reason = ReapOutcome.FAILED, f"it is {done}, but its lease could not be removed: {error}"
    except RefusedError as error:
        if isinstance(error, CredentialsError) and not error.is_access_denied:
            raise
        done = ReapOutcome.FAILED if model.status in UP else ReapOutcome.LEFT  # what doesn't run costs nothing
        reason = str(error)
    return Reaped(model=model.name, arn=model.arn, status=model.status, done=done, reason=reason)


def _as_told(verdict: ReapDecision, *, dry_run: bool) -> tuple[ReapOutcome, str]:
    doing = {
        ReapAction.LEAVE: ReapOutcome.LEFT,
        ReapAction.WAIT: ReapOutcome.WAITING,
        ReapAction.CLEAR: ReapOutcome.WOULD_CLEAR if dry_run else ReapOutcome.CLEARED,
        ReapAction.STOP: ReapOutcome.WOULD_STOP if dry_run else ReapOutcome.STOPPED,
    }
    return doing[verdict.action], verdict.reason


async def _stop(client: Any, model: Model) -> str:
    """Stop the model; why that wasn't needed any more, where somebody else was faster."""
    arn = ModelArn.parse(model.arn)
    try:
        await stop(client, arn)
    except (ModelError, UnreachableError) as error:
        if (status := (await describe(client, arn)).status) == "RUNNING":
            raise
        if isinstance(error, UnreachableError) and status not in UP:  # only the answer was lost
            return ""
        return f"somebody else was faster: it is {status}"
    return ""
