"""Real servers for end-to-end tests: the emulator for Rekognition, SeaweedFS and moto for S3, the CLI as a process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from moto.server import ThreadedMotoServer

from batchcl.demo import DemoData, demo_data, demo_model

KEY = "emulator"
SECRET = "emulator"
REGION = "us-east-1"


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Demo:
    """A trained model and pictures that it hasn't seen."""

    state: Path
    arn: str
    data: DemoData


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Demo:
    root = tmp_path_factory.mktemp("demo")
    state = root / "state"
    arn = anyio.run(demo_model, state)
    return Demo(state, arn, demo_data(root, state))


@pytest.fixture(scope="session")
def clean_env(tmp_path_factory) -> dict[str, str]:
    """The environment of somebody who has never used AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BATCHCL_"))}
    return kept | {"HOME": str(tmp_path_factory.mktemp("home")), "AWS_EC2_METADATA_DISABLED": "true", "COLUMNS": "120"}


@pytest.fixture
def cli(clean_env) -> Callable[..., Ended]:
    """Run a command to its end."""

    def run(*args: object, env: Mapping[str, str] | None = None, stdin: bytes = b"", cwd: Path | None = None) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "batchcl", *map(str, args)],
            env=clean_env | dict(env or {}),
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
            cwd=cwd,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@contextmanager
def serving(env: Mapping[str, str], *flags: object, state: Path | None = None) -> Iterator[str]:
    """The endpoint of an emulator that runs during the block, on a copy of `state`."""
    if state is not None:
        copy = Path(tempfile.mkdtemp()) / "state"
        shutil.copytree(state, copy, ignore=shutil.ignore_patterns("buckets"))
        with serving(env, *flags, "--state", copy) as endpoint:
            yield endpoint
        shutil.rmtree(copy.parent)
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "batchcl", "emulator", *map(str, flags)],
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def aws_env(rekognition: str | None = None, s3: str | None = None) -> dict[str, str]:
    """What a user exports to reach these servers."""
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}
    if rekognition:
        env["AWS_ENDPOINT_URL_REKOGNITION"] = rekognition
    if s3:
        env["AWS_ENDPOINT_URL_S3"] = s3
    return env


def client(service: str, endpoint: str) -> Any:
    """A boto3 client: a foreign one, on purpose."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(
            connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 3}, s3={"addressing_style": "path"}
        ),
    )


def start_model(endpoint: str, arn: str, units: int = 5) -> None:
    """Have the model RUNNING."""
    rekognition = client("rekognition", endpoint)
    rekognition.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=units)
    wait_for(lambda: model_status(endpoint, arn) == "RUNNING")


def model_status(endpoint: str, arn: str) -> str:
    """As the service describes it."""
    rekognition = client("rekognition", endpoint)
    project = rekognition.describe_projects(ProjectNames=[arn.split("/")[1]])["ProjectDescriptions"][0]
    versions = rekognition.describe_project_versions(ProjectArn=project["ProjectArn"])["ProjectVersionDescriptions"]
    return next(str(each["Status"]) for each in versions if each["ProjectVersionArn"] == arn)


def wait_for(there: Callable[[], bool], timeout_s: float = 30) -> None:
    """Poll something that another process does."""
    end = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory) -> Iterator[str]:
    """The endpoint of a real S3 server."""
    root = tmp_path_factory.mktemp("seaweed")
    config = root / "s3.json"
    config.write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "test",
                        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
        )
    )
    s3, master, volume, filer, admin = _free_ports(5)
    (root / "data").mkdir()
    log = (root / "log").open("wb")
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("weed"),
            "mini",
            f"-dir={root / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-s3.port={s3}",
            "-s3.port.lance=0",
            "-s3.port.iceberg=0",
            f"-s3.config={config}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-admin.port={admin}",
        ],
        stdout=log,
        stderr=log,
    )
    endpoint = f"http://127.0.0.1:{s3}"

    def answers() -> bool:
        if process.poll() is not None:
            pytest.fail(f"SeaweedFS ended: {(root / 'log').read_text()[-2000:]}")
        try:
            probe = client("s3", endpoint)
            probe.create_bucket(Bucket="probe")
            probe.put_object(Bucket="probe", Key="x", Body=b"x")
        except (BotoCoreError, ClientError) as error:
            return isinstance(error, ClientError) and "BucketAlready" in str(error)
        return True

    try:
        wait_for(answers, 60)
        yield endpoint
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of an S3 that knows regions and lists every key."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def service(demo, clean_env, seaweed) -> Iterator[str]:
    """An emulator with the demo's model RUNNING, fast, that reads images from SeaweedFS."""
    with ExitStack() as stack:
        env = clean_env | aws_env(s3=seaweed)
        endpoint = stack.enter_context(
            serving(
                env,
                *("--s3-endpoint-url", seaweed, "--control-tps", 100),
                *("--tps-per-unit", 1000, "--account-tps", 1000),
                state=demo.state,
            )
        )
        start_model(endpoint, demo.arn)
        yield endpoint


def _free_ports(count: int) -> list[int]:
    """Free ports whose neighbour 10,000 above is free too, as SeaweedFS takes both."""
    found: list[int] = []
    candidate = 20_000 + os.getpid() % 10_000
    while len(found) < count:
        candidate += 1
        if all(_free(port) for port in (candidate, candidate + 10_000)):
            found.append(candidate)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
