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
        verdict: its result.
        text: one sentence; for warnings and failures, with what to do.
    """

    check: str
    verdict: CheckStatus
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> CheckStatus:
        """The worst result; OK without findings."""
        return max((finding.verdict for finding in self.findings), key=list(CheckStatus).index, default=CheckStatus.OK)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        rows = [{"check": each.check, "verdict": each.verdict, "text": each.text} for each in self.findings]
        return {"verdict": self.verdict, "findings": rows}
