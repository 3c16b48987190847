"""Runs in processes that tests kill or run concurrently, and the tables that they write, read by polars alone."""

from __future__ import annotations

import json
import re
import subprocess
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

from processes import Batchcl
from servers import client, wait_for

VARYING_COLUMNS: Final = {"run_id", "attempts", "latency_ms", "request_id", "scored_at", "failed_at", "round"}
"""Columns that may differ between two runs over the same images."""

_REQUEST_ID: Final = re.compile(r"in request [0-9a-f-]+|\([0-9a-f-]{36}\)")


@dataclass(frozen=True)
class OutputRoot:
    """An output root, on disk or on the S3 server at `s3`."""

    root: str
    s3: str

    def files(self, prefix: str, suffix: str) -> dict[str, bytes]:
        """Path → content of the files below `prefix` that end with `suffix`."""
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
        """The names of those files; faster than `files`."""
        if not self.root.startswith("s3://"):
            return [str(path) for path in (Path(self.root) / prefix).rglob(f"*{suffix}")]
        bucket, _, folder = self.root.removeprefix("s3://").partition("/")
        found = self._client.list_objects_v2(Bucket=bucket, Prefix=f"{folder}/{prefix}/")
        return [each["Key"] for each in found.get("Contents", []) if each["Key"].endswith(suffix)]

    def expire(self, run_id: str) -> None:
        """Change the run's first session so that its process appears dead."""
        name = f"runs/{run_id}/sessions/00000.json"
        (data,) = self.files(f"runs/{run_id}/sessions", "00000.json").values()
        data = json.dumps(json.loads(data) | {"process": "1-0"}).encode()
        if not self.root.startswith("s3://"):
            (Path(self.root) / name).write_bytes(data)
            return
        bucket, _, folder = self.root.removeprefix("s3://").partition("/")
        self._client.put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=data)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of `results` or `failures`."""
        parts = self.files(table, ".parquet").values()
        return [row for part in parts for row in pq.ParquetFile(pa.BufferReader(part)).read().to_pylist()]

    def uris(self) -> list[str]:
        """The uri of each row of both tables, sorted."""
        return sorted(row["uri"] for table in ("results", "failures") for row in self.rows(table))

    def table(self) -> dict[str, dict[str, Any]]:
        """Map each uri to its row in `results/`, or else the latest failure, without `VARYING_COLUMNS`.

        Fails if an image has two results, or two failures in one round.
        """
        rows = [row | {"table": table} for table in ("failures", "results") for row in self.rows(table)]
        counts = Counter((row["uri"], row["table"], row.get("round")) for row in rows)
        assert not (duplicates := [each for each, count in counts.items() if count > 1]), duplicates
        by_uri: dict[str, dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: (row["table"] == "results", row.get("round") or 0)):
            columns = {name: value for name, value in row.items() if name not in VARYING_COLUMNS}
            if "error_message" in columns:
                columns["error_message"] = _REQUEST_ID.sub("", columns["error_message"])
            by_uri[row["uri"]] = columns
        return by_uri

    @cached_property
    def _client(self) -> Any:
        return client("s3", self.s3)


def new_bucket(s3: str) -> str:
    """Create a bucket; returns its name."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    client("s3", s3).create_bucket(Bucket=name)
    return name


@contextmanager
def started(
    *args: object, env: Mapping[str, str], stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A `batchcl` process that is killed at the end of the block."""
    process = Batchcl(*args, env=env, stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_begun(process: subprocess.Popen[bytes]) -> str:
    """Wait for the log line that reports the start of the session, or for the end; returns the log up to then."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.decode())
        if re.search(r"run \S+ into ", lines[-1]):
            break
    return "".join(lines)


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of the process, at most this long; returns whether it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait for `condition` or the end of the process."""
    while process.poll() is None and not condition():
        time.sleep(0.02)


def wait_for_rows(place: OutputRoot, count: int) -> None:
    """Wait until the tables have at least `count` rows."""
    wait_for(lambda: len(place.uris()) >= count)
