"""Names below the output root, in one place."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcl.errors import UsageError

__all__ = [
    "FOLDERS",
    "RUNS",
    "STAGING",
    "STARTS",
    "PartName",
    "RunPaths",
    "admission_path",
    "expand_home",
    "known_path",
    "new_run_id",
    "output_root",
    "pace_path",
    "run_name",
    "run_of_start",
    "start_path",
    "valid_run_id",
]

RUNS: Final = "runs"
FOLDERS: Final = ("results", "failures", RUNS)
"""Of an output root."""

STAGING: Final = f"{RUNS}/.staging"
"""Where local files are written before they are renamed. Not a run: a run's name does not begin with a dot."""

STARTS: Final = f"{RUNS}/.starts"
"""Folder of empty files whose names tell when each run started, so that the newest one is found by names alone."""

_BETWEEN: Final = "~"  # the name of a run has none
_PACE: Final = f"{RUNS}/.pace"
_PART: Final = re.compile(r"(?P<run>.+)-(?P<shard>\d{5,})-(?P<first>\d{5,})\.parquet")
_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MOST_ID_BYTES: Final = 255
_MOST_NAME_BYTES: Final = 100
_DIGEST_CHARACTERS: Final = 12


def output_root(text: str) -> str:
    """The output root that a user names, as it is used and printed: an absolute path, or `s3://bucket[/prefix]`.

    Raises:
        UsageError: it is neither, or too much like something else to be taken for a directory.
    """
    if any(not character.isprintable() for character in text):
        raise UsageError(f"the output root {text!r} contains control characters or is not valid UTF-8")
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(bucket):
            hint = "use the alias of the access point" if bucket.startswith("arn:") else "write s3://bucket/prefix"
            raise UsageError(f"the output root {text!r} has no valid bucket name; {hint}")
        folders = prefix.removesuffix("/").split("/") if prefix else []
        if not {"", ".", ".."}.isdisjoint(folders):
            raise UsageError(f"the output root {text!r} has an empty folder name, . or .. in its prefix; remove it")
        return "/".join([f"s3://{bucket}", *folders])
    if ":" in text.partition("/")[0]:
        raise UsageError(
            f"the output root {text!r} is neither s3://bucket/prefix nor clearly a directory; write ./{text} if it is"
        )
    return str(Path(expand_home(text)).absolute())


def expand_home(path: str) -> str:
    """`path` with `~` and `~user` at its start replaced, as a shell does. Raises `UsageError` where that is unknown."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        name = path.partition("/")[0]
        raise UsageError(
            f"the home directory {name} in {path!r} is unknown; set HOME or write the whole path"
        ) from error


def new_run_id(now: dt.datetime) -> str:
    """A run id that sorts by time and doesn't collide."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def valid_run_id(run_id: str) -> str:
    """`run_id` itself, or `UsageError`: any printable text of 1 to 255 bytes, such as those of schedulers."""
    if not run_id.isprintable() or not 0 < len(run_id.encode(errors="replace")) <= _MOST_ID_BYTES:
        raise UsageError(f"{run_id!r} can't be a run id: use 1 to {_MOST_ID_BYTES} bytes of printable text")
    return run_id


def run_name(run_id: str) -> str:
    """The run in file names: at most 100 letters, digits, `.`, `_` and `-`, not beginning with `.` or `_`.

    An id of this form is its own name. Otherwise the other characters are replaced and a digest of the id is appended,
    so that two ids have two names. Spark reads no names with `:`, and none that begin with `.` or `_`.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).lstrip("._")
    if safe == run_id and len(safe) <= _MOST_NAME_BYTES:
        return run_id
    digest = hashlib.sha256(run_id.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{safe[: _MOST_NAME_BYTES - len(digest) - 1]}-{digest}"


def pace_path(model_arn: str, units: str) -> str:
    """What runs have learned of the pace of a model with so many inference units: `2`, `1:3`, empty if unknown."""
    return f"{_PACE}/{_file_name(model_arn)}/{units.replace(':', '-') or 'unknown'}.json"


def admission_path(model_arn: str) -> str:
    """Folder of the lock under which runs of a model start."""
    return f"{RUNS}/.admission/{_file_name(model_arn)}"


def known_path(about: str) -> str:
    """What small files were read to, so that the next run need not read them; `about` says from which rows."""
    return f"{RUNS}/.known/{hashlib.sha256(about.encode()).hexdigest()[:32]}"


def start_path(run_id: str, started_at: dt.datetime) -> str:
    """Created before the run's record."""
    return f"{STARTS}/{started_at.astimezone(dt.UTC):%Y%m%dT%H%M%S.%fZ}{_BETWEEN}{run_name(run_id)}"


def run_of_start(path: str) -> str:
    """The run, by its name, in such a path."""
    return path.rpartition("/")[2].partition(_BETWEEN)[2]


def _file_name(model_arn: str) -> str:
    """The end of an ARN in characters that any file name may have, and a digest of all of it."""
    digest = hashlib.sha256(model_arn.encode()).hexdigest()[:12]
    resource = model_arn.rpartition(":")[2]
    return f"{re.sub(r'[^A-Za-z0-9._@-]+', '-', resource)[-80:]}-{digest}"


@dataclass(frozen=True, slots=True, order=True)
class PartName:
    """What the name of a published file says: the `run_name`, the shard and the first journal segment of its rows."""

    run: str
    shard: int
    first: int

    def __str__(self) -> str:
        return f"{self.run}-{self.shard:05d}-{self.first:05d}.parquet"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """Read a file name; None for files that no run has written, such as those of an export."""
        found = _PART.fullmatch(name)
        return None if found is None else cls(found["run"], int(found["shard"]), int(found["first"]))


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The paths of one run, by its id or its name. Round 0 is the run itself; its retries are numbered from 1."""

    run_id: str

    @property
    def folder(self) -> str:
        """Everything but the parts."""
        return f"{RUNS}/{run_name(self.run_id)}"

    @property
    def record(self) -> str:
        """The run's immutable record."""
        return f"{self.folder}/run.json"

    @property
    def summary(self) -> str:
        """What the run came to, written at its end."""
        return f"{self.folder}/summary.json"

    @property
    def sessions(self) -> str:
        """Folder of the sessions; the newest one holds the run."""
        return f"{self.folder}/sessions"

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

    @property
    def journals(self) -> str:
        """Folder of the journals, one a shard."""
        return f"{self.folder}/journal"

    def journal(self, shard: int) -> str:
        """Folder of a shard's journal, over all rounds."""
        return f"{self.journals}/{shard:05d}"

    def segment(self, shard: int, number: int) -> str:
        """One segment of a journal."""
        return f"{self.journal(shard)}/{number:05d}.arrow"

    def marker(self, shard: int, round_: int) -> str:
        """Says that the shard is complete and published in the round."""
        return f"{self.markers}/{shard:05d}.json" if not round_ else f"{self.markers}/{shard:05d}-r{round_}.json"

    def round(self, number: int) -> str:
        """What a retry scores again."""
        return f"{self.rounds}/{number:03d}.json"

    def round_end(self, number: int) -> str:
        """Says that a retry is over."""
        return f"{self.rounds}/{number:03d}.done"

    def part(self, table: str, *, model: str, date: dt.date, shard: int, first: int) -> str:
        """The Parquet file in `table` (`results` or `failures`) of the segments from number `first` to the next cut."""
        return f"{table}/model={model}/date={date.isoformat()}/{PartName(run_name(self.run_id), shard, first)}"


def segment_number(path: str) -> int:
    """The number in the file name of a segment."""
    return int(path.rpartition("/")[2].removesuffix(".arrow"))


def shard_and_round(path: str) -> tuple[int, int]:
    """The numbers in the file name of a marker."""
    shard, _, round_ = path.rpartition("/")[2].removesuffix(".json").partition("-r")
    return int(shard), int(round_ or 0)
