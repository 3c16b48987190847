"""Shared by end-to-end tests: servers, boto3 clients and processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.emulator.demo import DemoData
from batchcl.errors import ErrorCode
from processes import Batchcl

KEY = "emulator"
SECRET = "emulator"
REGION = "us-east-1"


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command; `both` is stdout and stderr as they were interleaved, if that is known."""

    code: int
    out: str
    err: str
    both: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """Stderr without the line below an error that names its code."""
        return without_code(self.err)


def without_code(err: str) -> str:
    """`err` without the line below an error that names its code."""
    above, _, last = err.rpartition("More: batchcl explain ")
    return above if above.endswith("\n") and last.removesuffix("\n") in set(ErrorCode) else err


def run_process(
    *args: object, env: Mapping[str, str], stdin: bytes = b"", cwd: Path | None = None, **streams: Any
) -> CommandResult:
    """Run a command in a process of its own, with `stdout` and `stderr` as given; if they are not, returns them."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with Batchcl(*args, env=env, stdin=subprocess.PIPE, cwd=cwd, **streams) as process:
        try:
            out, err = process.communicate(stdin, timeout=120)
        finally:
            process.kill()
    return CommandResult(process.returncode, (out or b"").decode(), (err or b"").decode())


@dataclass(frozen=True)
class Demo:
    """A trained model and images that were not used for training."""

    state: Path
    arn: str
    data: DemoData


def already_trained(demo: Demo) -> str:
    """Lines of Python before a script, which then finds the demo's model trained in each new state."""
    return f"""
import os, shutil
from batchcl.emulator import demo as _demo
_train = _demo.demo_model
async def _demo_model(state):
    if not (state / "buckets").exists():
        shutil.copytree(
            {str(demo.state)!r}, state, copy_function=os.link, ignore=shutil.ignore_patterns("lock"), dirs_exist_ok=True
        )
    return await _train(state)
_demo.demo_model = _demo_model
"""


@contextmanager
def copied(state: Path) -> Iterator[Path]:
    """Yield a copy of an emulator's state, without its buckets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(state, Path(folder) / "state", ignore=shutil.ignore_patterns("buckets")))


@contextmanager
def serving(env: Mapping[str, str], *flags: object, state: Path | None = None) -> Iterator[str]:
    """Run an emulator in a process of its own on a copy of `state`; yields its endpoint."""
    if state is not None:
        with copied(state) as copy, serving(env, *flags, "--state", copy) as endpoint:
            yield endpoint
        return
    process = Batchcl("emulator", *flags, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def aws_env(rekognition: str | None = None, s3: str | None = None) -> dict[str, str]:
    """Return the environment variables for these servers."""
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}
    if rekognition:
        env["AWS_ENDPOINT_URL_REKOGNITION"] = rekognition
    if s3:
        env["AWS_ENDPOINT_URL_S3"] = s3
    return env


def client(service: str, endpoint: str) -> Any:
    """Return a boto3 client, which is independent of batchcl's."""
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


@dataclass(frozen=True)
class Seaweed:
    """A real S3 server, which verifies signatures."""

    endpoint: str
    config: Path
    process: subprocess.Popen[bytes]

    def accept(self, key: str, secret: str) -> None:
        """Accept only these credentials."""
        _write_identity(self.config, key, secret)
        self.process.send_signal(signal.SIGHUP)


def _write_identity(config: Path, key: str, secret: str) -> None:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))


@contextmanager
def running_seaweed(root: Path) -> Iterator[Seaweed]:
    """Run SeaweedFS during the block, with its data below `root`."""
    config = root / "s3.json"
    _write_identity(config, KEY, SECRET)
    s3, master, volume, filer, admin = free_ports(5)
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
        env=os.environ | {"GOGC": "800", "GOMAXPROCS": "1"},  # a third less processor time for the same requests
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
        yield Seaweed(endpoint, config, process)
    finally:
        process.kill()  # SIGTERM makes it wait for clients to disconnect; its data are temporary
        process.wait()
        log.close()


def make_bucket(s3: Any, name: str) -> None:
    """Create the bucket unless it exists."""
    try:
        s3.create_bucket(Bucket=name)
    except s3.exceptions.BucketAlreadyOwnedByYou:
        return


def start_model(endpoint: str, arn: str, units: int = 5) -> None:
    """Start the model and wait until it is RUNNING."""
    rekognition = client("rekognition", endpoint)
    rekognition.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=units)
    wait_for(lambda: model_status(endpoint, arn) == "RUNNING")


def model_status(endpoint: str, arn: str) -> str:
    """Return the status from DescribeProjectVersions."""
    rekognition = client("rekognition", endpoint)
    project = rekognition.describe_projects(ProjectNames=[arn.split("/")[1]])["ProjectDescriptions"][0]
    versions = rekognition.describe_project_versions(ProjectArn=project["ProjectArn"])["ProjectVersionDescriptions"]
    return next(str(each["Status"]) for each in versions if each["ProjectVersionArn"] == arn)


def wait_for(there: Callable[[], bool], timeout_s: float = 30) -> None:
    """Poll until `there` returns True."""
    end = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < end, f"not done within {timeout_s} s"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Return free ports whose neighbour 10,000 above is free too: SeaweedFS uses both.

    Each process searches its own range: a port remains free until its server has started.
    """
    found: list[int] = []
    candidate = 20_000 + os.getpid() * 16 % 10_000
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
