"""The model: who may look at it, what state it is in, and what the account's quotas leave for it."""

from __future__ import annotations

from batchcl.aws.account import DEFAULTS, Quotas, read_quotas
from batchcl.aws.models import IN_USE, Units, describe, list_models
from batchcl.aws.tags import list_tags
from batchcl.diagnosis.context import Answer, CheckContext
from batchcl.diagnosis.findings import CheckStatus
from batchcl.errors import CredentialsError, RefusedError
from batchcl.events import SilentObserver
from batchcl.lifetime.manager import ModelManager
from batchcl.quantities import counted
from batchcl.scoring.connections import EMULATED_UNITS
from batchcl.stop_signal import StopSignal

__all__ = ["check_control", "check_model", "check_quotas"]

_UNTRIED = "tagging, starting and stopping can't be tried without being done"


async def check_control(case: CheckContext) -> Answer:
    """The calls around a run that may be made without changing anything."""
    try:
        models = await list_models(case.rekognition, project=case.model.project if case.subject.has_model else None)
    except CredentialsError as error:
        if case.job.units is not None or not error.is_access_denied:
            raise
        return CheckStatus.WARN, f"{error}; a model that is RUNNING can be used all the same"
    if not case.subject.has_model:
        return (
            CheckStatus.OK,
            f"DescribeProjects and DescribeProjectVersions answer: {counted(len(models), 'model')} in {case.region}",
        )
    if case.job.units is None:
        return CheckStatus.OK, "DescribeProjects and DescribeProjectVersions answer"
    if case.job.lease_s is not None and case.model.text in [each.arn for each in models]:
        await list_tags(case.rekognition, case.model.text)
        return CheckStatus.OK, f"DescribeProjects, DescribeProjectVersions and ListTagsForResource answer; {_UNTRIED}"
    return CheckStatus.OK, f"DescribeProjects and DescribeProjectVersions answer; {_UNTRIED}"


async def check_model(case: CheckContext) -> Answer:
    """What a run would say of it, and its state."""
    keeper = ModelManager(
        case.rekognition,
        case.model,
        units=_units(case),
        keep=True,
        observer=SilentObserver(),
        stopper=StopSignal(),
    )
    await keeper.check()
    try:
        found = await describe(case.rekognition, case.model)
    except CredentialsError as error:
        return CheckStatus.WARN, f"the state of {case.model.name} can't be seen: {error}"
    case.described = found
    quality = "" if found.f1 is None else f", F1 {found.f1:.4f}"
    if found.status == "RUNNING":
        units = "" if found.min_units is None else f" with {Units(found.min_units, found.max_units).words}"
        return CheckStatus.OK, f"{found.name} is RUNNING{units}{quality}"
    if found.status == "STARTING":
        return CheckStatus.OK, f"{found.name} is STARTING{quality}; a run waits for it"
    to_start = _units(case)
    how = "" if to_start is None else f" with {to_start.words}"
    return CheckStatus.OK, f"{found.name} is {found.status}{quality}; a run starts it{how}"


async def check_quotas(case: CheckContext) -> Answer:
    """What the account may use at a time, against what the job wants."""
    try:
        async with case.aws.bystander("service-quotas", region=case.region) as client:
            case.clock.listen(client)
            quotas = await read_quotas(client)
    except RefusedError as error:
        problem = await _problem(case, DEFAULTS)
        return CheckStatus.WARN, (
            f"the quotas aren't known: {error}; AWS's defaults are {DEFAULTS}" + (f", and {problem}" if problem else "")
        )
    if (problem := await _problem(case, quotas)) is not None:
        return CheckStatus.FAIL, f"the quotas are {quotas}, and {problem}, or ask for more in Service Quotas"
    if case.job.max_tps is not None and case.job.max_tps > quotas.calls_tps:
        return (
            CheckStatus.WARN,
            f"the quotas are {quotas}; --max-tps {case.job.max_tps:g} is more than will be let through",
        )
    return CheckStatus.OK, str(quotas)


async def _problem(case: CheckContext, quotas: Quotas) -> str | None:
    """Why a model can't be started within `quotas`; None where nothing is to be started, or nothing is in the way."""
    units = _units(case)
    if units is None or case.described is None or case.described.status in IN_USE:
        return None
    most = units.minimum if units.maximum is None else units.maximum
    if most > quotas.units:
        return f"--start-model {units} asks for {most}; ask for fewer"
    others = [each.name for each in await list_models(case.rekognition) if each.status in IN_USE]
    if others and len(others) >= quotas.running:
        return f"so many are running already ({', '.join(others)}); stop one with `batchcl model stop {others[0]}`"
    return None


def _units(case: CheckContext) -> Units | None:
    return case.job.units or (EMULATED_UNITS if case.job.emulator else None)
