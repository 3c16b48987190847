"""The job to check, the state that the checks share, and their findings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from batchcl.arns import ModelArn
from batchcl.aws.models import Model
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.images import ImageRef
from batchcl.job import NO_MODEL, Job, load_job
from batchcl.loaders.preflight import ProbeResult

__all__ = ["CheckContext", "CheckResult", "CheckStatus", "CheckTarget", "Diagnosis", "Finding", "target_of"]


class CheckStatus(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"
    """A run may succeed, or the check was not possible."""
    FAIL = "fail"
    """A run would be refused, or fail after spending money."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name, a stable identifier.
        status: its result.
        text: one sentence; for warnings and failures, with what to do.
    """

    check: str
    status: CheckStatus
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def status(self) -> CheckStatus:
        """The worst result; OK without findings."""
        return max((finding.status for finding in self.findings), key=list(CheckStatus).index, default=CheckStatus.OK)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        rows = [{"check": each.check, "status": each.status, "text": each.text} for each in self.findings]
        return {"status": self.status, "findings": rows}


CheckResult = tuple[CheckStatus, str]
"""Status and text of a finding."""


@dataclass(slots=True, kw_only=True)
class CheckContext:
    """The job, open connections, and results of earlier checks that later checks need.

    Attributes:
        target: the job.
        aws: its session.
        model: its model; a placeholder if no model was given.
        region: the region of the checks.
        rekognition: an open client of the control plane.
        clock: compares this machine's clock with the `Date` headers of all responses.
        begun_at: start of the checks; relative times in filters count from here.
        files: removes temporary copies of lists at the end.
        described: description of the model; None if it is not known.
        page: the first images of the sources.
        probes: results of reading a sample of them.
        failed: names of the checks that have failed.
    """

    target: CheckTarget
    aws: Aws
    model: ModelArn
    region: str
    rekognition: Any
    clock: ServiceClock
    begun_at: dt.datetime
    files: ExitStack
    described: Model | None = None
    page: list[ImageRef] = field(default_factory=list)
    probes: list[ProbeResult] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    @property
    def job(self) -> Job:
        """The job to check."""
        return self.target.job

    @property
    def is_amazon(self) -> bool:
        """Whether Rekognition is AWS's own endpoint, not an emulator or a proxy."""
        host = str(self.rekognition.meta.endpoint_url).rstrip("/")
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


_NOT_GIVEN: Final = "not given"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTarget:
    """A job, and which of its parts were given; the others are placeholders that are not checked."""

    job: Job
    has_model: bool = True
    has_sources: bool = True
    has_out: bool = True


def target_of(
    config: Path | None = None, flags: Mapping[str, Any] | None = None, *, has_default_model: bool = False
) -> CheckTarget:
    """Load a job in which model, sources and output root are optional.

    With `has_default_model`, the caller replaces `NO_MODEL` as the job's model, as an emulator has a demo model.

    Raises:
        UsageError: like `load_job`.
    """
    job = load_job(config, flags, defaults={"sources": (_NOT_GIVEN,), "out": _NOT_GIVEN, "model": NO_MODEL})
    has_model = has_default_model or job.model != NO_MODEL
    if not has_model and job.region is not None:
        job = job.model_copy(update={"model": NO_MODEL.replace("us-east-1", job.region)})
    return CheckTarget(
        job=job,
        has_model=has_model,
        has_sources=job.source_names != (_NOT_GIVEN,),
        has_out=job.root != _NOT_GIVEN,
    )
