"""Whether a job would run, told before it does: `batchcl doctor`."""

from __future__ import annotations

from batchcl.doctor.examine import examine
from batchcl.doctor.findings import Examination, Finding, Verdict
from batchcl.doctor.subject import Subject, subject_of

__all__ = ["Examination", "Finding", "Subject", "Verdict", "examine", "subject_of"]
