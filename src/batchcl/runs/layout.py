"""File and folder names below the output root, run ids, and the validation of `--out`."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcl.errors import ErrorCode, UsageError

__all__ = [
    "FOLDERS",
    "RUNS",
    "STAGING",
    "STARTS",
    "PartName",
    "RunPaths",
    "admission_path",
    "billed_folder",
    "billed_path",
    "check_outside_root",
    "expand_home",
    "incremental_index_path",
    "new_run_id",
    "output_root",
    "pace_path",
    "run_name",
    "run_of_start",
    "session_of_billed",
    "start_path",
    "started_since",
    "valid_run_id",
]

RUNS: Final = "runs"
FOLDERS: Final = ("results", "failures", RUNS)
"""The top-level folders of an output root."""

STAGING: Final = f"{RUNS}/.staging"
"""Local files are written here and then renamed. Not a run: names of runs don't begin with a dot."""

STARTS: Final = f"{RUNS}/.starts"
"""Folder of empty files named after start time and run, so that one listing finds the newest run."""

_START_TIME: Final = "%Y%m%dT%H%M%S.%fZ"  # sorts by time
_SEPARATOR: Final = "~"  # never part of a run's name
_PACE: Final = f"{RUNS}/.pace"
_PART: Final = re.compile(r"(?P<run>.+)-(?P<shard>\d{5,})-(?P<first>\d{5,})\.parquet")
_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MAX_ID_BYTES: Final = 255
_MAX_NAME_BYTES: Final = 100
_DIGEST_CHARACTERS: Final = 12


def output_root(text: str) -> str:
    """Validate and normalize an output root: an absolute path, or `s3://bucket[/prefix]`.

    Raises:
        UsageError: it is neither, or has a colon that suggests another kind of URL.
    """
    if any(not character.isprintable() for character in text):
        raise UsageError(
            f"the output root {text!r} contains control characters or is not valid UTF-8; use another name",
            code=ErrorCode.INVALID_TARGET,
        )
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(bucket):
            hint = "use the alias of the access point" if bucket.startswith("arn:") else "write s3://bucket/prefix"
            raise UsageError(
                f"the output root {text!r} has no valid bucket name; {hint}", code=ErrorCode.INVALID_TARGET
            )
        folders = prefix.removesuffix("/").split("/") if prefix else []
        if not {"", ".", ".."}.isdisjoint(folders):
            raise UsageError(
                f"the output root {text!r} contains //, . or .. in its prefix; remove them",
                code=ErrorCode.INVALID_TARGET,
            )
        return "/".join([f"s3://{bucket}", *folders])
    if ":" in text.partition("/")[0]:
        raise UsageError(
            f"the output root {text!r} is neither s3://bucket/prefix nor clearly a directory; for a directory write "
            f"./{text}",
            code=ErrorCode.INVALID_TARGET,
        )
    return str(Path(expand_home(text)).absolute())


def expand_home(path: str) -> str:
    """Expand a leading `~` or `~user`. Raises `UsageError` if the home directory is unknown."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        name = path.partition("/")[0]
        raise UsageError(
            f"expanding {name} in {path!r} failed: no such home directory; set HOME or write the whole path"
        ) from error


def check_outside_root(path: str, root: str, *, what: str) -> None:
    """Raise `UsageError` if the local file `path` is in the output root; `what` names its option in the message."""
    if root.startswith("s3://"):
        return
    folder = os.path.realpath(os.path.expanduser(root))
    if os.path.commonpath([folder, os.path.realpath(os.path.expanduser(path))]) == folder:
        raise UsageError(
            f"{what} {path} is in the output root {root}, where only runs write; name a file elsewhere",
            code=ErrorCode.INVALID_TARGET,
        )


def new_run_id(now: dt.datetime) -> str:
    """A unique run id that sorts by time."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def valid_run_id(run_id: str) -> str:
    """Return `run_id` if it is printable text of 1 to 255 bytes, as schedulers' ids are; raise `UsageError` if not."""
    if not run_id.isprintable() or not 0 < len(run_id.encode(errors="replace")) <= _MAX_ID_BYTES:
        raise UsageError(f"{run_id!r} is not a valid run id; use 1 to {_MAX_ID_BYTES} bytes of printable text")
    return run_id


def run_name(run_id: str) -> str:
    """The run id as used in file names: at most 100 of `A-Za-z0-9._-`, not beginning with `.` or `_`.

    Ids of this form are unchanged. In others the remaining characters are replaced and a digest is appended, so that
    different ids have different names. Spark can't read names with `:`, and ignores those that begin with `.` or `_`.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).lstrip("._")
    if safe == run_id and len(safe) <= _MAX_NAME_BYTES:
        return run_id
    digest = hashlib.sha256(run_id.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{safe[: _MAX_NAME_BYTES - len(digest) - 1]}-{digest}"


def pace_path(model_arn: str, units: str) -> str:
    """The learned rate of a model with this number of inference units: `2`, `1:3`, or empty if unknown."""
    return f"{_PACE}/{_file_name(model_arn)}/{units.replace(':', '-') or 'unknown'}.json"


def admission_path(model_arn: str) -> str:
    """Folder of the lock that runs of a model hold while they start."""
    return f"{RUNS}/.admission/{_file_name(model_arn)}"


def incremental_index_path(selection: str) -> str:
    """Index of small published files for `--incremental`; `selection` describes which of their rows count."""
    return f"{RUNS}/.index/{hashlib.sha256(selection.encode()).hexdigest()[:32]}"


def start_path(run_id: str, started_at: dt.datetime) -> str:
    """Empty file that records when a run started; created before the run's record."""
    return f"{STARTS}/{started_at.astimezone(dt.UTC):{_START_TIME}}{_SEPARATOR}{run_name(run_id)}"


def run_of_start(path: str) -> str:
    """The name of the run in a path from `start_path`."""
    return path.rpartition("/")[2].partition(_SEPARATOR)[2]


def started_since(path: str, since: dt.datetime) -> bool:
    """Whether the path from `start_path` is of a run that started at `since` or later."""
    return path >= f"{STARTS}/{since.astimezone(dt.UTC):{_START_TIME}}"


def billed_folder(month: str) -> str:
    """Folder of the sessions that paid for a model in a UTC month, such as `2026-11`."""
    return f"{RUNS}/.billed/{month}"


def billed_path(month: str, run_id: str, session: int) -> str:
    """Empty file that records that a session pays for a model in this month."""
    return f"{billed_folder(month)}/{run_name(run_id)}{_SEPARATOR}{session}"


def session_of_billed(path: str) -> tuple[str, int]:
    """The name of the run and the number of the session in a path from `billed_path`."""
    run, _, session = path.rpartition("/")[2].partition(_SEPARATOR)
    return run, int(session)


def _file_name(model_arn: str) -> str:
    """The end of an ARN in characters that are valid in file names, and a digest of the whole ARN."""
    digest = hashlib.sha256(model_arn.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    resource = model_arn.rpartition(":")[2]
    return f"{re.sub(r'[^A-Za-z0-9._@-]+', '-', resource)[-80:]}-{digest}"


@dataclass(frozen=True, slots=True, order=True)
class PartName:
    """The parts of a published file's name: the `run_name`, the shard, and the first journal segment of its rows."""

    run: str
    shard: int
    first: int

    def __str__(self) -> str:
        return f"{self.run}-{self.shard:05d}-{self.first:05d}.parquet"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """Parse a file name; None for files that were not written by a run, such as those of an export."""
        match = _PART.fullmatch(name)
        return None if match is None else cls(match["run"], int(match["shard"]), int(match["first"]))


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The paths of one run, given by its id or name. Round 0 is the run itself; its retries are numbered from 1."""

    run_id: str

    @property
    def folder(self) -> str:
        """All files of the run except its published parts."""
        return f"{RUNS}/{run_name(self.run_id)}"

    @property
    def record(self) -> str:
        """The run's immutable record."""
        return f"{self.folder}/run.json"

    @property
    def summary(self) -> str:
        """The run's summary, written at the end of each session."""
        return f"{self.folder}/summary.json"

    @property
    def sessions(self) -> str:
        """Folder of the sessions; the newest one holds the run lease."""
        return f"{self.folder}/sessions"

    def session(self, number: int) -> str:
        """The file of one session."""
        return f"{self.sessions}/{number:05d}.json"

    @property
    def totals(self) -> str:
        """The work list's totals, written when it is complete."""
        return f"{self.folder}/worklist.json"

    @property
    def worklist(self) -> str:
        """Folder of the frozen shards."""
        return f"{self.folder}/worklist"

    @property
    def markers(self) -> str:
        """Folder of the markers of published shards."""
        return f"{self.folder}/shards"

    @property
    def rounds(self) -> str:
        """Folder of the retries."""
        return f"{self.folder}/rounds"

    @property
    def journals(self) -> str:
        """Folder of the journals, one per shard."""
        return f"{self.folder}/journal"

    def frozen(self, shard: int) -> str:
        """A frozen shard of the work list."""
        return f"{self.worklist}/{shard:05d}.parquet"

    def journal(self, shard: int) -> str:
        """Folder of a shard's journal, over all rounds."""
        return f"{self.journals}/{shard:05d}"

    def segment(self, shard: int, number: int) -> str:
        """One segment of a journal."""
        return f"{self.journal(shard)}/{number:05d}.arrow"

    def marker(self, shard: int, round_: int) -> str:
        """Marks a shard as complete and published in a round."""
        return f"{self.markers}/{shard:05d}.json" if not round_ else f"{self.markers}/{shard:05d}-r{round_}.json"

    def round(self, number: int) -> str:
        """Which failures a retry scores again."""
        return f"{self.rounds}/{number:03d}.json"

    def round_end(self, number: int) -> str:
        """Marks a retry as ended."""
        return f"{self.rounds}/{number:03d}.done"

    def part(self, table: str, *, model: str, date: dt.date, shard: int, first: int) -> str:
        """The Parquet file in `table` (`results` or `failures`) for the segments from `first` to the next cut."""
        return f"{table}/model={model}/date={date.isoformat()}/{PartName(run_name(self.run_id), shard, first)}"


def segment_number(path: str) -> int:
    """The number in the file name of a segment."""
    return int(path.rpartition("/")[2].removesuffix(".arrow"))


def shard_and_round(path: str) -> tuple[int, int]:
    """The shard and round in the file name of a marker."""
    shard, _, round_ = path.rpartition("/")[2].removesuffix(".json").partition("-r")
    return int(shard), int(round_ or 0)
