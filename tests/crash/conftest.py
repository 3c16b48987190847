"""Inputs of the crash tests: valid images, a truncated one, and a text file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from commands import run_command
from crash.harness import OutputRoot, new_bucket
from servers import aws_env, client

PICTURES = 58

IN_SUITE = "BATCHCL_CRASH_CYCLES" not in os.environ
"""Whether a choice of the cases is enough: `make crash` runs all of them."""


@dataclass(frozen=True)
class ScoringJob:
    """A job that exits with 0: its source, environment and number of images."""

    source: str
    model: str
    env: dict[str, str]
    images: int

    def args(self, place: OutputRoot, *flags: object) -> tuple[object, ...]:
        """The arguments of `batchcl run`; one failure (the truncated image) is tolerated."""
        return ("run", self.source, "--model", self.model, "--out", place.root, "--max-failures", 1, *flags)


def cycles(default: int, at_most: int) -> int:
    """Number of repetitions: `default` in the test suite, BATCHCL_CRASH_CYCLES in `make crash`."""
    return min(int(os.environ.get("BATCHCL_CRASH_CYCLES", default)), at_most)


@pytest.fixture(scope="session")
def pictures(demo, tmp_path_factory) -> Path:
    """Sixty files in a directory."""
    folder: Path = tmp_path_factory.mktemp("pictures") / "in"
    folder.mkdir()
    good = sorted(demo.data.images.iterdir())[:PICTURES]
    for path in good:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "00000-broken.jpg").write_bytes(good[0].read_bytes()[:100])
    (folder / "00000-notes.txt").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def jobs(demo, service, seaweed, clean_env, pictures) -> dict[str, ScoringJob]:
    """The same job with local files and with S3 objects."""
    env = clean_env | aws_env(service, seaweed)
    bucket = new_bucket(seaweed)
    s3 = client("s3", seaweed)
    for path in pictures.iterdir():
        s3.put_object(Bucket=bucket, Key=f"in/{path.name}", Body=path.read_bytes())
    count = PICTURES + 2
    return {
        "local": ScoringJob(str(pictures), demo.arn, env, count),
        "s3": ScoringJob(f"s3://{bucket}/in/", demo.arn, env, count),
    }


@pytest.fixture
def place(seaweed, tmp_path) -> Any:
    """Returns a function that creates an empty output root: local or in S3."""

    def make(where: str, name: str = "out") -> OutputRoot:
        root = f"s3://{new_bucket(seaweed)}/{name}" if where == "s3" else str(tmp_path / name)
        return OutputRoot(root, seaweed)

    return make


@pytest.fixture(scope="session")
def expected_tables(jobs, seaweed, tmp_path_factory) -> dict[str, dict[str, dict[str, Any]]]:
    """The table of each job without interruptions."""
    tables = {}
    for where, scoring_job in jobs.items():
        place = OutputRoot(str(tmp_path_factory.mktemp("expected_tables") / where), seaweed)
        with patch.dict(os.environ, scoring_job.env, clear=True):
            done = run_command("", *scoring_job.args(place))
        assert done.code == 0, done.err
        tables[where] = place.table()
        assert len(tables[where]) == scoring_job.images
    return tables
