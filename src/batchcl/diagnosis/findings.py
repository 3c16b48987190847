"""The results of the checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["CheckStatus", "Diagnosis", "Finding"]


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
