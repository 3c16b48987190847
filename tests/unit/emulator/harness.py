"""An emulator in a thread, with boto3 clients and a clock that tests can set ahead."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from batchcl.emulator import EmulatorSettings
from batchcl.emulator.capacity import Quotas
from batchcl.emulator.server import Listening, serve
from servers import copied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyio.abc import TaskStatus

    from batchcl.emulator.digits import DigitsDataset

REGION = "us-east-1"
PLENTY = 1e6


class MovableClock:
    """The machine's clock plus `ahead` seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.stopped: float | None = None

    def stop(self) -> None:
        """Stop the monotonic clock: from now on only `ahead` changes it."""
        self.stopped = time.monotonic()

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return (time.monotonic() if self.stopped is None else self.stopped) + self.ahead


@dataclass(slots=True)
class Server:
    endpoint: str
    clock: MovableClock
    quotas: Quotas

    @contextlib.contextmanager
    def limited_to(self, **quotas: int) -> Iterator[None]:
        """Change quotas during the block."""
        before = {name: getattr(self.quotas, name) for name in quotas}
        try:
            for name, value in quotas.items():
                setattr(self.quotas, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self.quotas, name, value)

    def client(
        self, key: str = "emulator", secret: str = "emulator", *, region: str = REGION, token: str | None = None
    ) -> Any:
        return boto3.client(
            "rekognition",
            endpoint_url=self.endpoint,
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(retries={"total_max_attempts": 1}),
        )


@contextlib.contextmanager
def running_server(environment: dict[str, str] | None = None, **settings: Any) -> Iterator[Server]:
    chosen = EmulatorSettings(
        **{"control_tps": PLENTY, "account_tps": PLENTY, "tps_per_unit": PLENTY, "delete_seconds": 0, **settings}
    )
    clock, quotas = MovableClock(), Quotas()

    async def run(*, task_status: TaskStatus[tuple[Listening, anyio.Event]]) -> None:
        until = anyio.Event()
        await serve(
            chosen,
            listening=lambda where: task_status.started((where, until)),
            until=until,
            environment=environment or {},
            clock=clock,
            quotas=quotas,
        )

    with anyio.from_thread.start_blocking_portal() as portal:
        done, (where, until) = portal.start_task(run)
        try:
            yield Server(where.endpoint, clock, quotas)
        finally:
            portal.call(until.set)
            done.result(timeout=30)


@contextlib.contextmanager
def serving_here(state: Path, **settings: Any) -> Iterator[str]:
    """The endpoint of an emulator on a copy of `state`, with the default capacity.

    Starts a second faster than `servers.serving`, which is needed for what a process has of its own: S3 credentials.
    """
    default = EmulatorSettings()
    paced = {"tps_per_unit": default.tps_per_unit, "account_tps": default.account_tps} | settings
    with copied(state) as copy, running_server(state=copy, **paced) as server:
        yield server.endpoint


def refused(call: Any, **arguments: Any) -> str:
    """The code of the error that the call raises."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**arguments)
    code: str = caught.value.response["Error"]["Code"]
    return code


def wait_for(client: Any, project_arn: str, *, not_status: str, seconds: float = 60) -> dict[str, Any]:
    """Wait until the status of the project's latest version is not `not_status`; returns its description."""
    end = time.monotonic() + seconds
    while True:
        described: dict[str, Any] = client.describe_project_versions(ProjectArn=project_arn)[
            "ProjectVersionDescriptions"
        ][0]
        if described["Status"] != not_status:
            return described
        assert time.monotonic() < end, f"still {not_status}: {described}"
        time.sleep(0.02)


def train(client: Any, *, bucket: str, project: str = "digits", version: str = "v1") -> dict[str, Any]:
    """Train a version with the bucket's manifests; returns its description and its project's ARN."""
    project_arn = client.create_project(ProjectName=project)["ProjectArn"]
    manifests = [
        {"Assets": [{"GroundTruthManifest": {"S3Object": {"Bucket": bucket, "Name": f"{kind}.manifest"}}}]}
        for kind in ("train", "test")
    ]
    client.create_project_version(
        ProjectArn=project_arn,
        VersionName=version,
        OutputConfig={"S3Bucket": bucket, "S3KeyPrefix": "out"},
        TrainingData=manifests[0],
        TestingData=manifests[1],
    )
    return wait_for(client, project_arn, not_status="TRAINING_IN_PROGRESS") | {"ProjectArn": project_arn}


@dataclass(slots=True)
class Trained:
    """A server with a trained and running version."""

    server: Server
    client: Any
    arn: str
    project_arn: str
    description: dict[str, Any]
    data: DigitsDataset

    def detect(self, image: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        answer = self.client.detect_custom_labels(ProjectVersionArn=self.arn, Image=image, **more)
        labels: list[dict[str, Any]] = answer["CustomLabels"]
        return labels


@contextlib.contextmanager
def running_model(data: DigitsDataset) -> Iterator[Trained]:
    with running_server(buckets=data.directory, train_seconds=0, start_seconds=0) as server:
        client = server.client()
        described = train(client, bucket=data.bucket)
        assert described["Status"] == "TRAINING_COMPLETED", described
        arn = described["ProjectVersionArn"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
        yield Trained(server, client, arn, described["ProjectArn"], described, data)
