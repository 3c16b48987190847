"""Budgets and receipts against the usage meter of a real emulator."""

from __future__ import annotations

import json
import urllib.request

import pytest

from servers import aws_env
from unit.emulator.harness import serving_here

UNITS, BUDGET_USD, MINUTE_USD = 2, 8.0, 120.0
ENV = {"BATCHCL_UNIT_HOUR_USD": "3600"}
"""A dollar per unit and second, so that a few seconds are an amount."""


def test_a_budget_ends_a_run_and_costs_shows_what_the_meter_has(cli, demo, tmp_path):
    with serving_here(demo.state, buckets=tmp_path, tps_per_unit=2, start_seconds=1) as endpoint:

        def metered_usd() -> float:
            with urllib.request.urlopen(f"{endpoint}/_emulator/usage") as response:
                return float(json.load(response)["versions"][demo.arn]["inference_unit_hours"]) * 3600

        env, out = aws_env(endpoint) | ENV, tmp_path / "out"
        before = metered_usd()
        flags = ("--model", demo.arn, "--out", out, "--run-id", "night", "--start-model", UNITS)
        done = cli("run", demo.data.images, *flags, "--max-cost", BUDGET_USD, env=env)
        assert done.code == 4, done.err
        assert f"and --max-cost is ${BUDGET_USD:.2f}" in done.err
        (receipt,) = [line for line in done.err.splitlines() if line.startswith("batchcl: model: ")]
        assert f"at {UNITS} units, $" in receipt
        spent = metered_usd() - before
        assert BUDGET_USD / 2 <= spent <= BUDGET_USD + MINUTE_USD
        (row,) = cli("costs", out, "--json").json
        assert row["cost_usd"] == pytest.approx(spent, abs=10 * UNITS)
        assert row["cost_usd"] == pytest.approx(row["unit_hours"] * 3600, abs=0.1)
        assert row["scoring_usd"] > 0
        for limit in ("--max-cost", "--monthly-budget"):
            again = cli("run", demo.data.images, *flags, limit, BUDGET_USD, env=env)
            assert (again.code, "the start of the model is refused" in again.err) == (5, True)
        assert metered_usd() - before == spent, "the model was not started again"
