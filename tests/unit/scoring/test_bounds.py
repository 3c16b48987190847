"""Limits of a run in time, cost and failures."""

from __future__ import annotations

import datetime as dt
import math

import pytest

from batchcl.errors import BatchclError, StoppedError, TooManyFailuresError
from batchcl.events import Progress
from batchcl.job import Job
from batchcl.outcomes import Counts
from batchcl.quantities import parse_duration
from batchcl.scoring.bounds import deadline_at, exceeded_bound, watch_bounds
from virtual import run_virtual

NOW = dt.datetime(2026, 11, 21, 22, 30, tzinfo=dt.UTC)


def job(**fields: object) -> Job:
    return Job.model_validate({"sources": ["x"], "out": "x", "model": "m@1"} | fields)


def progress(*, scored: int = 0, failed: int = 0) -> Progress:
    made = Progress()
    made.add_earlier(Counts(scored, failed))
    return made


def exceeded(job: Job, progress: Progress, *, elapsed_s: float = 0.0) -> StoppedError | None:
    """The bound that a run exceeds if it has no earlier sessions."""
    left_s = deadline_at(job, begun_at=0.0, now=NOW) - elapsed_s
    return exceeded_bound(job, progress, left_s=left_s, called=progress.scored + progress.failed)


def test_without_bounds_the_run_never_ends_early():
    assert exceeded(job(), progress(failed=10**6), elapsed_s=1e9) is None


def test_the_run_ends_at_the_deadline():
    assert exceeded(job(deadline="1h30m"), progress(), elapsed_s=5399) is None
    assert isinstance(exceeded(job(deadline="1h30m"), progress(), elapsed_s=5400), StoppedError)


@pytest.mark.parametrize(
    ("deadline", "after"), [("06:00", "7h30m"), ("22:30", "24h"), ("22:31Z", "1m"), ("23:00:30", "30m30s")]
)
def test_a_time_of_day_is_the_next_one_in_utc(deadline, after):
    assert job(deadline=deadline).deadline_s(NOW) == parse_duration(after)
    assert deadline_at(job(deadline=deadline), begun_at=100.0, now=NOW) == 100 + parse_duration(after)


@pytest.mark.parametrize(
    ("deadline", "run_began_h_ago", "has_passed"),
    [
        ("22:00", 3, True),
        ("22:00", 0.25, False),  # the run began after it
        ("22:30", 3, True),
        ("22:31", 3, False),
        ("10:31", 48, True),
        ("10:29", 48, False),  # of this morning; it is evening
        ("2h", 3, False),
    ],
)
def test_a_resumed_run_has_passed_a_time_of_day_of_the_last_twelve_hours(deadline, run_began_h_ago, has_passed):
    since = NOW - dt.timedelta(hours=run_began_h_ago)
    assert job(deadline=deadline).has_passed_deadline(since=since, now=NOW) is has_passed


@pytest.mark.parametrize(
    ("tolerance", "scored", "failed", "ends"),
    [("3", 0, 3, False), ("3", 0, 4, True), ("10%", 80, 19, False), ("10%", 85, 15, True), ("10%", 95, 10, False)],
)
def test_failures_over_the_tolerance_end_the_run(tolerance, scored, failed, ends):
    found = exceeded(job(max_failures=tolerance), progress(scored=scored, failed=failed))
    assert isinstance(found, TooManyFailuresError) is ends


@pytest.mark.parametrize(
    ("tolerance", "failed", "ends"), [("3", 3, False), ("3", 4, True), ("1%", 9, False), ("1%", 11, True)]
)
def test_a_retry_compares_failures_with_all_images_of_its_run(tolerance, failed, ends):
    """Images of a retry have failed before, so most of them may fail again."""
    found = exceeded_bound(job(max_failures=tolerance), progress(failed=failed), left_s=math.inf, called=1000)
    assert isinstance(found, TooManyFailuresError) is ends


def test_bounds_are_checked_every_second_and_stop_once():
    stops: list[BatchclError] = []

    async def main() -> None:
        await watch_bounds(
            job(deadline="1h"),
            progress(),
            over_budget=lambda: None,
            ends_at=3600.0,
            stop=stops.append,
            called_count=lambda: 0,
        )

    run_virtual(main)
    assert len(stops) == 1
