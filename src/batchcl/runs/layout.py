"""Names below the output root, in one place."""

from __future__ import annotations

import datetime as dt
import re
import secrets
from typing import Final

from batchcl.errors import UsageError

__all__ = ["RUNS", "new_run_id", "part_path", "record_path", "summary_path", "valid_run_id"]

RUNS: Final = "runs"
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,127}")


def new_run_id(now: dt.datetime) -> str:
    """A run id that sorts by time and doesn't collide."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def valid_run_id(run_id: str) -> str:
    """`run_id` itself, or `UsageError`: it becomes part of file names."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"{run_id!r} can't be a run id: use at most 128 letters, digits and . _ : + @ -, starting with a letter or "
            "digit, such as 2026-11-21"
        )
    return run_id


def record_path(run_id: str) -> str:
    """The run's immutable record."""
    return f"{RUNS}/{run_id}/run.json"


def summary_path(run_id: str) -> str:
    """What the run came to, written at its end."""
    return f"{RUNS}/{run_id}/summary.json"


def part_path(table: str, *, model: str, date: dt.date, run_id: str, shard: int) -> str:
    """The Parquet file of one shard in `table` (`results` or `failures`)."""
    return f"{table}/model={model}/date={date.isoformat()}/{run_id}-{shard:05d}.parquet"
