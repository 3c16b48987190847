"""Checks whether a job would run: `batchcl doctor`."""

from __future__ import annotations

from batchcl.doctor.context import CheckTarget, target_of
from batchcl.doctor.diagnose import diagnose
from batchcl.doctor.findings import CheckStatus, Diagnosis, Finding

__all__ = ["CheckStatus", "CheckTarget", "Diagnosis", "Finding", "diagnose", "target_of"]
