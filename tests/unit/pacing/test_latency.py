from __future__ import annotations

from batchcl.pacing.latency import LatencyWatch


def steady(watch: LatencyWatch, begin: float, seconds: float, *, tps: float, latency_s: float) -> list[float]:
    """Answers at an even rate; what the watch says of them."""
    found = []
    for number in range(int(seconds * tps)):
        now = begin + number / tps
        said = watch.answered(now, sent_at=now - latency_s, in_flight=int(tps * latency_s))
        if said is not None:
            found.append(said)
    return found


def test_answers_that_a_hiccup_of_the_client_brings_late_are_no_queue() -> None:
    watch = LatencyWatch()
    assert steady(watch, 0, 10, tps=500, latency_s=0.1) == []
    late = [watch.answered(10.6, sent_at=9.9 + n / 500, in_flight=50) for n in range(250)]
    assert late == [None] * 250
    assert steady(watch, 10.6, 10, tps=500, latency_s=0.1) == []
    assert not watch.draining


def test_answers_that_stay_late_are_a_queue_at_any_rate() -> None:
    for tps in (5, 50, 500):
        watch = LatencyWatch()
        assert steady(watch, 0, 20, tps=tps, latency_s=0.1) == []
        found = steady(watch, 20, 20, tps=tps, latency_s=0.5)
        assert found
        assert abs(found[0] - tps) < 0.05 * tps
