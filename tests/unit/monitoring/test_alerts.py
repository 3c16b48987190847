"""The alert rules in configs/prometheus use metrics that runs write, and each rule fires when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml

from batchcl.monitoring.metrics import METRICS

FOLDER = Path(__file__).parents[3] / "configs" / "prometheus"
RULES = [
    rule for group in yaml.safe_load((FOLDER / "batchcl.rules.yml").read_text())["groups"] for rule in group["rules"]
]
CASES = yaml.safe_load((FOLDER / "batchcl.test.yml").read_text())["tests"]


def test_rules_use_metrics_and_labels_that_exist():
    series = [each["series"] for case in CASES for each in case["input_series"]]
    for expression in [rule["expr"] for rule in RULES] + series:
        names = re.findall(r"\bbatchcl_\w+", expression)
        assert names
        assert set(names) <= set(METRICS)
        for name, selector in re.findall(r"\b(batchcl_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)=", selector))
            assert labels <= {"instance", "task", *METRICS[name].labels}


def test_each_rule_has_a_case_in_which_it_fires_and_a_text():
    fired = {test["alertname"] for case in CASES for test in case.get("alert_rule_test", []) if test.get("exp_alerts")}
    assert {rule["alert"] for rule in RULES} == fired
    assert all({"summary", "description"} == set(rule["annotations"]) for rule in RULES)


def test_promtool_accepts_the_rules_and_their_cases():
    """Where promtool (Debian: prometheus) is not installed, the tests above have checked the names."""
    promtool = shutil.which("promtool")
    for words in (["check", "rules", "batchcl.rules.yml"], ["test", "rules", "batchcl.test.yml"]):
        if promtool is not None:
            done = subprocess.run(
                [promtool, *words], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stdout + done.stderr
