"""Runs that are killed or fail between the start and the stop of a model: after `model reap` no model is running."""

from __future__ import annotations

import json
import os
import random
import signal
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchcl import workflow
from crash.conftest import cycles
from crash.harness import ends_within, started, wait_until
from servers import REGION, aws_env, client
from unit.emulator.harness import serving_here

LEASE_S = 15 * 60
ALIVE = {"STARTING", "RUNNING"}
FAULTS = ("SIGHUP", "no reader", "SIGQUIT", "two signals", "in the call", "SIGTERM", "truncated", "malformed")
"""The last three are also tested in e2e/test_model.py, without a process for the faults of the emulator."""
MOMENTS = ("STARTING", "lease", "journal", "STOPPING", "RUNNING", "drain", "start")


@dataclass
class Model:
    """The demo's model in a separate emulator, whose clock is advanced instead of waiting."""

    endpoint: str
    arn: str
    rekognition: Any
    project: str
    ahead_s: float = field(default=0.0)

    @property
    def status(self) -> str:
        (found,) = self.rekognition.describe_project_versions(ProjectArn=self.project)["ProjectVersionDescriptions"]
        return str(found["Status"])

    def leases(self) -> dict[str, str]:
        tags = self.rekognition.list_tags_for_resource(ResourceArn=self.arn)["Tags"]
        return {key: value for key, value in tags.items() if key.startswith("batchcl:lease/")}

    async def reap(self) -> list[tuple[str, str]]:
        """Run `batchcl model reap`; returns the status and the outcome of each model."""
        async with workflow.connect(region=REGION) as service:
            found = await workflow.reap(service.rekognition, now=service.clock.now)
        return [(each.status, str(each.done)) for each in found]

    def pass_time(self, seconds: float) -> None:
        self.ahead_s += seconds
        self.configure("clock", {"ahead_seconds": self.ahead_s})

    def fail(self, *faults: dict[str, Any]) -> None:
        """Inject `faults`, and slow down tagging, so that kills hit the moments around it."""
        slow = {"kind": "latency", "milliseconds": 200}
        tags = [slow | {"operation": name} for name in ("TagResource", "UntagResource")]
        self.configure("faults", {"faults": [*tags, *faults]})

    def configure(self, route: str, document: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/_emulator/{route}", data=json.dumps(document).encode(), method="PUT"
        )
        urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def model(demo):
    with serving_here(demo.state, start_seconds=0.6, stop_seconds=0.2, tps_per_unit=30) as endpoint:
        rekognition = client("rekognition", endpoint)
        (project,) = rekognition.describe_projects()["ProjectDescriptions"]
        model = Model(endpoint, demo.arn, rekognition, project["ProjectArn"])
        model.fail()
        yield model


def test_no_killed_run_leaves_its_model_running(model, pictures, clean_env, tmp_path, monkeypatch):
    env = clean_env | aws_env(model.endpoint)
    for name, value in aws_env(model.endpoint).items():
        monkeypatch.setenv(name, value)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(cycles(default=2, at_most=100))]
    kills = []
    for number, moment in enumerate(moments):
        rng = random.Random(f"{moment} {number}")
        out = tmp_path / f"out-{number}"
        job = ("run", pictures, "--model", model.arn, "--out", out, "--run-id", "r", "--shard-size", 5, "--limit", 30)
        with started(*job, "--start-model", 1, "--max-failures", 1, env=env) as process:
            kill_at_random(process, moment, out, model, rng)
        status = model.status
        kills.append((moment, status))
        print(f"cycle {number}: killed at {moment}, {status}, {model.leases()}")
        assert {done for _, done in anyio.run(model.reap)} <= {"left"}, "its lease has not expired"
        assert (model.status in ALIVE) == (status in ALIVE)
        model.pass_time(LEASE_S + 5)
        anyio.run(model.reap)
        assert model.status not in ALIVE, f"killed at {moment} while the model was {status}"
        assert model.leases() == {}
        model.pass_time(60)
    assert {status for _, status in kills} & ALIVE, f"no cycle killed a run between start and stop: {kills}"


@pytest.mark.parametrize("number", range(cycles(default=len(FAULTS) - 3, at_most=50)))
def test_faults_leave_no_model_running_and_stop_no_other_one(number, model, pictures, clean_env, tmp_path, monkeypatch):
    env = clean_env | aws_env(model.endpoint)
    for name, value in aws_env(model.endpoint).items():
        monkeypatch.setenv(name, value)
    fault, moment = FAULTS[number % len(FAULTS)], random.Random(number).choice(["STARTING", "RUNNING"])
    if number < len(FAULTS):
        moment = "STARTING"
    out = tmp_path / f"faulty-{number}"
    job = ("run", pictures, "--model", model.arn, "--out", out, "--run-id", "r", "--shard-size", 5, "--limit", 30)
    if fault in {"truncated", "malformed"}:
        model.fail({"kind": fault, "operation": "StartProjectVersion", "times": 1})
    elif fault == "in the call":
        moment = "lease"
        model.fail({"kind": "latency", "milliseconds": 600, "operation": "StartProjectVersion"})
    code = run_with_fault(job, fault, moment, model, env)
    model.fail()
    what = f"cycle {number}: {fault} at {moment}, exit code {code}, {model.status}, {model.leases()}"
    assert code == {"truncated": 0, "malformed": 0, "no reader": code}.get(fault, 4), what
    if fault == "two signals":
        assert model.status not in ALIVE or model.leases(), what
        model.pass_time(LEASE_S + 60)
        anyio.run(model.reap)
    assert model.status not in ALIVE, what
    assert model.leases() == {}, what
    model.pass_time(60)
    if number % len(FAULTS) == 0:  # others start the model, and the run is resumed
        model.rekognition.start_project_version(ProjectVersionArn=model.arn, MinInferenceUnits=1)
        with started(*job, "--start-model", 1, "--max-failures", 1, env=env) as process:
            process.communicate(timeout=60)
        assert process.returncode == 0, what
        assert model.status == "RUNNING", what
        model.rekognition.stop_project_version(ProjectVersionArn=model.arn)
        model.pass_time(60)


def run_with_fault(job: tuple[object, ...], fault: str, moment: str, model: Model, env: dict[str, str]) -> int:
    """The exit code of a run with `fault` when the model reaches `moment`."""
    flags = ("--start-model", 1, "--max-failures", 1)
    if fault == "no reader":
        reader, writer = os.pipe()
        with started(*job, *flags, env=env, stdout=writer, stderr=writer) as process:
            os.close(writer)
            wait_until(process, lambda: model.status == moment)
            os.close(reader)
            return process.wait(60)
    with started(*job, *flags, env=env) as process:
        wait_until(process, lambda: bool(model.leases()) if moment == "lease" else model.status == moment)
        ends_within(process, 0.4 if moment == "lease" else 0)
        names = {"two signals": ["SIGHUP", "SIGTERM"], "truncated": [], "malformed": [], "in the call": ["SIGTERM"]}
        for name in names.get(fault, [fault]):
            process.send_signal(getattr(signal, name))
        process.communicate(timeout=60)
        return process.returncode


def kill_at_random(process, moment: str, out: Path, model: Model, rng: random.Random) -> None:
    """Kill the process shortly after `moment`."""
    if moment == "start":
        ends_within(process, rng.uniform(0.5, 4.0))
    elif moment == "lease":
        wait_until(process, lambda: bool(model.leases()))
    elif moment in {"STARTING", "RUNNING"}:
        wait_until(process, lambda: model.status == moment)
        ends_within(process, rng.choice([0.0, 0.01, 0.1, 0.5]))
    else:
        wait_until(process, lambda: any(out.rglob("*.arrow")))
        if moment != "journal":
            process.terminate()
            if moment == "STOPPING":
                wait_until(process, lambda: model.status not in ALIVE)
            ends_within(process, rng.uniform(0, 0.1))
    process.kill()
    process.wait()
