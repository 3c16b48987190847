"""What is checked, and what the checks share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from batchcl.arns import ModelArn
from batchcl.aws.models import Model
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.doctor.findings import CheckStatus
from batchcl.images import ImageRef
from batchcl.job import Job, load_job
from batchcl.loaders.preflight import ProbeResult

__all__ = ["NO_MODEL", "Answer", "CheckContext", "CheckTarget", "target_of"]

Answer = tuple[CheckStatus, str]
"""What a check comes to; the examination puts the check's name before it."""


@dataclass(slots=True, kw_only=True)
class CheckContext:
    """A job under examination, and what earlier checks found for later ones.

    Attributes:
        subject: the job.
        aws: its session.
        model: its model; a placeholder where none was given.
        region: in which everything is looked at.
        rekognition: an open client for the control plane.
        clock: hears the answers to all clients.
        begun_at: when the examination began; filters that count back from a run's start count from here.
        files: removes temporary copies of lists in the end.
        described: the model as it is; None until that is known.
        page: the first images of the sources.
        looked: those of them that were read, or not.
        failed: names of checks that have failed so far.
    """

    subject: CheckTarget
    aws: Aws
    model: ModelArn
    region: str
    rekognition: Any
    clock: ServiceClock
    begun_at: dt.datetime
    files: ExitStack
    described: Model | None = None
    page: list[ImageRef] = field(default_factory=list)
    looked: list[ProbeResult] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    @property
    def job(self) -> Job:
        """The subject's."""
        return self.subject.job

    @property
    def is_amazon(self) -> bool:
        """Whether Rekognition is AWS's own, rather than an emulator's or a proxy's at another address."""
        host = str(self.rekognition.meta.endpoint_url).rstrip("/")
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


_NONE: Final = "none given"
NO_MODEL: Final = "arn:aws:rekognition:us-east-1:000000000000:project/none/version/none/0"
"""Stands where no model was given; its region means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTarget:
    """A job, and which of its parts were given; the others are placeholders that nothing may use."""

    job: Job
    has_model: bool = True
    has_sources: bool = True
    has_out: bool = True


def target_of(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> CheckTarget:
    """The job that `load_job` would give, but without model, sources or output root where none are given.

    Raises:
        UsageError: as `load_job` raises.
    """
    job = load_job(config, flags, defaults={"sources": (_NONE,), "out": _NONE, "model": NO_MODEL})
    has_model = job.model != NO_MODEL
    if not has_model and job.emulator:  # which has a model of its own
        job, has_model = job.model_copy(update={"model": None}), True
    if not has_model and job.region is not None:
        job = job.model_copy(update={"model": NO_MODEL.replace("us-east-1", job.region)})
    return CheckTarget(
        job=job,
        has_model=has_model,
        has_sources=job.source_names != (_NONE,),
        has_out=job.root != _NONE,
    )
