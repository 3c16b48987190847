"""Checks of the control plane, the model's state and the account's quotas."""

from __future__ import annotations

from batchcl.aws.account import DEFAULTS, Quotas, read_quotas
from batchcl.aws.models import IN_USE, describe, list_models
from batchcl.aws.tags import list_tags
from batchcl.diagnosis.context import CheckContext, CheckResult
from batchcl.diagnosis.findings import CheckStatus
from batchcl.errors import CredentialsError, RefusedError
from batchcl.events import SilentObserver
from batchcl.lifetime.manager import ModelManager
from batchcl.quantities import Units, pluralize
from batchcl.scoring.connections import EMULATED_UNITS
from batchcl.stop_signal import StopSignal

__all__ = ["check_control", "check_model", "check_quotas"]

_NOT_TESTED = "permissions to tag, start and stop the model can't be tested without doing so"


async def check_control(context: CheckContext) -> CheckResult:
    """Whether the read-only calls of a run to the control plane succeed."""
    try:
        models = await list_models(
            context.rekognition, project=context.model.project if context.target.has_model else None
        )
    except CredentialsError as error:
        if context.job.units is not None or not error.is_access_denied:
            raise
        return CheckStatus.WARN, f"{error}; a model that is RUNNING can be used nevertheless"
    if not context.target.has_model:
        found = f"{pluralize(len(models), 'model')} in {context.region}"
        return CheckStatus.OK, f"DescribeProjects and DescribeProjectVersions succeed: {found}"
    if context.job.units is None:
        return CheckStatus.OK, "DescribeProjects and DescribeProjectVersions succeed"
    if context.job.lease_s is not None and context.model.text in [each.arn for each in models]:
        await list_tags(context.rekognition, context.model.text)
        return (
            CheckStatus.OK,
            f"DescribeProjects, DescribeProjectVersions and ListTagsForResource succeed; {_NOT_TESTED}",
        )
    return CheckStatus.OK, f"DescribeProjects and DescribeProjectVersions succeed; {_NOT_TESTED}"


async def check_model(context: CheckContext) -> CheckResult:
    """Whether a run can use the model: it is RUNNING, or the job may start it."""
    model_manager = ModelManager(
        context.rekognition,
        context.model,
        units=_units(context),
        keep=True,
        observer=SilentObserver(),
        stop_signal=StopSignal(),
    )
    await model_manager.check()
    try:
        model = await describe(context.rekognition, context.model)
    except CredentialsError as error:
        return CheckStatus.WARN, f"finding the state of {context.model.name} failed: {error}"
    context.described = model
    quality = "" if model.f1 is None else f", F1 {model.f1:.4f}"
    if model.status == "RUNNING":
        units = "" if model.min_units is None else f" with {Units(model.min_units, model.max_units).words}"
        return CheckStatus.OK, f"{model.name} is RUNNING{units}{quality}"
    if model.status == "STARTING":
        return CheckStatus.OK, f"{model.name} is STARTING{quality}; a run waits for it"
    to_start = _units(context)
    how = "" if to_start is None else f" with {to_start.words}"
    return CheckStatus.OK, f"{model.name} is {model.status}{quality}; a run starts it{how}"


async def check_quotas(context: CheckContext) -> CheckResult:
    """Whether the account's quotas allow what the job asks for."""
    try:
        async with context.aws.auxiliary_client("service-quotas", region=context.region) as client:
            context.clock.listen(client)
            quotas = await read_quotas(client)
    except RefusedError as error:
        problem = await _problem(context, DEFAULTS)
        return CheckStatus.WARN, f"{error}; AWS's defaults are {DEFAULTS}" + (f"; {problem}" if problem else "")
    if (problem := await _problem(context, quotas)) is not None:
        return CheckStatus.FAIL, f"the quotas are {quotas}; {problem}, or request an increase in Service Quotas"
    if context.job.max_tps is not None and context.job.max_tps > quotas.calls_tps:
        return (
            CheckStatus.WARN,
            f"the quotas are {quotas}; --max-tps {context.job.max_tps:g} is more than the quota",
        )
    return CheckStatus.OK, str(quotas)


async def _problem(context: CheckContext, quotas: Quotas) -> str | None:
    """Return why the model can't be started within `quotas`; None if it can, or does not have to be started."""
    units = _units(context)
    if units is None or context.described is None or context.described.status in IN_USE:
        return None
    max_units = units.minimum if units.maximum is None else units.maximum
    if max_units > quotas.units:
        return f"--start-model {units} needs {pluralize(max_units, 'unit')}; use fewer"
    others = [each.name for each in await list_models(context.rekognition) if each.status in IN_USE]
    if others and len(others) >= quotas.running:
        running = f"{pluralize(len(others), 'model')} already running ({', '.join(others)})"
        return f"{running}; stop one with `batchcl model stop {others[0]}`"
    return None


def _units(context: CheckContext) -> Units | None:
    return context.job.units or (EMULATED_UNITS if context.aws.settings.is_emulator else None)
