"""What an examination says: a line for each thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["CheckStatus", "Diagnosis", "Finding"]


class CheckStatus(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARN = "warn"
    """It may go well, or couldn't be looked at."""
    FAIL = "fail"
    """A run would be refused, or spend money in vain."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what, in one word that stays the same.
        verdict: what it means for a run.
        text: one sentence; where something is wrong, also what to do.
    """

    check: str
    verdict: CheckStatus
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> CheckStatus:
        """The worst one."""
        found = {finding.verdict for finding in self.findings}
        return next(
            each for each in (CheckStatus.FAIL, CheckStatus.WARN, CheckStatus.OK) if each in found | {CheckStatus.OK}
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        rows = [{"check": each.check, "verdict": each.verdict, "text": each.text} for each in self.findings]
        return {"verdict": self.verdict, "findings": rows}
