"""Runs the checks in the order of their dependencies."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from batchcl.arns import ModelArn
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.diagnosis import checks
from batchcl.diagnosis.context import CheckContext, CheckResult, CheckStatus, CheckTarget, Diagnosis, Finding
from batchcl.errors import BatchclError
from batchcl.job import Job
from batchcl.monitoring import Targets
from batchcl.scoring.connections import open_service

__all__ = ["doctor"]


@dataclass(frozen=True, slots=True)
class _Check:
    """A check; it is left out if `applies` returns False."""

    name: str
    run: Callable[[CheckContext], Awaitable[CheckResult]]
    applies: Callable[[CheckContext], bool] = lambda _: True


_CHECKS: Final = (
    _Check("credentials", checks.check_credentials),
    _Check("account", checks.check_account),
    _Check("region", checks.check_region),
    _Check("control", checks.check_control),
    _Check("model", checks.check_model, lambda context: context.target.has_model),
    _Check("quotas", checks.check_quotas),
    _Check("clock", checks.check_clock),
    _Check("sources", checks.check_job_sources, lambda context: context.target.has_sources),
    _Check("images", checks.check_images, lambda context: bool(context.page)),
    _Check(
        "call",
        checks.check_call,
        lambda context: bool(context.page) and context.target.has_model and "model" not in context.failed,
    ),
    _Check("output", checks.check_output, lambda context: context.target.has_out),
    _Check("monitoring", checks.check_monitoring, lambda context: bool(Targets.of(context.job))),
)

_REQUIRED: Final = frozenset({"credentials"})
"""If one of these fails, the other checks would fail for the same reason and are not run."""


async def doctor(
    job: Job | CheckTarget,
    *,
    aws: Aws | None = None,
    on_finding: Callable[[Finding], None] = lambda _: None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Diagnosis:
    """Check everything that a run of the job depends on, without lasting changes.

    The model is neither started nor stopped. If it is RUNNING, one image is scored, at no extra cost. A small object is
    written to the output root and removed.

    Args:
        job: the job, or a `CheckTarget` if parts of it are not known; these are not checked.
        aws: session to use; default: the job's profile and region.
        on_finding: called with each finding immediately.
        utcnow: this machine's clock.

    Raises:
        UsageError: the packages of the extra `emulator` are not installed.
    """
    target = job if isinstance(job, CheckTarget) else CheckTarget(job=job)
    findings: list[Finding] = []
    with ExitStack() as files:
        aws, model = await open_service(target.job, aws)
        region = model.region if target.has_model else aws.region
        async with aws.rekognition(region=region) as rekognition:
            context = CheckContext(
                target=target,
                aws=aws,
                model=model if target.has_model else _in_region(model, aws.region),
                region=region,
                rekognition=rekognition,
                clock=ServiceClock(rekognition, utcnow=utcnow),
                begun_at=utcnow(),
                files=files,
            )
            for check in _CHECKS:
                if not check.applies(context):
                    continue
                finding = await _run_check(check, context)
                findings.append(finding)
                on_finding(finding)
                if finding.status is not CheckStatus.FAIL:
                    continue
                context.failed.add(check.name)
                if check.name in _REQUIRED:
                    break
    return Diagnosis(tuple(findings))


async def _run_check(check: _Check, context: CheckContext) -> Finding:
    try:
        status, text = await check.run(context)
    except BatchclError as error:
        return Finding(check.name, CheckStatus.FAIL, str(error))
    return Finding(check.name, status, text)


def _in_region(model: ModelArn, region: str) -> ModelArn:
    """Return the placeholder ARN in the session's region, where buckets are expected then."""
    return ModelArn.parse(model.text.replace(f":{model.region}:", f":{region}:", 1))
