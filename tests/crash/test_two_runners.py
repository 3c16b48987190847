"""Two runners of one run at the same moment: one works, the other says why it does not; no image comes twice."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack

import pytest

from crash.conftest import cycles
from crash.harness import ends_within, started, until_begun

FLAGS = ("--run-id", "r", "--shard-size", 5, "--json")
DONE, STOPPED = 0, 4


@pytest.mark.parametrize("left_behind", [False, True], ids=["new", "orphaned"])
@pytest.mark.parametrize("where", ["local", "s3"])
def test_two_runners_score_each_image_once(where, left_behind, works, place, undisturbed):
    """In half of the races a dead runner's lease is there, so that both may take it over: only the journal decides."""
    races, met = cycles(default=2 if left_behind else 1, at_most=10), 0
    for number in range(races):
        rng = random.Random(f"{where} {left_behind} {number}")
        out = place(where, f"out-{number}")
        job = works[where].args(out, *FLAGS)
        if left_behind:
            with started(*job, "--max-tps", 20, env=works[where].env) as process:
                until_begun(process)
                ends_within(process, rng.uniform(0.2, 1.5))
        codes = race(job, works[where].env)
        print(f"race {number}: {codes}")
        met += STOPPED in codes
        if DONE not in codes:
            with started(*job, env=works[where].env) as process:
                _, err = process.communicate(timeout=60)
            assert process.returncode == DONE, err.decode()
        assert out.table() == undisturbed[where]
    assert met, "no two of them were at work at the same time"


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_runner_whose_lease_was_lost_stops_where_another_one_is_faster(where, works, place, undisturbed):
    """As when its machine slept for a minute: two are at work, and neither repeats what the other has written."""
    job_of = works[where].args
    for number in range(cycles(default=1, at_most=5)):
        out = place(where, f"out-{number}")
        job = job_of(out, *FLAGS, "--max-tps", 8)
        with started(*job, env=works[where].env) as first:
            until_begun(first)
            first.send_signal(signal.SIGSTOP)
            out.expire("r")
            with started(*job, env=works[where].env) as second:
                until_begun(second)
                first.send_signal(signal.SIGCONT)
                ends = [(process, *process.communicate(timeout=60)) for process in (first, second)]
        codes = sorted(judged(ends))
        print(f"race {number}: {codes}")
        assert codes == [DONE, STOPPED], "both wrote"
        assert out.table() == undisturbed[where]


def race(job, env) -> list[int]:
    """The exit codes of two processes that were started together."""
    with ExitStack() as stack:
        both = [stack.enter_context(started(*job, env=env)) for _ in range(2)]
        ends = [(process, *process.communicate(timeout=60)) for process in both]
    return judged(ends)


def judged(ends) -> list[int]:
    """The exit codes of processes that have ended, each of them as it may: both with 0 only if one came too late."""
    codes = [process.returncode for process, _, _ in ends]
    if codes == [DONE, DONE]:
        assert any(b"is already done" in err for _, _, err in ends), [err.decode() for _, _, err in ends]
    for process, _, err in ends:
        assert process.returncode in {DONE, STOPPED}, err.decode()
        assert b"Traceback" not in err, err.decode()
        if process.returncode == STOPPED:
            assert b"another runner" in err, err.decode()
    return codes
