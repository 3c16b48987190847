"""Limits of a run in time, cost and failures."""

from __future__ import annotations

import pytest

from batchcl.errors import BatchclError, StoppedError, TooManyFailuresError
from batchcl.events import ModelUse, Progress
from batchcl.job import Job
from batchcl.outcomes import Counts
from batchcl.scoring.bounds import exceeded_bound, watch_bounds
from virtual import run_virtual


def job(**fields: object) -> Job:
    return Job.model_validate({"sources": ["x"], "out": "x", "model": "m@1"} | fields)


def progress(*, scored: int = 0, failed: int = 0, dollars: float | None = None) -> Progress:
    made = Progress(model=lambda: ModelUse(dollars=dollars))
    made.add_earlier(Counts(scored, failed))
    return made


def exceeded(job: Job, progress: Progress, *, elapsed_s: float = 0.0) -> StoppedError | None:
    """The bound that a run exceeds if it has no earlier sessions."""
    return exceeded_bound(job, progress, elapsed_s=elapsed_s, called=progress.scored + progress.failed)


def test_without_bounds_the_run_never_ends_early():
    assert exceeded(job(), progress(failed=10**6, dollars=1e6), elapsed_s=1e9) is None


def test_the_run_ends_at_the_deadline():
    assert exceeded(job(deadline="1h30m"), progress(), elapsed_s=5399) is None
    assert isinstance(exceeded(job(deadline="1h30m"), progress(), elapsed_s=5400), StoppedError)


def test_max_cost_is_compared_with_the_models_cost():
    assert exceeded(job(max_cost=5), progress(dollars=None), elapsed_s=1e9) is None
    assert exceeded(job(max_cost=5), progress(dollars=4.99), elapsed_s=0) is None
    assert "$5.00" in str(exceeded(job(max_cost=5), progress(dollars=5.0), elapsed_s=0))


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
    found = exceeded_bound(job(max_failures=tolerance), progress(failed=failed), elapsed_s=0, called=1000)
    assert isinstance(found, TooManyFailuresError) is ends


def test_bounds_are_checked_every_second_and_stop_once():
    stops: list[BatchclError] = []

    async def main() -> None:
        await watch_bounds(job(deadline="1h"), progress(), begun_at=0.0, stop=stops.append, called_count=lambda: 0)

    run_virtual(main)
    assert len(stops) == 1
