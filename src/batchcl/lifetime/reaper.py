"""Stop models whose leases have all expired: the implementation of `batchcl model reap`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchcl.arns import ModelArn
from batchcl.aws.models import STARTABLE, UP, Model, describe, list_models, stop
from batchcl.aws.names import project_name
from batchcl.aws.regions import RegionOutcome, in_regions
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.aws.tags import list_tags
from batchcl.errors import CredentialsError, ModelError, RefusedError, UnreachableError
from batchcl.lifetime.lease_tags import ReapAction, decide, leases_in
from batchcl.lifetime.model_lease import RemoveSchedule, drop_leases
from batchcl.lifetime.running import RunningModel, running_in
from batchcl.lifetime.scheduled_stop import remove_schedule as remove_from_scheduler

__all__ = ["ReapOutcome", "ReapResult", "ReapedRegion", "reap", "reap_regions"]


class ReapOutcome(StrEnum):
    """What the reaper did with a model."""

    STOPPED = "stopped"
    WOULD_STOP = "would stop"
    CLEARED = "cleared"
    WOULD_CLEAR = "would clear"
    LEFT = "left"
    WAITING = "waiting"
    """Its leases have expired, but it is STARTING; the next `model reap` stops it."""
    FAILED = "failed"
    """Its tags could not be read, or it could not be stopped."""

    @property
    def unfinished(self) -> bool:
        """Whether the next `model reap` has to continue."""
        return self in {ReapOutcome.WAITING, ReapOutcome.FAILED}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapResult:
    """The result of reaping one model.

    Attributes:
        model: `<project>@<version>`.
        arn: its ARN.
        status: its status before the reaper acted.
        done: what the reaper did.
        reason: why, as text.
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
) -> list[ReapResult]:
    """Stop each RUNNING model whose leases have all expired.

    A model without a lease of the run that started it is never stopped. Expired leases are also removed from models
    that are down: otherwise a later start by other means would be reaped.

    Args:
        client: an open Rekognition client.
        project: name of the only project to check; None for all projects of the account and region.
        dry_run: change nothing.
        now: the service's clock.
        remove_schedule: deletes schedules (scheduled stops of dead runs) by name; None leaves them.

    Returns:
        The result for every model that is running or was changed. A failure for one model doesn't prevent others from
        being stopped; see `ReapOutcome.unfinished`.

    Raises:
        CredentialsError: AWS refuses the credentials, or doesn't permit listing models.
        RefusedError: models can't be listed.
    """
    results = []
    for model in await list_models(client, project=project):
        if model.status not in UP | STARTABLE:
            continue
        result = await _reap_one(client, model, dry_run=dry_run, now=now, remove_schedule=remove_schedule)
        if model.status in UP or result.done is not ReapOutcome.LEFT:
            results.append(result)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapedRegion:
    """What was done in one region.

    Attributes:
        results: see `reap`.
        running: the models that were RUNNING or STARTING afterwards; empty unless it was requested.
    """

    results: tuple[ReapResult, ...]
    running: tuple[RunningModel, ...] = ()


async def reap_regions(
    aws: Aws, regions: Sequence[str], *, project: str | None = None, dry_run: bool = False, with_running: bool = False
) -> RegionOutcome[ReapedRegion]:
    """`reap` in each region, and delete the schedules of dead runs.

    Args:
        aws: the session.
        regions: their names.
        project: name or ARN of the only project to check.
        dry_run: change nothing.
        with_running: also describe the models that run afterwards.

    Raises:
        RefusedError: every region failed; or there is only one, and it has no such project.
    """

    async def one(client: Any, region: str) -> ReapedRegion:
        clock = ServiceClock(client)

        async def remove(name: str) -> bool:
            async with aws.scheduler(region=region) as scheduler:
                return await remove_from_scheduler(scheduler, name)

        name = await project_name(client, project, must_exist=len(regions) == 1)
        results = await reap(client, project=name, dry_run=dry_run, now=clock.now, remove_schedule=remove)
        running = await running_in(aws, client, region=region, clock=clock, project=name) if with_running else ()
        return ReapedRegion(results=tuple(results), running=tuple(running))

    return await in_regions(aws, regions, one)


async def _reap_one(
    client: Any,
    model: Model,
    *,
    dry_run: bool,
    now: Callable[[], dt.datetime],
    remove_schedule: RemoveSchedule | None,
) -> ReapResult:
    try:
        decision = decide(model.status, leases_in(await list_tags(client, model.arn)), now())
        done, reason = _outcome_of(decision.action, dry_run=dry_run), decision.reason
        if done is ReapOutcome.STOPPED and (changed := await _stop(client, model)):
            done, reason = ReapOutcome.LEFT, changed
        if done in {ReapOutcome.STOPPED, ReapOutcome.CLEARED}:
            try:
                arn = ModelArn.parse(model.arn)
                removed = await drop_leases(client, arn, decision.ended, remove_schedule=remove_schedule)
                done = ReapOutcome.LEFT if done is ReapOutcome.CLEARED and not removed else done
            except RefusedError as error:  # the next `model reap` removes it
                done, reason = ReapOutcome.FAILED, f"it is {done}, but its lease could not be removed: {error}"
    except RefusedError as error:
        if isinstance(error, CredentialsError) and not error.is_access_denied:
            raise
        done = ReapOutcome.FAILED if model.status in UP else ReapOutcome.LEFT  # a model that is down costs nothing
        reason = str(error)
    return ReapResult(model=model.name, arn=model.arn, status=model.status, done=done, reason=reason)


def _outcome_of(action: ReapAction, *, dry_run: bool) -> ReapOutcome:
    """The outcome of `action` if it succeeds."""
    return {
        ReapAction.LEAVE: ReapOutcome.LEFT,
        ReapAction.WAIT: ReapOutcome.WAITING,
        ReapAction.CLEAR: ReapOutcome.WOULD_CLEAR if dry_run else ReapOutcome.CLEARED,
        ReapAction.STOP: ReapOutcome.WOULD_STOP if dry_run else ReapOutcome.STOPPED,
    }[action]


async def _stop(client: Any, model: Model) -> str:
    """Stop the model. Returns a reason if it was stopped by others in the meantime, otherwise an empty text."""
    arn = ModelArn.parse(model.arn)
    try:
        await stop(client, arn)
    except (ModelError, UnreachableError) as error:
        if (status := (await describe(client, arn)).status) == "RUNNING":
            raise
        if isinstance(error, UnreachableError) and status not in UP:  # only the response was lost
            return ""
        return f"it was stopped by others in the meantime: it is {status}"
    return ""
