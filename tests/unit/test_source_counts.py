from __future__ import annotations

import datetime as dt
from dataclasses import replace

from batchcl.summary import SessionRecord, SourceCounts, Summary


def test_lines_add_up_and_zeros_are_not_shown() -> None:
    ignored = {"delete markers": 85}
    counts = SourceCounts(
        lines=1000,
        planned=900,
        bad_lines=5,
        duplicates=4,
        filtered=3,
        already_scored=2,
        already_failed=1,
        ignored=ignored,
    )
    assert counts.describe_sources() == (
        "1,000 lines read = 900 planned + 3 filtered + 4 duplicates + 2 already scored + 1 failed permanently before"
        " + 5 bad + 85 delete markers"
    )
    assert counts.unread == 0
    assert SourceCounts(lines=7, planned=7).describe_sources() == "7 lines read = 7 planned"


def test_missing_lines_are_after_the_limit() -> None:
    counts = SourceCounts(lines=10, planned=3, filtered=1)
    assert (counts.unread, counts.describe_sources()) == (
        6,
        "10 lines read = 3 planned + 1 filtered + 6 after the limit",
    )


def test_without_lists_there_is_nothing_to_add_up_to() -> None:
    counts = SourceCounts(lines=None, planned=3, filtered=1)
    assert (counts.unread, counts.describe_sources(), counts.excluded) == (0, "3 planned + 1 filtered", 1)
    assert not SourceCounts(lines=None, planned=3).excluded


def test_a_bill_is_one_line_with_the_longest_use_first() -> None:
    used = {"start": 12.0, "scoring": 2286.0, "throttled": 72.0, "idle": 30.0, "tail": 84.0, "stop": 36.0}
    at = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    summary = Summary(
        run_id="r",
        status="done",
        scored=1,
        failed=0,
        skipped=0,
        calls=1,
        throttled=0,
        seconds=2400.0,
        images_per_second=1.0,
        out="out",
        model="m",
        started_at=at,
        ended_at=at,
        cost_usd=5.6,
        billed_s=used,
        sessions=(SessionRecord(number=0, units="2", billed_s=used), SessionRecord(number=1)),
    )
    assert summary.describe_bill() == (
        "model: 42 min at 2 units, $5.60: scoring 38.1, tail 1.4, throttled 1.2, stop 0.6, idle 0.5, start 0.2 min"
    )
    short = {"scoring": 9.0, "start": 1.26, "tail": 0.01}
    brief = replace(
        summary, billed_s=short, cost_usd=0.011, sessions=(SessionRecord(number=0, units="1", billed_s=short),)
    )
    assert brief.describe_bill() == "model: 10 s at 1 unit, $0.01: scoring 9.0, start 1.3 s"
    assert replace(summary, cost_usd=None, billed_s={}).describe_bill() == ""
