from __future__ import annotations

import datetime as dt

import pytest

from batchcl.errors import UsageError
from batchcl.quantities import counted, moment_of, seconds_of

NOW = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)


def test_one_is_no_plural() -> None:
    assert [counted(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("24h", "2026-11-20T06:00:00"),
        ("7d", "2026-11-14T06:00:00"),
        ("1d12h", "2026-11-19T18:00:00"),
        ("2026-11-20", "2026-11-20T00:00:00"),
        ("2026-11-20T06:00", "2026-11-20T06:00:00"),
        ("2026-11-20 06:00:01", "2026-11-20T06:00:01"),
        ("2026-11-20T06:00:00Z", "2026-11-20T06:00:00"),
        ("2026-11-20T06:00:00+02:00", "2026-11-20T04:00:00"),
    ],
)
def test_a_moment_is_a_time_ago_or_a_day_or_time_in_utc(text: str, moment: str) -> None:
    assert moment_of(text, now=NOW) == dt.datetime.fromisoformat(f"{moment}Z")


@pytest.mark.parametrize("text", ["", "yesterday", "24", "20.11.2026", "2026-13-01", "h", "99999999d", "-1d"])
def test_anything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is neither a duration before now"):
        moment_of(text, now=NOW)


def test_durations_have_days() -> None:
    assert seconds_of("1d1h") == 25 * 3600
