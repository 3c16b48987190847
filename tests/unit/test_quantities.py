from __future__ import annotations

import datetime as dt

import pytest

from batchcl.errors import UsageError
from batchcl.quantities import confidence_hint, parse_datetime, parse_duration, pluralize

NOW = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)


def test_one_is_singular() -> None:
    assert [pluralize(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


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
def test_a_time_is_a_duration_ago_or_a_date_in_utc(text: str, moment: str) -> None:
    assert parse_datetime(text, now=NOW) == dt.datetime.fromisoformat(f"{moment}Z")


@pytest.mark.parametrize("text", ["", "yesterday", "24", "20.11.2026", "2026-13-01", "h", "99999999d", "-1d"])
def test_anything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time; write a duration before now"):
        parse_datetime(text, now=NOW)


def test_durations_have_days() -> None:
    assert parse_duration("1d1h") == 25 * 3600


@pytest.mark.parametrize(("given", "asked"), [(0.1, "10"), (0.8, "80"), (1, "100"), (0.995, "99.5")])
def test_a_confidence_that_looks_like_a_share_gets_a_hint(given: float, asked: str) -> None:
    assert f"did you mean {asked}?" in str(confidence_hint(given))


@pytest.mark.parametrize("given", [None, 0, 0.01, 1.5, 80, 100])
def test_other_confidences_get_no_hint(given: float | None) -> None:
    assert confidence_hint(given) is None
