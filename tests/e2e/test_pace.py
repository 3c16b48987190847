"""The learned rate of a run, and its use by the next run."""

from __future__ import annotations

import json

import pytest

from servers import aws_env, start_model
from unit.emulator.harness import serving_here

TPS = 15


@pytest.fixture
def env(demo, tmp_path):
    """A model with a capacity of `TPS` images per second."""
    with serving_here(demo.state, buckets=tmp_path, tps_per_unit=TPS) as endpoint:
        start_model(endpoint, demo.arn, units=1)
        yield aws_env(endpoint)


def test_a_second_run_begins_at_the_learned_rate(cli, demo, env, tmp_path):
    def run(limit: int) -> dict[str, dict[str, float]]:
        flags = ("--out", tmp_path / "out", "--limit", limit, "--log-format", "json", "--json")
        done = cli("run", demo.data.images, "--model", demo.arn, *flags, env=env)
        assert done.code == 0, done.err
        assert done.json["scored"] == limit
        return {event["event"]: event for event in map(json.loads, done.err.splitlines())}

    first = run(110)
    assert first["pace"]["rate_tps"] == 5
    assert first["pace"]["learned_tps"] is None
    learned_tps = first["pace-learned"]["tps"]
    assert 0.4 * TPS < learned_tps < 2 * TPS
    second = run(20)
    assert second["pace"]["learned_tps"] == learned_tps
    assert second["pace"]["rate_tps"] == pytest.approx(learned_tps, abs=0.2)
