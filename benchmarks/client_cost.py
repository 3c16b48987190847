"""What does a call cost the client? Calls per CPU-second of batchcl (aiohttp), aioboto3 and boto3 threads, on one core.

    python benchmarks/client_cost.py [--calls 8000] [--rounds 5] [--concurrency 64] [--json]

Every contender is a process of its own, tied to one core, that makes the same calls to the same stub, which runs on
another core and answers at once. A round runs all of them one after the other. Images lie in S3, so a call is small.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from functools import partial
from pathlib import Path

import anyio
from common import MODEL, conditions, cores, environment, spend, stub

from batchcl.arns import ModelArn
from batchcl.aws.detect import Detector, open_detector
from batchcl.aws.session import Aws, AwsSettings
from batchcl.choices import Transport
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader

FILES = FileReader()

HERE = Path(__file__).parent
CONTENDERS = {
    "batchcl, aiohttp": [str(HERE / "client_cost.py"), "--one", "aiohttp"],
    "batchcl, aioboto3": [str(HERE / "client_cost.py"), "--one", "aioboto3"],
    "aioboto3, gather": [str(HERE / "peers" / "calls_aioboto3.py")],
    "boto3, threads": [str(HERE / "peers" / "calls_boto3.py")],
}
LIBRARIES = ("aiohttp", "yarl", "orjson", "aioboto3", "aiobotocore", "boto3", "botocore", "urllib3")
TARGETS = {"aioboto3, gather": 3.5, "boto3, threads": 4}


async def call(transport: Transport, endpoint: str, calls: int, concurrency: int) -> dict[str, float]:
    """As batchcl's own detector calls; the engine around it is another benchmark's."""
    aws = Aws(AwsSettings(region="us-east-1", rekognition_endpoint_url=endpoint))
    async with open_detector(
        aws, ModelArn.parse(MODEL), transport=transport, connections=concurrency, reader=FILES
    ) as detector:
        assert await _call_all(detector, concurrency * 2, concurrency) == concurrency * 4
        wall, cpu = time.perf_counter(), time.process_time()
        labels = await _call_all(detector, calls, concurrency)
        return {"labels": labels, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


async def _call_all(detector: Detector, calls: int, concurrency: int) -> int:
    semaphore = asyncio.Semaphore(concurrency)

    async def detect(number: int) -> int:
        key = f"2026/frame-{number:09}.jpg"
        image = ImageRef(uri=f"s3://photos/{key}", bucket="photos", key=key)
        async with semaphore:
            found = await detector.detect(image)
        return len([(label.name, label.confidence) for label in found.labels])

    return sum(await asyncio.gather(*(detect(number) for number in range(calls))))


def measured(script: list[str], endpoint: str, arguments: argparse.Namespace, core: int) -> dict[str, float]:
    """One contender in a fresh process on `core`."""
    asked = ["--endpoint", endpoint, "--model", MODEL]
    asked += ["--calls", str(arguments.calls), "--concurrency", str(arguments.concurrency)]
    done = spend([*script, *asked], env=environment(endpoint), core=core)
    found: dict[str, float] = json.loads(done.out)
    assert found["labels"] == 2 * arguments.calls
    return found


def compared(arguments: argparse.Namespace) -> tuple[list[dict[str, object]], int]:
    """All rounds: a row a contender, and the stub's CPU time an answer in µs."""
    spent: dict[str, float] = {}
    client, server = cores()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with stub(core=server, ended=spent) as endpoint:
        for _ in range(arguments.rounds):
            for name, script in CONTENDERS.items():
                rounds[name].append(measured(script, endpoint, arguments, client))
    rows: list[dict[str, object]] = []
    for name, found in rounds.items():
        rates = [arguments.calls / each["cpu_s"] for each in found]
        ours = [arguments.calls / each["cpu_s"] for each in rounds["batchcl, aiohttp"]]
        ratios = [mine / theirs for mine, theirs in zip(ours, rates, strict=True)]
        rows.append(
            {
                "client": name,
                "calls_per_cpu_second": round(statistics.median(rates)),
                "lowest": round(min(rates)),
                "highest": round(max(rates)),
                "cpu_us_per_call": round(1e6 / statistics.median(rates)),
                "calls_per_second": round(statistics.median(arguments.calls / each["wall_s"] for each in found)),
                "aiohttp_is_times": round(statistics.median(ratios), 2),
                "to_reach": TARGETS.get(name),
            }
        )
    return rows, round(spent["cpu_s"] / spent["answers"] * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--one", "--endpoint", "--model"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        transport = Transport(arguments.one)
        found = anyio.run(partial(call, transport, arguments.endpoint, arguments.calls, arguments.concurrency))
        print(json.dumps(found))
        return
    sizes = {"calls": arguments.calls, "concurrency": arguments.concurrency, "rounds": arguments.rounds}
    about = conditions(*LIBRARIES) | sizes
    rows, stub_us = compared(arguments)
    if arguments.json:
        print(json.dumps(about | {"clients": rows, "stub_cpu_us": stub_us}))
        return
    for name, value in about.items():
        print(f"{name:12} {value}")
    print(
        "conditions   client on one core, stub on another, plain HTTP on the loopback, S3 images; medians of the rounds"
    )
    for row in rows:
        target = "" if row["to_reach"] is None else f" (to reach: {row['to_reach']})"
        rates = f"{row['calls_per_cpu_second']:>6,} calls/CPU-s ({row['lowest']:,} to {row['highest']:,})"
        costs = f"{row['cpu_us_per_call']:>4,} µs CPU a call, {row['calls_per_second']:>6,} calls/s"
        print(f"{row['client']:18} {rates}, {costs}; aiohttp does {row['aiohttp_is_times']} times as many{target}")
    print(f"the stub takes {stub_us} µs CPU an answer")
    print(
        "not claimed: the speed of AWS or over TLS, calls with the bytes of images, or a run with its list and tables"
    )


if __name__ == "__main__":
    main()
