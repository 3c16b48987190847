"""kill -9 at random moments between the start of a model and its stop: `model reap` leaves no model running."""

from __future__ import annotations

import json
import random
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
        # the moments around the tag are the ones that matter: make them long enough to be hit
        slow = {"kind": "latency", "milliseconds": 200}
        found.tell("faults", {"faults": [slow | {"operation": name} for name in ("TagResource", "UntagResource")]})
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
        print(f"cycle {number}: killed at {way}, {status}, {model.leases()}")  # noqa: T201 - shown when the test fails
        assert {done for _, done in anyio.run(model.reap)} <= {"left"}, "its lease has not ended"
        assert (model.status in ALIVE) == (status in ALIVE)
        model.pass_time(LEASE_S + 5)
        anyio.run(model.reap)
        assert model.status not in ALIVE, f"killed at {way} while the model was {status}"
        assert model.leases() == {}
        model.pass_time(60)
    assert {status for _, status in met} & ALIVE, f"no cycle killed a run between start and stop: {met}"


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
