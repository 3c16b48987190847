"""What the benchmarks share: where figures come from, stub servers, and processes that are held to one core."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/stub/version/v1/1700000000000"
STUB = Path(__file__).parent / "stubs" / "server.py"


def conditions(*libraries: str) -> dict[str, object]:
    """Where the figures come from."""
    return {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("batchcl", *libraries)},
    }


def status_mb(field: str) -> float:
    """What Linux says of this process's memory, such as `VmHWM`, its peak so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


def cost_of(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result of `work`; the seconds and CPU seconds that it took, and this process's peak of memory."""
    begun_at, cpu_before = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - begun_at, time.process_time() - cpu_before
    return result, {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_rss_mb": status_mb("VmHWM")}


def said_by(command: Sequence[object], *, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a Python `command` prints as JSON, in a process of its own."""
    done = subprocess.run([sys.executable, *map(str, command)], env=env, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def cores() -> tuple[int, int]:
    """A core for the client and one for the server; the same one where there is no other."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def environment(endpoint: str) -> dict[str, str]:
    """What a user of a stub exports, and nothing else of AWS's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BATCHCL_"))}
    return kept | {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "stub",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def stub(*flags: object, core: int, ended: dict[str, float] | None = None) -> Iterator[str]:
    """The endpoint of a stub on `core`; what it counted is in `ended` when the block is over."""
    with subprocess.Popen(
        [sys.executable, STUB, "--core", str(core), *map(str, flags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
        process.stdin.close()
        said = json.loads(process.stdout.readline())
        if ended is not None:
            ended.update(said)


@dataclass(frozen=True)
class Ended:
    """A process that has ended well: what it printed, and what it took from the interpreter's start on."""

    out: str
    wall_s: float
    cpu_s: float


def spend(command: Sequence[object], *, env: Mapping[str, str], core: int) -> Ended:
    """Run a Python `command` on `core` to its end. The CPU time is that of the whole process, all of its threads."""
    before, begun_at = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=dict(env),
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=partial(os.sched_setaffinity, 0, {core}),
    )
    wall_s, after = time.perf_counter() - begun_at, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Ended(done.stdout, wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
