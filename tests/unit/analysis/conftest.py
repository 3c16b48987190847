"""Writes an output root with Parquet files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchcl.images import ImageRef
from batchcl.outcomes import Failed, Label, Scored
from batchcl.runs.layout import PartName
from batchcl.runs.schema import failures_table, parquet_bytes, results_table
from tables import columns

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def arn_of(model: str) -> str:
    project, _, version = model.partition("@")
    return f"arn:aws:rekognition:eu-west-1:123456789012:project/{project}/version/{version}/1700000000000"


def image(uri: str, version_id: str | None = None) -> ImageRef:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return ImageRef(uri=uri, bucket=bucket, key=key, version_id=version_id, extra='{"a":1}')


def scored(uri: str, *labels: Label, at: dt.datetime = NOON, version_id: str | None = None) -> Scored:
    return Scored(image=image(uri, version_id), labels=labels, attempts=1, latency_ms=80, request_id="r", scored_at=at)


def failed(
    uri: str,
    code: str = "InvalidImageFormatException",
    *,
    skipped: bool = False,
    at: dt.datetime = NOON,
    version_id: str | None = None,
) -> Failed:
    return Failed(
        image=image(uri, version_id),
        status="skipped" if skipped else "failed",
        code=code,
        message=f"{code} of {uri}",
        attempts=1,
        failed_at=at,
    )


@dataclass
class Root:
    """An output root, with methods that write files as a run publishes them."""

    path: Path
    model: str = "cats@v1"
    date: str = "2026-11-21"
    run_id: str = "r1"

    def __str__(self) -> str:
        return str(self.path)

    def results(
        self,
        *rows: Scored,
        model: str | None = None,
        model_arn: str | None = None,
        date: str | None = None,
        run_id: str | None = None,
        shard: int = 0,
        first: int = 0,
        min_confidence: float | None = None,
        max_results: int | None = None,
    ) -> None:
        run_id, arn = run_id or self.run_id, model_arn or arn_of(model or self.model)
        table = results_table(
            *columns(rows), run_id=run_id, model_arn=arn, min_confidence=min_confidence, max_results=max_results
        )
        data = parquet_bytes(table, run_id=run_id, model_arn=arn)
        self._write("results", data, model, date, PartName(run_id, shard, first))

    def failures(
        self,
        rows: Sequence[Failed],
        *,
        model: str | None = None,
        date: str | None = None,
        run_id: str | None = None,
        first: int = 0,
        round_: int = 0,
    ) -> None:
        run_id, arn = run_id or self.run_id, arn_of(model or self.model)
        table = failures_table(*columns(rows, round_=round_), run_id=run_id, model_arn=arn)
        data = parquet_bytes(table, run_id=run_id, model_arn=arn)
        self._write("failures", data, model, date, PartName(run_id, 0, first))

    def _write(self, table: str, data: bytes, model: str | None, date: str | None, name: PartName) -> None:
        folder = self.path / table / f"model={model or self.model}" / f"date={date or self.date}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(name)).write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root whose path looks like partitions, a glob and URL encoding."""
    path = tmp_path / "env=prod" / "model=m@9" / "[x] %41 łódź*"
    path.mkdir(parents=True)
    return Root(path)


class Make:
    """Makes outcomes with defaults for all fields that a test does not check."""

    image = staticmethod(image)
    scored = staticmethod(scored)
    failed = staticmethod(failed)


@pytest.fixture
def make() -> type[Make]:
    return Make
