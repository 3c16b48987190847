"""Checks whether a job would run: `batchcl doctor`."""

from __future__ import annotations

from batchcl.diagnosis.context import CheckStatus, CheckTarget, Diagnosis, Finding, target_of
from batchcl.diagnosis.diagnose import doctor

__all__ = ["CheckStatus", "CheckTarget", "Diagnosis", "Finding", "doctor", "target_of"]
