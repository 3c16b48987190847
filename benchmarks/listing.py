"""How many keys a second come out of an S3 prefix, and how long does `plan` take for a million?

    python benchmarks/listing.py [--keys 100000] [--planned 1000000] [--rounds 3] [--json]

The server is `stubs/s3_listing.py`, a process of its own on another core, whose pages are rendered beforehand. Each
listing runs in a fresh process that is held to one core and counts its CPU time from behind the imports to the last
key, the making of its client included. Every client gives what it gives its users: batchcl `ImageRef`s, boto3 and
aioboto3 dictionaries with datetimes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import conditions

STUB = Path(__file__).with_name("stubs") / "s3_listing.py"
MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/stub/version/v1/1700000000000"
URI = "s3://stub-bucket/data/"
CLIENT_CORE, SERVER_CORE = 0, 1
SHAPES = ("folders", "uuid", "dates", "hot")
TIMES_BOTO3 = 12
"""To reach by batchcl's listing, in keys a CPU-second."""
PLAN_S = 10
"""To reach by `plan` of a million images without latency, on a machine that does nothing else."""


def list_by_batchcl() -> Callable[[], int]:
    from batchcl.aws.session import Aws
    from batchcl.sources.s3_prefix import S3PrefixSource

    async def work() -> int:
        pages = S3PrefixSource(URI, Aws(), region="us-east-1").pages()
        return sum([len(page) async for page in pages])

    return lambda: asyncio.run(work())


def list_by_boto3() -> Callable[[], int]:
    import boto3

    def work() -> int:
        paginator = boto3.client("s3").get_paginator("list_objects_v2")
        return sum(len(page["Contents"]) for page in paginator.paginate(Bucket="stub-bucket", Prefix="data/"))

    return work


def list_by_aioboto3() -> Callable[[], int]:
    import aioboto3

    async def work() -> int:
        async with aioboto3.Session().client("s3") as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket="stub-bucket", Prefix="data/")
            return sum([len(page["Contents"]) async for page in pages])

    return lambda: asyncio.run(work())


def list_by_obstore() -> Callable[[], int]:
    import obstore
    from obstore.store import S3Store

    def work() -> int:
        store = S3Store(
            "stub-bucket",
            endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        return sum(len(chunk) for chunk in obstore.list(store, "data", chunk_size=1000))

    return work


CLIENTS = {
    "batchcl": list_by_batchcl,
    "boto3": list_by_boto3,
    "aioboto3": list_by_aioboto3,
    "obstore": list_by_obstore,
}


@contextmanager
def stub(keys: int, *, shape: str = "folders", latency_ms: float = 0, server: str = "AmazonS3") -> Iterator[str]:
    """The endpoint of a stub that runs during the block."""
    command = [sys.executable, STUB, "--keys", keys, "--shape", shape, "--latency-ms", latency_ms, "--server", server]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),  # noqa: PLW1509 - no threads here
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def environment(endpoint: str) -> dict[str, str]:
    """What a user of the stub exports."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keys = {"AWS_ACCESS_KEY_ID": "stub", "AWS_SECRET_ACCESS_KEY": "stub", "AWS_REGION": "us-east-1"}
    return kept | keys | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": endpoint}


def measured(client: str, endpoint: str, keys: int) -> dict[str, float]:
    """CPU and wall seconds of one listing in a fresh process."""
    command = [sys.executable, __file__, "--one", client]
    done = subprocess.run(command, env=environment(endpoint), check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    assert found.pop("keys") == keys, f"{client} did not list every key"
    return dict(found)


def one(client: str) -> None:
    os.sched_setaffinity(0, {CLIENT_CORE})
    listing = CLIENTS[client]()
    begun_at, cpu_before = time.monotonic(), time.process_time()
    keys = listing()
    figures = {"keys": keys, "cpu_s": time.process_time() - cpu_before, "wall_s": time.monotonic() - begun_at}
    print(json.dumps(figures))


def cpu_figures(keys: int, rounds: int) -> list[dict[str, object]]:
    """Keys a CPU-second of each client, the rounds interleaved."""
    spent: dict[str, list[float]] = {client: [] for client in CLIENTS}
    with stub(keys) as endpoint:
        for _ in range(rounds):
            for client, seconds in spent.items():
                seconds.append(measured(client, endpoint, keys)["cpu_s"])
    rates = {client: [keys / each for each in seconds] for client, seconds in spent.items()}
    base = statistics.median(rates["boto3"])
    return [
        {
            "client": client,
            "keys_per_cpu_second": round(statistics.median(found)),
            "lowest": round(min(found)),
            "highest": round(max(found)),
            "times_boto3": round(statistics.median(found) / base, 1),
        }
        | ({"to_reach": TIMES_BOTO3} if client == "batchcl" else {})
        for client, found in rates.items()
    ]


def wall_figures(keys: int, latency_ms: float) -> list[dict[str, object]]:
    """Wall time of batchcl's listing with and without ranges, of keys of several shapes."""
    rows = []
    for shape in SHAPES:
        with stub(keys, shape=shape, latency_ms=latency_ms, server="another") as endpoint:
            serial_s = measured("batchcl", endpoint, keys)["wall_s"]
        with stub(keys, shape=shape, latency_ms=latency_ms) as endpoint:
            ranges_s = measured("batchcl", endpoint, keys)["wall_s"]
        rows.append(
            {
                "shape": shape,
                "serial_s": round(serial_s, 2),
                "ranges_s": round(ranges_s, 2),
                "times": round(serial_s / ranges_s, 1),
            }
        )
    return rows


def plan_figures(keys: int, latency_ms: float) -> list[dict[str, object]]:
    """Wall and CPU time of the whole command, start-up of the interpreter included."""
    rows: list[dict[str, object]] = []
    for latency in (0, latency_ms):
        with stub(keys, latency_ms=latency) as endpoint:
            begun_at, cpu_before = time.monotonic(), children_cpu_s()
            done = subprocess.run(
                [sys.executable, "-m", "batchcl", "plan", URI, "--model", MODEL, "--json"],
                env=environment(endpoint),
                check=True,
                stdout=subprocess.PIPE,
            )
            figures = {"wall_s": time.monotonic() - begun_at, "cpu_s": children_cpu_s() - cpu_before}
        assert json.loads(done.stdout)["planned"] == keys
        rows.append(
            {"images": keys, "latency_ms": latency, **{name: round(value, 1) for name, value in figures.items()}}
        )
    return rows


def children_cpu_s() -> float:
    """CPU time of the processes that were started here and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--planned", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=CLIENTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        one(arguments.one)
        return
    about = conditions("boto3", "aioboto3", "aiohttp", "obstore")
    cpu = cpu_figures(arguments.keys, arguments.rounds)
    wall = wall_figures(2 * arguments.keys, arguments.latency_ms)
    plans = plan_figures(arguments.planned, arguments.latency_ms)
    if arguments.json:
        print(json.dumps(about | {"rounds": arguments.rounds, "cpu": cpu, "wall": wall, "plan": plans}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    print(
        f"conditions {arguments.keys:,} keys by folders, {arguments.rounds} interleaved rounds, medians (lowest to "
        "highest); loopback, no TLS, signatures not verified; client and server on a core each"
    )
    for row in cpu:
        target = f" (to reach: {row['to_reach']})" if "to_reach" in row else ""
        print(
            f"{row['client']:9} {row['keys_per_cpu_second']:>9,} keys a CPU-second "
            f"({row['lowest']:,} to {row['highest']:,}), {row['times_boto3']} times boto3{target}"
        )
    print(f"{2 * arguments.keys:,} keys at {arguments.latency_ms:g} ms a page:")
    for row in wall:
        print(f"{row['shape']:9} {row['serial_s']} s page by page, {row['ranges_s']} s by ranges: {row['times']} times")
    for row in plans:
        print(
            f"plan of {row['images']:,} images at {row['latency_ms']:g} ms a page: {row['wall_s']} s, of which "
            f"{row['cpu_s']} s CPU, start-up included"
            + (f" (to reach: {PLAN_S} s a million)" if not row["latency_ms"] else "")
        )
    print("obstore is a note: it refuses a whole listing when one key holds '..', and normalises others")
    print("not claimed: the CPU of TLS, S3's own latency and its spread, or what S3 does under 16 requests at a time")


if __name__ == "__main__":
    main()
