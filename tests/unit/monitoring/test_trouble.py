from __future__ import annotations

import re
from pathlib import Path

from batchcl.events import Notice, Progress
from batchcl.monitoring.trouble import TROUBLE, Throttling, TroubleFilter

SOURCE = Path(__file__).parents[3] / "src" / "batchcl"
NO_TROUBLE = {
    "bad-label",
    "bad-line",
    "budget-unused",
    "holder-silent",
    "holder-unknown",
    "lease-left",
    "max-in-flight",
    "min-confidence",
    "model-kept",
    "model-units",
    "model-unknown",
    "monitoring-failed",
    "not-measured",
    "report-failed",
}
"""Warnings about the job and its inputs, which a person reads in the log the next morning."""


def warnings() -> set[str]:
    """The kinds of all notices in the source that are warnings."""
    text = "\n".join(path.read_text() for path in sorted(SOURCE.rglob("*.py")))
    found = {match[1] for match in re.finditer(r'Notice\(\s*"([a-z-]+)"(?:[^()]|\([^()]*\))*?level="warning"', text)}
    queued = re.search(r"_WARNINGS: Final = frozenset\(([^)]*)\)", text)
    assert queued is not None
    return found | set(re.findall(r'"([a-z-]+)"', queued[1]))


def test_each_warning_is_either_trouble_or_not():
    assert len(warnings()) > 12
    assert warnings() <= set(TROUBLE) | NO_TROUBLE
    assert not set(TROUBLE) & NO_TROUBLE
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "trouble.py")
    for kind in set(TROUBLE) - {"throttled"} | NO_TROUBLE:
        assert f'"{kind}"' in source, kind


def test_the_same_trouble_is_reported_every_15_minutes_at_most():
    passed = TroubleFilter()
    paused = Notice("paused", "calls paused", level="warning")
    assert [passed.passes(paused, now) for now in (0.0, 1.0, 899.0, 900.0, 1000.0)] == [True, False, False, True, False]
    assert passed.passes(Notice("stalled", "", level="warning"), 1000.0)
    assert not passed.passes(Notice("bad-line", "", level="warning"), 1000.0)


def test_ten_minutes_with_most_calls_throttled_are_trouble():
    throttling, progress, found = Throttling(), Progress(), []
    for minute in range(40):
        progress.calls += 100
        progress.throttled += 2 if minute < 10 else 60
        if throttling.check(progress.snapshot(0.0)) is not None:
            found.append(minute)
    assert found == [18, 29]
