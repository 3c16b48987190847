"""Do calls keep their pace while the list of a long prefix is still being read?

    python benchmarks/listing_beside_scoring.py [--keys 1000000] [--max-tps 200] [--seconds 20] [--rounds 3] [--json]

`batchcl.run` scores a prefix of the stub (`stubs/server.py`, a process of its own) at `--max-tps` calls a second, and
is asked to end some seconds after its first call. Without a list beside them, the calls are for a prefix whose keys
make one shard, which is frozen before the first call. Both are measured in fresh processes, round by round. The pace
begins at `--max-tps`, as if an earlier run had learned it. A task beside the run sleeps for 5 ms again and again: how
late it wakes up is how long the event loop was busy, or waited for the interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import anyio
from common import MODEL, conditions, cores, environment, stub

from batchcl import Job, run
from batchcl.errors import StoppedError
from batchcl.events import Progress, SilentObserver
from batchcl.stop_signal import StopSignal

SHARD = 10_000
START_TPS = "batchcl.scoring.pace.START_TPS"
NAP_S = 0.005
SHARE = 0.98
"""To reach: calls a second beside a list that is being read, of those without one."""
LIBRARIES = ("anyio", "aiohttp", "obstore", "pyarrow")


class Watcher(SilentObserver):
    """Keeps the run's counters, once there are any."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        """Keep them."""
        self._progress = progress

    async def first_call(self) -> Progress:
        """The counters, once the first call has gone out."""
        while True:
            if self._progress is not None and self._progress.calls:
                return self._progress
            await anyio.sleep(NAP_S)


async def _first_seconds(source: str, out: str, max_tps: float, seconds: float) -> dict[str, Any]:
    watcher, stop_signal = Watcher(), StopSignal()
    job = Job(sources=(source,), model=MODEL, out=out, max_tps=max_tps)
    found: dict[str, Any] = {}

    async def watch() -> None:
        progress = await watcher.first_call()
        begun_at, calls, cpu_s = anyio.current_time(), progress.calls, time.process_time()
        late = []
        while (now := anyio.current_time()) < begun_at + seconds:
            await anyio.sleep(NAP_S)
            late.append(anyio.current_time() - now - NAP_S)
        took_s = anyio.current_time() - begun_at
        found.update(
            calls_per_second=(progress.calls - calls) / took_s,
            cpu_seconds=time.process_time() - cpu_s,
            listed=progress.planned,
            late_p99_ms=1000 * statistics.quantiles(late, n=100)[98],
            late_max_ms=1000 * max(late),
        )
        stop_signal.request("measured")

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with suppress(StoppedError):
            await run(job, observer=watcher, stop_signal=stop_signal)
    return found


def _one(source: str, out: str, max_tps: float, seconds: float) -> None:
    with patch(START_TPS, max_tps):
        print(json.dumps(anyio.run(_first_seconds, source, out, max_tps, seconds)))


def measured(endpoint: str, prefix: str, max_tps: float, seconds: float) -> dict[str, Any]:
    """The first seconds of a run over the keys with this prefix, in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        command = [__file__, "--one", f"s3://photos/{prefix}", out, "--max-tps", max_tps, "--seconds", seconds]
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment(endpoint), check=True, stdout=subprocess.PIPE
        )
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--max-tps", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    max_tps, seconds = arguments.max_tps, arguments.seconds
    if arguments.one is not None:
        _one(arguments.one[0], arguments.one[1], max_tps, seconds)
        return
    prefixes = {"nothing": "camera-00000/", "a list": "camera-"}
    found: dict[str, list[dict[str, Any]]] = {beside: [] for beside in prefixes}
    about = conditions(*LIBRARIES) | {"keys": arguments.keys, "max_tps": max_tps, "seconds": seconds}
    with stub("--keys", arguments.keys, "--delay-ms", 100, core=cores()[1]) as endpoint:
        for _ in range(arguments.rounds):
            for beside, prefix in prefixes.items():
                found[beside].append(measured(endpoint, prefix, max_tps, seconds))
    rows = [
        {"beside": beside} | {name: round(statistics.median(each[name] for each in runs), 2) for name in runs[0]}
        for beside, runs in found.items()
    ]
    share = statistics.median(
        loud["calls_per_second"] / quiet["calls_per_second"] for quiet, loud in zip(*found.values(), strict=True)
    )
    if arguments.json:
        print(json.dumps(about | {"runs": rows, "share": round(share, 3), "to_reach": SHARE}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    print(f"conditions {os.cpu_count()} cores, plain HTTP on the loopback, 100 ms an answer; medians of the rounds")
    for row in rows:
        print(
            f"beside {row['beside']:8} {row['calls_per_second']:6.1f} calls/s, {row['cpu_seconds']:5.1f} s CPU, "
            f"{row['listed']:,} images listed by then, "
            f"event loop late by {row['late_p99_ms']:.1f} ms (p99), {row['late_max_ms']:.1f} ms at most"
        )
    print(f"share      {share:.3f} of the calls beside nothing (to reach: {SHARE:g})")
    print("not claimed: how well --max-tps is kept, which is the pacer's affair; TLS; a list with filters")


if __name__ == "__main__":
    main()
