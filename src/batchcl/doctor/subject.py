"""What is examined: a job, of which only some parts may be known yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from batchcl.job import Job, load_job

__all__ = ["NO_MODEL", "Subject", "subject_of"]

_NONE: Final = "none given"
NO_MODEL: Final = "arn:aws:rekognition:us-east-1:000000000000:project/none/version/none/0"
"""Stands where no model was given; its region means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A job, and which of its parts were given; the others are placeholders that nothing may use."""

    job: Job
    has_model: bool = True
    has_sources: bool = True
    has_out: bool = True


def subject_of(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> Subject:
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
    return Subject(
        job=job,
        has_model=has_model,
        has_sources=job.sources != (_NONE,),
        has_out=job.out != _NONE,
    )
