"""How much CPU and wall time does a command take to start, and `run` until its first call?

    python benchmarks/startup.py [--repeat 15] [--json]

Each command runs in a process of its own, with compiled modules (`__pycache__`) in place. `run` scores ten local
images with an emulator, whose model is already running, through a proxy that ends the run at its first
DetectCustomLabels: the figures are those of the whole process up to then. The medians are printed, with the smallest
and the largest value. Not claimed: the time until the first call to AWS, which adds the round trips to a region.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from common import conditions

from batchcl.emulator import EmulatorSettings, running
from batchcl.emulator.digits import write_digits

IMAGES = 10
FIRST_CALL = b"RekognitionService.DetectCustomLabels"
COMPLETION = {"_BATCHCL_COMPLETE": "complete_bash", "COMP_WORDS": "batchcl ru", "COMP_CWORD": "1"}


@dataclass(frozen=True)
class Start:
    """CPU and wall seconds of each repetition."""

    name: str
    cpu_s: Sequence[float]
    wall_s: Sequence[float]


def measured(
    name: str,
    repeat: int,
    command: Callable[[], list[str]],
    env: Mapping[str, str],
    first_call: FirstCall | None = None,
) -> Start:
    """Run `command()` `repeat` times after a run that is not counted; until it ends, or until its `first_call`."""
    cpu, wall = [], []
    for number in range(repeat + 1):
        happened = None if first_call is None else first_call.expect()
        begun_at = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "batchcl", *command()],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if happened is not None:
            is_reached = happened.wait(60)
            process.kill()
            if not is_reached:
                sys.exit(f"{name}: no call within a minute: {process.communicate()[1][-2000:].decode()}")
        assert process.stderr is not None
        stderr = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in {0, -signal.SIGKILL}:
            sys.exit(f"{name} ended with {process.returncode}: {stderr[-2000:].decode()}")
        if number:
            wall.append(time.perf_counter() - begun_at)
            cpu.append(used.ru_utime + used.ru_stime)
    return Start(name, cpu, wall)


class FirstCall:
    """A proxy before the emulator that reports the first DetectCustomLabels of a run, and forwards everything else."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._happened = threading.Event()
        self._target = (target.hostname, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def expect(self) -> threading.Event:
        """The event of the next first call; calls on connections that exist already are not counted."""
        self._happened = threading.Event()
        return self._happened

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pass_on, args=(client, server, self._happened), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, None), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, happened: threading.Event | None) -> None:
        try:
            while data := source.recv(1 << 16):
                if happened is not None and FIRST_CALL in data:
                    happened.set()
                    return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            sink.close()


@contextmanager
def emulator() -> Iterator[tuple[FirstCall, str, dict[str, str]]]:
    """A proxy of an emulator, the ARN of its running model, and the environment of its clients."""
    with running(EmulatorSettings(start_seconds=0.0, tps_per_unit=1000.0), demo_model=True) as service:
        assert service.model is not None
        client = boto3.client(
            "rekognition",
            endpoint_url=service.endpoint_url,
            region_name=service.region,
            aws_access_key_id=service.access_key_id,
            aws_secret_access_key=service.secret_access_key,
        )
        client.start_project_version(ProjectVersionArn=service.model, MinInferenceUnits=1)
        client.get_waiter("project_version_running").wait(
            ProjectArn=client.describe_projects()["ProjectDescriptions"][0]["ProjectArn"],
            WaiterConfig={"Delay": 1},
        )
        first_call = FirstCall(service.endpoint_url)
        env = {name: value for name, value in environment().items() if not name.startswith("AWS_")}
        env |= service.environment | {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        env |= {name: first_call.endpoint for name in service.environment if name.startswith("AWS_ENDPOINT_URL_")}
        yield first_call, service.model, env


def environment() -> dict[str, str]:
    """This process's environment, in which modules are compiled once."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def starts(repeat: int) -> Iterator[Start]:
    """The figures of each command."""
    env = environment()
    for words in (["--version"], ["--help"], ["run", "--help"], ["model", "--help"]):
        yield measured(f"batchcl {' '.join(words)}", repeat, partial(list, words), env)
    yield measured("completion of `batchcl ru`", repeat, list, env | COMPLETION)
    with tempfile.TemporaryDirectory() as folder, emulator() as (first_call, model, env):
        write_digits(Path(folder) / "digits", bucket="digits", train=2, test=IMAGES, seed=1)
        roots = iter(range(1000))

        def run() -> list[str]:
            out = str(Path(folder) / f"out{next(roots)}")
            return ["run", f"{folder}/digits/digits/test", "--model", model, "--out", out, "--log-format", "text"]

        yield measured("batchcl run, to its first call", repeat, run, env, first_call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about = conditions("typer", "aioboto3", "botocore", "polars", "pyarrow", "pydantic")
    found = list(starts(arguments.repeat))
    if arguments.json:
        print(json.dumps(about | {"starts": [asdict(each) for each in found]}))
        return
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(f"median (smallest to largest) of {arguments.repeat}:")
    for each in found:
        cpu, wall = spread(each.cpu_s), spread(each.wall_s)
        print(f"  {each.name:32} CPU {cpu}   wall {wall}")


def spread(values: Sequence[float]) -> str:
    """Median and range in seconds."""
    return f"{statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
