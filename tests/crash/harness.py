"""A run in a process of its own, killed or raced, and the table that it left: read with polars, not with batchcl."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from servers import client, wait_for

CHANCE: Final = {"run_id", "attempts", "latency_ms", "request_id", "scored_at", "failed_at", "round"}
"""Columns in which two runs over the same images may differ."""

_HEARING_HANGUPS: Final = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "batchcl", *sys.argv[1:]])
"""
"""Runs batchcl as a terminal does, also where the tests run under `nohup`."""

_FAILED: Final = re.compile(r"in request [0-9a-f-]+|\([0-9a-f-]{36}\)")


@dataclass(frozen=True)
class Place:
    """An output root, on disk or on the S3 server at `s3`."""

    root: str
    s3: str

    def files(self, prefix: str, suffix: str) -> dict[str, bytes]:
        """The files below `prefix` in the root, each whole."""
        if not self.root.startswith("s3://"):
            found = sorted((Path(self.root) / prefix).rglob(f"*{suffix}"))
            return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}
        bucket, _, folder = self.root.removeprefix("s3://").partition("/")
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/{prefix}/")
        keys = [each["Key"] for page in pages for each in page.get("Contents", []) if each["Key"].endswith(suffix)]
        return {
            key.removeprefix(f"{folder}/"): self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in sorted(keys)
        }

    def names(self, prefix: str, suffix: str) -> list[str]:
        """The names of those files, for a look that is quick."""
        if not self.root.startswith("s3://"):
            return [str(path) for path in (Path(self.root) / prefix).rglob(f"*{suffix}")]
        bucket, _, folder = self.root.removeprefix("s3://").partition("/")
        found = self._client.list_objects_v2(Bucket=bucket, Prefix=f"{folder}/{prefix}/")
        return [each["Key"] for each in found.get("Contents", []) if each["Key"].endswith(suffix)]

    def expire(self, run_id: str) -> None:
        """Make the run's first session look as if its process had died."""
        name = f"runs/{run_id}/sessions/00000.json"
        (data,) = self.files(f"runs/{run_id}/sessions", "00000.json").values()
        data = json.dumps(json.loads(data) | {"process": "1-0"}).encode()
        if not self.root.startswith("s3://"):
            (Path(self.root) / name).write_bytes(data)
            return
        bucket, _, folder = self.root.removeprefix("s3://").partition("/")
        self._client.put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=data)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of `results` or `failures` as any reader sees them now."""
        parts = self.files(table, ".parquet").values()
        return [row for part in parts for row in pq.ParquetFile(pa.BufferReader(part)).read().to_pylist()]

    def uris(self) -> list[str]:
        """The images that have a row, sorted, each as often as it has one."""
        return sorted(row["uri"] for table in ("results", "failures") for row in self.rows(table))

    def table(self) -> dict[str, dict[str, Any]]:
        """Each uri with its row in `results/`, else its latest failure, without what chance decides.

        An image with two results, or two failures in one round, fails the test.
        """
        rows = [row | {"table": table} for table in ("failures", "results") for row in self.rows(table)]
        times = Counter((row["uri"], row["table"], row.get("round")) for row in rows)
        assert not (twice := [each for each, count in times.items() if count > 1]), f"more than one row: {twice}"
        found: dict[str, dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: (row["table"] == "results", row.get("round") or 0)):
            kept = {name: value for name, value in row.items() if name not in CHANCE}
            if "error_message" in kept:
                kept["error_message"] = _FAILED.sub("", kept["error_message"])
            found[row["uri"]] = kept
        return found

    @cached_property
    def _client(self) -> Any:
        return client("s3", self.s3)


def new_bucket(s3: str) -> str:
    """The name of a bucket that was just made."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    client("s3", s3).create_bucket(Bucket=name)
    return name


@contextmanager
def started(
    *args: object, env: Mapping[str, str], stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A `batchcl` process, which does not outlive the block, and is not under `nohup`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HEARING_HANGUPS, *map(str, args)], env=dict(env), stdout=stdout, stderr=stderr
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_begun(process: subprocess.Popen[bytes]) -> str:
    """Wait for the line that says that the session began, or for the end; what was said up to then."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line.decode())
        if re.search(r"run \S+ into ", said[-1]):
            break
    return "".join(said)


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ends by itself in so much time."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def until_seen(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    """Wait until it is there, or the process has ended by itself; a look costs more than the pause between two."""
    while process.poll() is None and not there():
        time.sleep(0.02)


def wait_for_rows(place: Place, count: int) -> None:
    """Until so many images have their row."""
    wait_for(lambda: len(place.uris()) >= count)
