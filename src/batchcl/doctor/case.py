"""What the checks of one examination share."""

from __future__ import annotations

import datetime as dt
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from batchcl.aws.arn import ModelArn
from batchcl.aws.lifecycle import Model
from batchcl.aws.readable import Looked
from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws
from batchcl.doctor.findings import Verdict
from batchcl.doctor.subject import Subject
from batchcl.images import ImageRef
from batchcl.job import Job

__all__ = ["Answer", "Case"]

Answer = tuple[Verdict, str]
"""What a check comes to; the examination puts the check's name before it."""


@dataclass(slots=True, kw_only=True)
class Case:
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

    subject: Subject
    aws: Aws
    model: ModelArn
    region: str
    rekognition: Any
    clock: ServiceClock
    begun_at: dt.datetime
    files: ExitStack
    described: Model | None = None
    page: list[ImageRef] = field(default_factory=list)
    looked: list[Looked] = field(default_factory=list)
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
