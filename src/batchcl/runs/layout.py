"""Names below the output root, in one place."""

from __future__ import annotations

import datetime as dt
import re
import secrets
from dataclasses import dataclass
from typing import Final

from batchcl.errors import UsageError

__all__ = ["COMPACTED", "RUNS", "RunPaths", "new_run_id", "pace_path", "run_of", "valid_run_id"]

RUNS: Final = "runs"
COMPACTED: Final = "compact-"
"""How the names of merged parts begin."""

_PACE: Final = f"{RUNS}/.pace"
"""Not a run: the name of a run begins with a letter or a digit."""

_PART: Final = re.compile(r"(?P<run>.+)-\d{5,}(?:-r\d+)?\.parquet")
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,127}")


def new_run_id(now: dt.datetime) -> str:
    """A run id that sorts by time and doesn't collide."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def valid_run_id(run_id: str) -> str:
    """`run_id` itself, or `UsageError`: it becomes part of file names."""
    if not _RUN_ID.fullmatch(run_id) or run_id.startswith(COMPACTED):
        raise UsageError(
            f"{run_id!r} can't be a run id: use at most 128 letters, digits and . _ : + @ -, starting with a letter or "
            "digit and not with compact-, such as 2026-11-21"
        )
    return run_id


def run_of(part: str) -> str | None:
    """The run that published the file of this name; None for merged files, which may have rows of several."""
    found = None if part.startswith(COMPACTED) else _PART.fullmatch(part)
    return None if found is None else found["run"]


def pace_path(model: str) -> str:
    """What runs have learned of the pace of a model, by its name `<project>@<version>`."""
    return f"{_PACE}/{model}.json"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The names of one run. A round is 0 for the run itself, and counts its retries from 1."""

    run_id: str

    @property
    def folder(self) -> str:
        """Everything but the parts."""
        return f"{RUNS}/{self.run_id}"

    @property
    def record(self) -> str:
        """The run's immutable record."""
        return f"{self.folder}/run.json"

    @property
    def summary(self) -> str:
        """What the run came to, written at its end."""
        return f"{self.folder}/summary.json"

    @property
    def lease(self) -> str:
        """Who is working on the run."""
        return f"{self.folder}/lease.json"

    @property
    def totals(self) -> str:
        """The work list's totals, once the listing is complete."""
        return f"{self.folder}/worklist.json"

    @property
    def worklist(self) -> str:
        """Folder of the frozen shards."""
        return f"{self.folder}/worklist"

    @property
    def markers(self) -> str:
        """Folder of the published shards' markers."""
        return f"{self.folder}/shards"

    @property
    def rounds(self) -> str:
        """Folder of the retries."""
        return f"{self.folder}/rounds"

    def frozen(self, shard: int) -> str:
        """A frozen shard of the work list."""
        return f"{self.worklist}/{shard:05d}.parquet"

    def journal(self, shard: int, round_: int) -> str:
        """Folder of a shard's journal in a round."""
        return f"{self.folder}/journal/{_in_round(shard, round_)}"

    def segment(self, shard: int, round_: int, sequence: int) -> str:
        """One segment of a journal."""
        return f"{self.journal(shard, round_)}/{sequence:05d}.arrow"

    def marker(self, shard: int, round_: int) -> str:
        """Says that the shard is published."""
        return f"{self.markers}/{_in_round(shard, round_)}.json"

    def round(self, number: int) -> str:
        """What a retry re-scores."""
        return f"{self.rounds}/{number:03d}.json"

    def round_end(self, number: int) -> str:
        """Says that a retry is over."""
        return f"{self.rounds}/{number:03d}.done"

    def part(self, table: str, *, model: str, date: dt.date, shard: int, round_: int = 0) -> str:
        """The Parquet file of one shard in `table` (`results` or `failures`)."""
        name = f"{self.run_id}-{_in_round(shard, round_)}"
        return f"{table}/model={model}/date={date.isoformat()}/{name}.parquet"


def sequence(name: str) -> int:
    """The number in the file name of a segment."""
    return int(name.rpartition("/")[2].removesuffix(".arrow"))


def shard_and_round(name: str) -> tuple[int, int]:
    """The numbers in the file name of a marker."""
    shard, _, round_ = name.rpartition("/")[2].removesuffix(".json").partition("-r")
    return int(shard), int(round_ or 0)


def _in_round(shard: int, round_: int) -> str:
    return f"{shard:05d}" if not round_ else f"{shard:05d}-r{round_}"
