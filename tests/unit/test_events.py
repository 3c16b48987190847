from __future__ import annotations

import datetime as dt
from typing import Literal

import pytest

from batchcl.events import (
    LATENCY_BOUNDS_S,
    Latencies,
    ModelUse,
    Notice,
    Pace,
    Progress,
    SafeObserver,
    SilentObserver,
)
from batchcl.images import ImageRef
from batchcl.outcomes import Counts, Failed, Scored

IMAGE = ImageRef(uri="s3://b/a.png", bucket="b", key="a.png")
AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def scored() -> Scored:
    return Scored(image=IMAGE, labels=(), attempts=1, latency_ms=1, request_id="", scored_at=AT)


def failed(status: Literal["failed", "skipped"] = "failed", attempts: int = 1) -> Failed:
    return Failed(image=IMAGE, status=status, code="C", message="m", attempts=attempts, failed_at=AT)


def test_outcomes_are_counted_by_status() -> None:
    progress = Progress()
    for outcome in (scored(), scored(), failed(), failed("skipped", 0)):
        progress.count(outcome)
    found = progress.snapshot(0.0)
    assert (found.scored, found.failed, found.skipped, found.done) == (2, 1, 1, 4)
    assert progress.called == 3


def test_the_time_runs_from_begin_to_end() -> None:
    progress = Progress()
    assert progress.snapshot(50.0).elapsed_s == 0
    progress.begin(100.0)
    assert progress.snapshot(130.0).elapsed_s == 30
    progress.end(140.0)
    assert progress.snapshot(200.0).elapsed_s == 40


def test_the_rate_is_that_of_the_last_quarter_minute() -> None:
    progress = Progress()
    progress.begin(0.0)
    for second in range(1, 101):
        for _ in range(10 if second <= 50 else 2):
            progress.count(scored())
        found = progress.snapshot(float(second))
        if second == 50:
            assert found.images_per_second == pytest.approx(10)
    assert found.images_per_second == pytest.approx(2)


def test_the_first_snapshots_have_the_average_rate() -> None:
    progress = Progress()
    progress.begin(10.0)
    for _ in range(6):
        progress.count(scored())
    assert progress.snapshot(12.0).images_per_second == pytest.approx(3)


def test_skipped_and_earlier_images_do_not_count_for_the_rate() -> None:
    progress = Progress()
    progress.begin(0.0)
    progress.add_earlier(Counts(101, 20, 3))
    progress.count(failed("skipped", 0))
    found = progress.snapshot(10.0)
    assert found.images_per_second == 0
    assert (found.scored, found.failed, found.skipped) == (101, 20, 4)


def test_the_eta_needs_a_complete_list_and_a_rate() -> None:
    progress = Progress()
    progress.begin(0.0)
    progress.planned = 100
    assert progress.snapshot(5.0).eta_s is None
    for _ in range(20):
        progress.count(scored())
    assert progress.snapshot(10.0).eta_s is None
    progress.listed = True
    found = progress.snapshot(10.0)
    assert found.eta_s == pytest.approx((100 - 20) / found.images_per_second)


def test_the_share_of_throttled_calls_is_zero_without_calls() -> None:
    progress = Progress()
    assert progress.snapshot(0.0).throttled_share == 0
    progress.calls, progress.throttled = 8, 2
    assert progress.snapshot(0.0).throttled_share == 0.25


def test_each_snapshot_has_the_current_cost() -> None:
    assert Progress().snapshot(0.0).dollars is None
    spent = iter([1.0, 2.5])
    progress = Progress(model=lambda: ModelUse(dollars=next(spent)))
    assert [progress.snapshot(0.0).dollars, progress.snapshot(1.0).dollars] == [1.0, 2.5]


def test_a_snapshot_has_the_pace_and_the_model() -> None:
    progress = Progress(model=lambda: ModelUse(status="STARTING", units=2))
    now = progress.snapshot(0.0)
    assert (now.model_status, now.units, now.rate_tps, now.capacity_tps) == ("STARTING", 2, 0.0, None)
    progress.pace = lambda: Pace(5.0, 4.5)
    assert (progress.snapshot(1.0).rate_tps, progress.snapshot(1.0).capacity_tps) == (5.0, 4.5)


def test_a_latency_counts_in_the_first_bucket_that_holds_it() -> None:
    latencies = Latencies()
    for seconds in (0.0, LATENCY_BOUNDS_S[0], 0.051, LATENCY_BOUNDS_S[-1], 61.0):
        latencies.add(seconds)
    assert latencies.counts == [2, 1, *[0] * (len(LATENCY_BOUNDS_S) - 3), 1, 1]
    assert latencies.total_s == pytest.approx(0.0 + 0.05 + 0.051 + 60 + 61)


def test_the_rate_keeps_only_the_window_in_memory() -> None:
    progress = Progress()
    progress.begin(0.0)
    for second in range(10_000):
        progress.snapshot(float(second))
    assert len(progress._recent) <= 17


def test_a_silent_observer_accepts_everything() -> None:
    observer = SilentObserver()
    observer.started(Progress())
    observer.notice(Notice("kind", "text", {"n": 1}))


def test_an_observer_that_raises_is_logged_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        calls = 0

        def started(self, progress: Progress) -> None:
            raise AssertionError

        def notice(self, notice: Notice) -> None:
            self.calls += 1

    broken = Broken()
    observer = SafeObserver(broken)
    observer.started(Progress())
    observer.notice(Notice("resumed", "run r is resumed"))
    assert broken.calls == 0
    assert "the run continues" in caplog.text
