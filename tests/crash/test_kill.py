"""kill -9 at random moments, repeatedly: the tables are the same as without interruptions."""

from __future__ import annotations

import json
import random
from itertools import count

import pytest

from crash.conftest import cycles
from crash.harness import ends_within, started, until_begun, wait_until

KILLS_A_RUN = 10
KILLED, STOPPED = -9, 4


@pytest.mark.parametrize("where", ["local", "s3"])
def test_repeatedly_killed_runs_end_with_the_expected_tables(where, jobs, place, expected_tables, cli):
    kills, wanted = 0, (cycles(default=2, at_most=10_000) + 1) // 2
    for number in count():
        if kills >= wanted:
            break
        seed = f"{where} {number}"
        print(f"seed {seed!r}")
        out = place(where, f"out-{number}")
        kills += kill_until_done(jobs[where], out, random.Random(seed), at_most=min(KILLS_A_RUN, wanted - kills))
        assert out.table() == expected_tables[where]
        status = cli("status", out.root, "r", "--json", env=jobs[where].env).json
        assert status["state"] == "done"
        assert status["planned"] == status["scored"] + status["failed"] + status["skipped"] == jobs[where].images
        assert (status["left"], status["journalled"], status["held_by"]) == (0, 0, None)
    print(f"{kills} kills, {number} runs")


def kill_until_done(scoring_job, out, rng, *, at_most: int) -> int:
    """Kill and resume a run until it exits with 0, with at most `at_most` kills; returns the number of kills."""
    flags = ("--run-id", "r", "--shard-size", 5, "--max-tps", 50, "--json")
    kills = 0
    while True:
        with started(*scoring_job.args(out, *flags), env=scoring_job.env) as process:
            if kills < at_most:
                kill_at_random(process, out, rng)
            text, err = process.communicate(timeout=60)
        if process.returncode in {KILLED, STOPPED}:
            kills += 1
            uris = out.uris()
            assert len(uris) == len(set(uris)), "an image has two rows"
            continue
        assert process.returncode == 0, err.decode()
        summary = json.loads(text)
        assert summary["status"] == "done"
        assert summary["planned"] == summary["scored"] + summary["failed"] + summary["skipped"] == scoring_job.images
        return kills


def kill_at_random(process, out, rng) -> None:
    """Kill at a random time, or when a file of a random kind appears, because the time between two writes is short."""
    moment = rng.choice(["start", "begun", "drain", "worklist", "journal", "journal", "results", "shards"])
    delay = rng.uniform(0, 1.0) if moment == "start" else rng.uniform(0, 2.0)
    print(f"kill at {moment}, {delay:.3f} s")
    if moment == "start":  # during the preflight checks and the creation of the run
        ends_within(process, delay)
    elif moment in {"begun", "drain"}:
        until_begun(process)
        if not ends_within(process, delay) and moment == "drain":
            process.terminate()
            ends_within(process, rng.uniform(0, 0.2))
    else:
        folder = moment if moment == "results" else f"runs/r/{moment}"
        before = len(out.names(folder, ""))
        wanted = before + rng.randint(1, 2)
        wait_until(process, lambda: len(out.names(folder, "")) >= wanted)
        ends_within(process, rng.choice([0.0, 0.005, 0.02]))
    process.kill()
