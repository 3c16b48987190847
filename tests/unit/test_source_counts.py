from __future__ import annotations

from batchcl.summary import SourceCounts


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
