"""kill -9 at random moments, again and again: the table comes out as if nothing had happened."""

from __future__ import annotations

import json
import random
from itertools import count

import pytest

from crash.conftest import cycles
from crash.harness import ends_within, started, until_begun, until_seen

KILLS_A_RUN = 10
KILLED, STOPPED = -9, 4


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(where, works, place, undisturbed, cli):
    kills, wanted = 0, (cycles(default=4, at_most=10_000) + 1) // 2
    for number in count():
        if kills >= wanted:
            break
        seed = f"{where} {number}"
        print(f"seed {seed!r}")
        out = place(where, f"out-{number}")
        kills += kill_until_done(works[where], out, random.Random(seed), at_most=min(KILLS_A_RUN, wanted - kills))
        assert out.table() == undisturbed[where]
        status = cli("status", out.root, "r", "--json", env=works[where].env).json
        assert status["state"] == "done"
        assert status["planned"] == status["scored"] + status["failed"] + status["skipped"] == works[where].images
        assert (status["left"], status["journalled"], status["held_by"]) == (0, 0, None)
    print(f"{kills} kills, {number} runs")


def kill_until_done(work, out, rng, *, at_most: int) -> int:
    """How often it was killed before it ended with 0; the last session is left alone after `at_most` kills."""
    flags = ("--run-id", "r", "--shard-size", 5, "--max-tps", 50, "--json")
    kills = 0
    while True:
        with started(*work.args(out, *flags), env=work.env) as process:
            if kills < at_most:
                kill_somewhen(process, out, rng)
            text, err = process.communicate(timeout=60)
        if process.returncode in {KILLED, STOPPED}:
            kills += 1
            uris = out.uris()
            assert len(uris) == len(set(uris)), "a reader saw an image twice"
            continue
        assert process.returncode == 0, err.decode()
        summary = json.loads(text)
        assert summary["status"] == "done"
        assert summary["planned"] == summary["scored"] + summary["failed"] + summary["skipped"] == work.images
        return kills


def kill_somewhen(process, out, rng) -> None:
    """At a random time, or at once when a file of a random kind appears: the moments between two writes are short."""
    way = rng.choice(["start", "begun", "drain", "worklist", "journal", "journal", "results", "shards"])
    delay = rng.uniform(0.6, 1.6) if way == "start" else rng.uniform(0, 2.0)
    print(f"kill at {way}, {delay:.3f} s")
    if way == "start":  # while it makes sure of everything, and records the run
        ends_within(process, delay)
    elif way in {"begun", "drain"}:
        until_begun(process)
        if not ends_within(process, delay) and way == "drain":
            process.terminate()
            ends_within(process, rng.uniform(0, 0.2))
    else:
        folder = way if way == "results" else f"runs/r/{way}"
        before = len(out.names(folder, ""))
        wanted = before + rng.randint(1, 2)
        until_seen(process, lambda: len(out.names(folder, "")) >= wanted)
        ends_within(process, rng.choice([0.0, 0.005, 0.02]))
    process.kill()
