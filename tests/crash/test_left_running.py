"""Faults of a process between the start of a model and its stop: `model reap` leaves no model running."""

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
from crash.harness import ends_within, started, until_seen
from servers import REGION, aws_env, client
from unit.emulator.harness import serving_here

LEASE_S = 15 * 60
ALIVE = {"STARTING", "RUNNING"}
FAULTS = ("SIGHUP", "no reader", "truncated", "SIGQUIT", "SIGTERM", "two signals", "malformed", "in the call")
WAYS = ("STARTING", "lease", "journal", "STOPPING", "RUNNING", "drain", "start")


@dataclass
class Model:
    """The demo's model in an emulator of its own, whose clock is put forward instead of waiting."""

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
        """What `batchcl model reap` does with which status."""
        async with workflow.connect(region=REGION) as service:
            found = await workflow.reap(service.rekognition, now=service.clock.now)
        return [(each.status, str(each.done)) for each in found]

    def pass_time(self, seconds: float) -> None:
        self.ahead_s += seconds
        self.tell("clock", {"ahead_seconds": self.ahead_s})

    def fail(self, *faults: dict[str, Any]) -> None:
        """Inject `faults`; the moments around a tag are the ones that matter, and long enough to be hit."""
        slow = {"kind": "latency", "milliseconds": 200}
        tags = [slow | {"operation": name} for name in ("TagResource", "UntagResource")]
        self.tell("faults", {"faults": [*tags, *faults]})

    def tell(self, route: str, what: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/_emulator/{route}", data=json.dumps(what).encode(), method="PUT"
        )
        urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def model(demo):
    with serving_here(demo.state, start_seconds=0.6, stop_seconds=0.2, tps_per_unit=30) as endpoint:
        rekognition = client("rekognition", endpoint)
        (project,) = rekognition.describe_projects()["ProjectDescriptions"]
        found = Model(endpoint, demo.arn, rekognition, project["ProjectArn"])
        found.fail()
        yield found


def test_no_killed_run_leaves_its_model_running(model, pictures, clean_env, tmp_path, monkeypatch):
    env = clean_env | aws_env(model.endpoint)
    for name, value in aws_env(model.endpoint).items():
        monkeypatch.setenv(name, value)
    ways = [WAYS[number % len(WAYS)] for number in range(cycles(default=4, at_most=100))]
    met = []
    for number, way in enumerate(ways):
        rng = random.Random(f"{way} {number}")
        out = tmp_path / f"out-{number}"
        job = ("run", pictures, "--model", model.arn, "--out", out, "--run-id", "r", "--shard-size", 5, "--limit", 30)
        with started(*job, "--start-model", 1, "--max-failures", 1, env=env) as process:
            kill_somewhen(process, way, out, model, rng)
        status = model.status
        met.append((way, status))
        print(f"cycle {number}: killed at {way}, {status}, {model.leases()}")
        assert {done for _, done in anyio.run(model.reap)} <= {"left"}, "its lease has not ended"
        assert (model.status in ALIVE) == (status in ALIVE)
        model.pass_time(LEASE_S + 5)
        anyio.run(model.reap)
        assert model.status not in ALIVE, f"killed at {way} while the model was {status}"
        assert model.leases() == {}
        model.pass_time(60)
    assert {status for _, status in met} & ALIVE, f"no cycle killed a run between start and stop: {met}"


@pytest.mark.parametrize("number", range(cycles(default=len(FAULTS), at_most=50)))
def test_no_fault_leaves_a_model_running_or_stops_anothers(number, model, pictures, clean_env, tmp_path, monkeypatch):
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
    code = until_hit(job, fault, moment, model, env)
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
    if number % len(FAULTS) == 0:  # somebody starts it, and the same run goes on with it
        model.rekognition.start_project_version(ProjectVersionArn=model.arn, MinInferenceUnits=1)
        with started(*job, "--start-model", 1, "--max-failures", 1, env=env) as process:
            process.communicate(timeout=60)
        assert process.returncode == 0, what
        assert model.status == "RUNNING", what
        model.rekognition.stop_project_version(ProjectVersionArn=model.arn)
        model.pass_time(60)


def until_hit(job: tuple[object, ...], fault: str, moment: str, model: Model, env: dict[str, str]) -> int:
    """The exit code of a run that the fault hits at a moment of the model's life."""
    flags = ("--start-model", 1, "--max-failures", 1)
    if fault == "no reader":
        reader, writer = os.pipe()
        with started(*job, *flags, env=env, stdout=writer, stderr=writer) as process:
            os.close(writer)
            until_seen(process, lambda: model.status == moment)
            os.close(reader)
            return process.wait(60)
    with started(*job, *flags, env=env) as process:
        until_seen(process, lambda: bool(model.leases()) if moment == "lease" else model.status == moment)
        ends_within(process, 0.4 if moment == "lease" else 0)
        names = {"two signals": ["SIGHUP", "SIGTERM"], "truncated": [], "malformed": [], "in the call": ["SIGTERM"]}
        for name in names.get(fault, [fault]):
            process.send_signal(getattr(signal, name))
        process.communicate(timeout=60)
        return process.returncode


def kill_somewhen(process, way: str, out: Path, model: Model, rng: random.Random) -> None:
    """At a random time, or as soon as something of a kind is to be seen."""
    if way == "start":
        ends_within(process, rng.uniform(0.5, 4.0))
    elif way == "lease":
        until_seen(process, lambda: bool(model.leases()))
    elif way in {"STARTING", "RUNNING"}:
        until_seen(process, lambda: model.status == way)
        ends_within(process, rng.choice([0.0, 0.01, 0.1, 0.5]))
    else:
        until_seen(process, lambda: any(out.rglob("*.arrow")))
        if way != "journal":
            process.terminate()
            if way == "STOPPING":
                until_seen(process, lambda: model.status not in ALIVE)
            ends_within(process, rng.uniform(0, 0.1))
    process.kill()
    process.wait()
