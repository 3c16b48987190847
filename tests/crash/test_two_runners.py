"""Two processes work on the same run at the same time: one continues, the other one stops; no image has two rows."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack
from itertools import product

import pytest

from crash.conftest import IN_SUITE, cycles
from crash.harness import ends_within, started, until_begun

FLAGS = ("--run-id", "r", "--shard-size", 5, "--json")
DONE, STOPPED = 0, 4


@pytest.mark.parametrize(
    ("where", "left_behind"),
    [("local", False), ("s3", True)] if IN_SUITE else product(["local", "s3"], [False, True]),
)
def test_concurrent_processes_of_a_run_score_each_image_once(where, left_behind, jobs, place, expected_tables):
    """Half of the races start with the lease of a dead process. Both may take it over: only the journal decides."""
    races, overlaps = cycles(default=1, at_most=10), 0
    for number in range(races):
        rng = random.Random(f"{where} {left_behind} {number}")
        out = place(where, f"out-{number}")
        job = jobs[where].args(out, *FLAGS, "--max-tps", 20)
        if left_behind:
            with started(*job, env=jobs[where].env) as process:
                until_begun(process)
                ends_within(process, rng.uniform(0.2, 1.5))
        codes = race(job, jobs[where].env)
        print(f"race {number}: {codes}")
        overlaps += STOPPED in codes
        if DONE not in codes:
            with started(*job, env=jobs[where].env) as process:
                _, err = process.communicate(timeout=60)
            assert process.returncode == DONE, err.decode()
        assert out.table() == expected_tables[where]
    assert overlaps, "in no race were both processes running at the same time"


@pytest.mark.parametrize("where", ["s3"] if IN_SUITE else ["local", "s3"])
def test_a_suspended_process_stops_after_a_takeover(where, jobs, place, expected_tables):
    """As after a minute of suspension: both processes are running, and no image has two rows."""
    for number in range(cycles(default=1, at_most=5)):
        out = place(where, f"out-{number}")
        job = jobs[where].args(out, *FLAGS, "--max-tps", 20)
        with started(*job, env=jobs[where].env) as first:
            until_begun(first)
            first.send_signal(signal.SIGSTOP)
            out.expire("r")
            with started(*job, env=jobs[where].env) as second:
                until_begun(second)
                first.send_signal(signal.SIGCONT)
                ends = [(process, *process.communicate(timeout=60)) for process in (first, second)]
        codes = sorted(checked_codes(ends))
        print(f"race {number}: {codes}")
        assert codes == [DONE, STOPPED]
        assert out.table() == expected_tables[where]


def race(job, env) -> list[int]:
    """The exit codes of two processes that are started at the same time."""
    with ExitStack() as stack:
        both = [stack.enter_context(started(*job, env=env)) for _ in range(2)]
        ends = [(process, *process.communicate(timeout=60)) for process in both]
    return checked_codes(ends)


def checked_codes(ends) -> list[int]:
    """The exit codes, after checking stderr. Both may be 0 only if one process found the run done."""
    codes = [process.returncode for process, _, _ in ends]
    if codes == [DONE, DONE]:
        assert any(b"is already done" in err for _, _, err in ends), [err.decode() for _, _, err in ends]
    for process, _, err in ends:
        assert process.returncode in {DONE, STOPPED}, err.decode()
        assert b"Traceback" not in err, err.decode()
        if process.returncode == STOPPED:
            assert b"another process" in err, err.decode()
    return codes
