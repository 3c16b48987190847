"""One examination, from what everything depends on to what depends on everything."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from batchcl.arns import ModelArn
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.diagnosis.account import check_account, check_clock, check_credentials, check_region
from batchcl.diagnosis.context import Answer, CheckContext, CheckTarget
from batchcl.diagnosis.findings import CheckStatus, Diagnosis, Finding
from batchcl.diagnosis.images import check_call, check_images, check_sources_of
from batchcl.diagnosis.model import check_control, check_model, check_quotas
from batchcl.diagnosis.output import check_output
from batchcl.errors import BatchclError
from batchcl.job import Job
from batchcl.scoring.connections import service_of

__all__ = ["doctor"]


@dataclass(frozen=True, slots=True)
class _Check:
    """A check by its name; `applies` tells whether there is anything to look at."""

    name: str
    look: Callable[[CheckContext], Awaitable[Answer]]
    applies: Callable[[CheckContext], bool] = lambda _: True


_CHECKS: Final = (
    _Check("credentials", check_credentials),
    _Check("account", check_account),
    _Check("region", check_region),
    _Check("control", check_control),
    _Check("model", check_model, lambda case: case.subject.has_model),
    _Check("quotas", check_quotas),
    _Check("clock", check_clock),
    _Check("sources", check_sources_of, lambda case: case.subject.has_sources),
    _Check("images", check_images, lambda case: bool(case.page)),
    _Check("call", check_call, lambda case: bool(case.page) and case.subject.has_model and "model" not in case.failed),
    _Check("output", check_output, lambda case: case.subject.has_out),
)

_VITAL: Final = frozenset({"credentials"})
"""Without these, every other check would say the same."""


async def doctor(
    job: Job | CheckTarget,
    *,
    on_finding: Callable[[Finding], None] = lambda _: None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Diagnosis:
    """Look at all that a run of the job depends on, and say what is wrong with it; nothing is left changed.

    The model is neither started nor stopped. One image is scored where the model is RUNNING, which costs nothing more.
    A small object is written to the output root and removed.

    Args:
        job: what would be run; a `CheckTarget` where parts of it aren't known yet, which are left out.
        on_finding: told of each finding as it is made.
        utcnow: this machine's clock.

    Raises:
        UsageError: the emulator's extra packages are missing.
    """
    subject = job if isinstance(job, CheckTarget) else CheckTarget(job=job)
    findings: list[Finding] = []
    with ExitStack() as files:
        async with service_of(subject.job) as (aws, model):
            region = model.region if subject.has_model else aws.region
            async with aws.rekognition(region=region) as rekognition:
                case = CheckContext(
                    subject=subject,
                    aws=aws,
                    model=model if subject.has_model else _placed(model, aws),
                    region=region,
                    rekognition=rekognition,
                    clock=ServiceClock(rekognition, utcnow=utcnow),
                    begun_at=utcnow(),
                    files=files,
                )
                for check in _CHECKS:
                    if not check.applies(case):
                        continue
                    finding = await _made(check, case)
                    findings.append(finding)
                    on_finding(finding)
                    if finding.verdict is not CheckStatus.FAIL:
                        continue
                    case.failed.add(check.name)
                    if check.name in _VITAL:
                        break
    return Diagnosis(tuple(findings))


async def _made(check: _Check, case: CheckContext) -> Finding:
    try:
        verdict, text = await check.look(case)
    except BatchclError as error:
        return Finding(check.name, CheckStatus.FAIL, str(error))
    return Finding(check.name, verdict, text)


def _placed(model: ModelArn, aws: Aws) -> ModelArn:
    """The placeholder in the session's region, where buckets are expected then."""
    return ModelArn.parse(model.text.replace(f":{model.region}:", f":{aws.region}:", 1))
