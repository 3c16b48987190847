"""Whether a job would run, told before it does: `batchcl doctor`."""

from __future__ import annotations

from batchcl.diagnosis.context import CheckTarget, target_of
from batchcl.diagnosis.diagnose import doctor
from batchcl.diagnosis.findings import CheckStatus, Diagnosis, Finding

__all__ = ["CheckStatus", "CheckTarget", "Diagnosis", "Finding", "doctor", "target_of"]
