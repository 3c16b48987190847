"""Which models are running, in one or all regions: the implementation of `batchcl model list --running`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from batchcl.arns import ModelArn
from batchcl.aws.metrics import running_time
from batchcl.aws.models import UP, Model, list_models
from batchcl.aws.names import project_name
from batchcl.aws.regions import SkippedRegion, in_regions, rekognition_regions
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.aws.tags import list_tags
from batchcl.errors import RefusedError
from batchcl.lifetime.lease_tags import LeaseTag, decide, leases_in
from batchcl.prices import unit_hour_usd

__all__ = ["AgeSource", "RunningModel", "RunningModels", "running_in", "running_models"]

_HOUR_S: Final = 3600


class AgeSource(StrEnum):
    """Where a model's age is from; the service itself doesn't report it."""

    LEASE = "lease"
    """The run's tag: when the run requested the start. Billing began up to half an hour later."""
    CLOUDWATCH = "cloudwatch"
    """CloudWatch's metric InServiceInferenceUnits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningModel:
    """A model that is RUNNING or STARTING.

    Attributes:
        model: `<project>@<version>`.
        arn: its ARN.
        region: its region.
        status: RUNNING or STARTING.
        min_units: the inference units that it was started with.
        max_units: the maximum, with auto-scaling.
        is_leased: whether a run or `model start --for` has left a tag on it, expired or not; without one, nothing stops
            the model. None if its tags can't be read.
        lease: the state of its lease, or why it is unknown, as text.
        since: when it was started; None if that is unknown.
        since_source: where `since` is from.
        age_s: seconds since then.
        cost_usd: dollars since then. By the lease, a maximum; None if the age or the units are unknown.
        note: why the age or the cost is unknown, if a request failed; else empty.
    """

    model: str
    arn: str
    region: str
    status: str
    min_units: int | None
    max_units: int | None
    is_leased: bool | None
    lease: str
    since: dt.datetime | None = None
    since_source: AgeSource | None = None
    age_s: float | None = None
    cost_usd: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningModels:
    """The running models, and the regions that could not be read.

    Attributes:
        models: by region, and within it in the service's order.
        regions: the regions that were read.
        skipped: the regions that refused, or did not respond.
    """

    models: tuple[RunningModel, ...]
    regions: tuple[str, ...]
    skipped: tuple[SkippedRegion, ...] = ()


async def running_models(
    *, all_regions: bool = False, project: str | None = None, aws: Aws | None = None
) -> RunningModels:
    """The models that are RUNNING or STARTING, with their leases, ages and costs; nothing is changed.

    Args:
        all_regions: all regions with Rekognition, instead of the session's only.
        project: name or ARN; only models of this project.
        aws: the session; default: made from the environment.

    Raises:
        CredentialsError: there are no credentials, or AWS refuses them.
        RefusedError: no region could be read; or, without `all_regions`, there is no such project.
    """
    aws = aws or Aws()
    regions = rekognition_regions(aws.region) if all_regions else [aws.region]

    async def read(client: Any, region: str) -> list[RunningModel]:
        clock = ServiceClock(client)
        name = await project_name(client, project, must_exist=not all_regions)
        return await running_in(aws, client, region=region, clock=clock, project=name)

    outcome = await in_regions(aws, regions, read)
    return RunningModels(
        models=tuple(model for models in outcome.results.values() for model in models),
        regions=tuple(outcome.results),
        skipped=outcome.skipped,
    )


async def running_in(
    aws: Aws, client: Any, *, region: str, clock: ServiceClock, project: str | None = None
) -> list[RunningModel]:
    """The running models of one region; see `running_models`.

    Args:
        aws: opens a CloudWatch client if it is needed.
        client: an open Rekognition client of the region.
        region: the region.
        clock: the service's.
        project: name of the only project.
    """
    found = [model for model in await list_models(client, project=project) if model.status in UP]
    return [await _describe(aws, client, model, region=region, clock=clock) for model in found]


async def _describe(aws: Aws, client: Any, model: Model, *, region: str, clock: ServiceClock) -> RunningModel:
    leases: tuple[LeaseTag, ...] | None
    try:
        leases = leases_in(await list_tags(client, model.arn))
        lease = decide(model.status, leases, clock.now()).reason
    except RefusedError as error:
        leases, lease = None, f"unknown: {error}"
    age = _age_by_lease(model, leases or (), now=clock.now())
    note = ""
    if model.status == "RUNNING" and (age.since is None or age.cost_usd is None):
        try:
            async with aws.auxiliary_client("cloudwatch", region=region, renews=False) as cloudwatch:
                used = await running_time(cloudwatch, ModelArn.parse(model.arn), now=clock.now())
        except RefusedError as error:
            note = str(error)
        else:
            if used is not None:
                age = _Age(
                    used.since,
                    AgeSource.CLOUDWATCH,
                    (clock.now() - used.since).total_seconds(),
                    used.unit_hours * unit_hour_usd(),
                )
    return RunningModel(
        model=model.name,
        arn=model.arn,
        region=region,
        status=model.status,
        min_units=model.min_units,
        max_units=model.max_units,
        is_leased=None if leases is None else any(each.started and each.until is not None for each in leases),
        lease=lease,
        since=age.since,
        since_source=age.source,
        age_s=age.seconds,
        cost_usd=age.cost_usd,
        note=note,
    )


@dataclass(frozen=True, slots=True)
class _Age:
    since: dt.datetime | None = None
    source: AgeSource | None = None
    seconds: float | None = None
    cost_usd: float | None = None


def _age_by_lease(model: Model, leases: tuple[LeaseTag, ...], *, now: dt.datetime) -> _Age:
    """The age by the earliest start in a lease. The cost is unknown while the model starts, and with auto-scaling."""
    starts = [each.since for each in leases if each.started and each.since is not None]
    if not starts:
        return _Age()
    seconds = max(0.0, (now - min(starts)).total_seconds())
    is_constant = model.min_units is not None and model.max_units in {None, model.min_units}
    if model.status != "RUNNING" or not is_constant:
        return _Age(min(starts), AgeSource.LEASE, seconds)
    assert model.min_units is not None
    return _Age(min(starts), AgeSource.LEASE, seconds, seconds / _HOUR_S * model.min_units * unit_hour_usd())
