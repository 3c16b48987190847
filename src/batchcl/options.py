"""The options of a scoring job, each declared once.

The command line (`cli.options`), the keys of a job file, the environment variables, the table in docs/job-files.md and
`help(Job)` are generated from `JobOptions`; `Job` adds the validation. This module imports nothing heavy, because
`batchcl --help` needs it.
"""

import datetime as dt
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, get_args, get_origin

from batchcl.choices import IfHeld, ServerSideEncryption, SourceKind, Transport
from batchcl.quantities import MAX_INT32, AutoUnits, Units

__all__ = ["JobOptions", "Option", "OptionField", "flag_of", "option_fields", "variable_of"]

LISTS: Final = "Reading lists"
SELECTION: Final = "Selecting images"
SCORING: Final = "Scoring"
LIMITS: Final = "Limits of time, cost and failures"
OUTPUT: Final = "Output"
MODEL: Final = "Starting and stopping the model"
MONITORING: Final = "Monitoring"

MAX_INT64: Final = 2**63 - 1
"""The largest integer that a run's record can hold."""

_FLAG: Final = re.compile(r"--([a-z-]+)")

StrPath: TypeAlias = str | os.PathLike[str]
Duration: TypeAlias = str | dt.timedelta
Deadline: TypeAlias = str | dt.timedelta | dt.time
Moment: TypeAlias = str | dt.date | dt.timedelta
"""A `datetime` is a `date`, too."""


@dataclass(frozen=True, slots=True)
class Option:
    """How an option is shown.

    Attributes:
        help: one line, without the default.
        panel: the heading in `--help`; None for the general options.
        metavar: the placeholder of the value.
        minimum: the smallest number that is valid.
        above: the largest number that is too small.
        maximum: the largest number that is valid.
        is_secret: the value is never shown: not in messages, reprs and records.
    """

    help: str
    panel: str | None = None
    metavar: str | None = None
    minimum: float | None = field(default=None, kw_only=True)
    above: float | None = field(default=None, kw_only=True)
    maximum: float | None = field(default=None, kw_only=True)
    is_secret: bool = field(default=False, kw_only=True)

    def check(self, number: float) -> None:
        """Raise ValueError where `number` is out of bounds."""
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"expected at least {self.minimum}")
        if self.above is not None and number <= self.above:
            raise ValueError(f"expected more than {self.above}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"expected at most {self.maximum}")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class JobOptions:
    """The fields of `Job`: types, defaults and help."""

    sources: Annotated[
        StrPath | Sequence[StrPath],
        Option(
            "s3://bucket/prefix, directory, image, tar archive, list of images (keys, Ground Truth manifest, S3 "
            "Inventory, Batch Operations CSV, JSON Lines, table), glob of lists or archives, or - for a list on stdin.",
            metavar="SOURCE...",
        ),
    ] = ()
    model: Annotated[
        str | None,
        Option("Trained model: PROJECT@VERSION, PROJECT (its newest trained version) or an ARN.", metavar="MODEL"),
    ] = None
    out: Annotated[StrPath, Option("Output root: directory or s3://bucket/prefix.", metavar="ROOT")]
    run_id: Annotated[
        str | None,
        Option("Name of the run, such as the date; generated if omitted. Repeat it to resume.", metavar="ID"),
    ] = None
    if_held: Annotated[
        IfHeld,
        Option("While another process works on the run: fail with exit code 4, or wait for its end or death."),
    ] = IfHeld.FAIL
    profile: Annotated[str | None, Option("AWS profile.", metavar="NAME")] = None
    region: Annotated[str | None, Option("AWS region.", metavar="REGION")] = None

    from_results: Annotated[
        StrPath | None,
        Option("Score the images of earlier results in ROOT instead of SOURCE; see --where.", LISTS, "ROOT"),
    ] = None
    source_kind: Annotated[SourceKind | None, Option("Format of the sources, if it cannot be detected.", LISTS)] = None
    uri_column: Annotated[str | None, Option("Table column with s3://bucket/key.", LISTS, "COLUMN")] = None
    bucket_column: Annotated[
        str | None, Option("Table column with the bucket; needs --key-column.", LISTS, "COLUMN")
    ] = None
    key_column: Annotated[str | None, Option("Table column with the key; needs --bucket-column.", LISTS, "COLUMN")] = (
        None
    )
    uri_field: Annotated[str | None, Option("JSON Lines field with s3://bucket/key.", LISTS, "FIELD")] = None
    attribute: Annotated[str | None, Option("Label attribute of manifests, if a line has several.", LISTS, "NAME")] = (
        None
    )
    all_versions: Annotated[bool, Option("Score old object versions of S3 Inventories, too.", LISTS)] = False
    as_of: Annotated[
        str | dt.date | None, Option("Use the newest S3 Inventory of this day or earlier.", LISTS, "DATE")
    ] = None
    any_extension: Annotated[bool, Option("Include files with extensions other than those of JPEG and PNG.", LISTS)] = (
        False
    )
    skip_bad_lines: Annotated[bool, Option("Skip invalid lines of lists instead of refusing the list.", LISTS)] = False

    include: Annotated[
        str | Sequence[str], Option("Score only images that match a glob; may be repeated.", SELECTION, "GLOB")
    ] = ()
    exclude: Annotated[
        str | Sequence[str], Option("Exclude images that match a glob; may be repeated.", SELECTION, "GLOB")
    ] = ()
    newer_than: Annotated[
        Moment | None,
        Option("Only images modified at or after this time, in UTC, or within this duration.", SELECTION, "24h|DATE"),
    ] = None
    older_than: Annotated[
        Moment | None, Option("Only images modified before this time, in UTC, or longer ago.", SELECTION, "7d|DATE")
    ] = None
    min_size: Annotated[int | str | None, Option("Smallest image, such as 10KB or 4MiB.", SELECTION, "SIZE")] = None
    max_size: Annotated[int | str | None, Option("Largest image, such as 10KB or 4MiB.", SELECTION, "SIZE")] = None
    where: Annotated[
        str | None, Option("SQL condition on the columns of the list, such as 'size > 10000'.", SELECTION, "SQL")
    ] = None
    sample: Annotated[int | str | None, Option("Sample N images or P% of them; deterministic.", SELECTION, "N|P%")] = (
        None
    )
    sample_seed: Annotated[
        int, Option("Seed of the sample.", SELECTION, "N", minimum=-MAX_INT64, maximum=MAX_INT64)
    ] = 0
    limit: Annotated[
        int | None, Option("Score the first N images only.", SELECTION, "N", minimum=1, maximum=MAX_INT64)
    ] = None
    incremental: Annotated[
        bool, Option("Skip object versions that have a result of this model or a permanent failure.", SELECTION)
    ] = False
    retry_failed: Annotated[bool, Option("With --incremental: retry permanent failures.", SELECTION)] = False
    allow_overlap: Annotated[bool, Option("Start even if another run may be scoring the same images.", SELECTION)] = (
        False
    )

    min_confidence: Annotated[
        float | None,
        Option(
            "Lowest confidence to return, 0 to 100 (default: the threshold of each label).",
            SCORING,
            "PERCENT",
            minimum=0,
            maximum=100,
        ),
    ] = None
    max_results: Annotated[
        int | None,
        Option("Return at most N labels per image, by confidence.", SCORING, "N", minimum=0, maximum=MAX_INT32),
    ] = None
    fit: Annotated[
        bool, Option("Shrink or convert images that the service would refuse; boxes remain valid.", SCORING)
    ] = False
    max_tps: Annotated[float | None, Option("Limit of calls per second.", SCORING, "N", above=0)] = None
    max_in_flight: Annotated[
        int, Option("Limit of concurrent calls, which bounds memory.", SCORING, "N", minimum=1, maximum=10_000)
    ] = 256
    transport: Annotated[
        Transport, Option("HTTP client of calls and listings; aioboto3 needs about four times the CPU.", SCORING)
    ] = Transport.AIOHTTP
    cross_region: Annotated[
        bool, Option("Download images from buckets in other regions and send them as bytes.", SCORING)
    ] = False

    max_failures: Annotated[
        int | str | None,
        Option(
            "Stop with exit code 3 at more failed images than this (default: finish, then exit code 3 if any failed).",
            LIMITS,
            "N|P%",
        ),
    ] = None
    deadline: Annotated[
        Deadline | None,
        Option(
            "Stop after this time, such as 6h, or at this time of day in UTC, such as 06:00; the run can be resumed.",
            LIMITS,
            "6h|06:00",
        ),
    ] = None
    grace: Annotated[Duration, Option("Longest time from a signal to the exit.", LIMITS, "DURATION")] = "25s"
    max_cost: Annotated[
        float | None,
        Option(
            "Stop when the model has cost this many dollars in this run, over all its sessions.", LIMITS, "USD", above=0
        ),
    ] = None
    monthly_budget: Annotated[
        float | None,
        Option("Stop when the runs of ROOT have cost this many dollars in this month, in UTC.", LIMITS, "USD", above=0),
    ] = None
    min_images: Annotated[
        int | None,
        Option(
            "Postpone a run with fewer images that need a call; needs --max-wait and --incremental.",
            LIMITS,
            "N",
            minimum=1,
            maximum=MAX_INT64,
        ),
    ] = None
    max_wait: Annotated[
        Duration | None,
        Option(
            "Postpone no run this long after the start of the last one that scored; needs --min-images.",
            LIMITS,
            "DURATION",
        ),
    ] = None

    sse: Annotated[
        ServerSideEncryption | None, Option("Encryption of the output in S3 (default: the bucket's).", OUTPUT)
    ] = None
    sse_kms_key_id: Annotated[
        str | None, Option("ARN, id or alias of the KMS key; needs --sse aws:kms or aws:kms:dsse.", OUTPUT, "KEY")
    ] = None
    single_writer: Annotated[
        bool, Option("Use a store without conditional writes; no other process may write to ROOT.", OUTPUT)
    ] = False
    report: Annotated[
        StrPath | None,
        Option("HTML file to write at the end: a report about the run, as by `batchcl report`.", OUTPUT, "FILE"),
    ] = None
    shard_size: Annotated[int, Option("Images per published file.", OUTPUT, "N", minimum=1, maximum=1_000_000)] = 10_000

    start_model: Annotated[
        int | str | Units | AutoUnits | None,
        Option(
            "Start the model with 1 to 5 inference units if it is not running; stop it at the end. auto: with the "
            "fewest that meet the deadline.",
            MODEL,
            "MIN[:MAX]|auto[:MAX]",
        ),
    ] = None
    keep_model: Annotated[bool, Option("Leave the model running that this run started.", MODEL)] = False
    lease: Annotated[
        Duration | None,
        Option(
            "Let `model reap` stop the model this long after the run's last heartbeat; none: never.", MODEL, "DURATION"
        ),
    ] = "15m"
    scheduled_stop_role: Annotated[
        str | None,
        Option("IAM role with which EventBridge Scheduler stops the model 5 minutes after the deadline.", MODEL, "ARN"),
    ] = None

    metrics_file: Annotated[
        StrPath | None,
        Option(
            "Write metrics every minute and at the end, for the textfile collector of Prometheus' node_exporter.",
            MONITORING,
            "FILE.prom",
        ),
    ] = None
    otel: Annotated[
        bool,
        Option("Send metrics and a trace by OTLP, configured by OpenTelemetry's environment variables.", MONITORING),
    ] = False
    ping: Annotated[
        str | None,
        Option(
            "Ping this URL at the start and, with the exit code, at the end, by Healthchecks' protocol.",
            MONITORING,
            "URL",
            is_secret=True,
        ),
    ] = None
    webhook: Annotated[
        str | None,
        Option("POST a JSON document to this URL at the end and on trouble.", MONITORING, "URL", is_secret=True),
    ] = None
    sns_topic: Annotated[str | None, Option("Publish the same document to this SNS topic.", MONITORING, "ARN")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionField:
    """A field of `JobOptions` with what is derived from its declaration.

    Attributes:
        name: of the field, and the key in a job file.
        option: its help, panel and metavar.
        annotation: its type without `Annotated`.
        value_type: `bool`, `int`, `float`, a `StrEnum`, or `str` for what is read from text.
        is_list: whether it takes several values.
        default: None if there is none.
        is_required: whether it has no default.
    """

    name: str
    option: Option
    annotation: Any
    value_type: type
    is_list: bool
    default: Any
    is_required: bool

    @property
    def description(self) -> str:
        """The help line with the names of fields instead of flags, without the default."""
        return _FLAG.sub(lambda found: f"`{found[1].replace('-', '_')}`", self.option.help)

    @property
    def help(self) -> str:
        """The help line with the default."""
        if self.is_required or self.default in (None, False, (), 0):
            return self.option.help
        return f"{self.option.help.removesuffix('.')} (default: {self.default})."


@cache
def option_fields() -> dict[str, OptionField]:
    """All options in the order of their declaration."""
    return {each.name: _option_field(each) for each in fields(JobOptions)}


def _option_field(declaration: Field[Any]) -> OptionField:
    annotation, option = get_args(declaration.type)
    types = [each for each in (get_args(annotation) or (annotation,)) if each is not type(None)]
    simple = types[0] if len(types) == 1 and issubclass(types[0], bool | int | float | StrEnum) else str
    return OptionField(
        name=declaration.name,
        option=option,
        annotation=annotation,
        value_type=simple,
        is_list=any(get_origin(each) is Sequence for each in types),
        default=None if declaration.default is MISSING else declaration.default,
        is_required=declaration.default is MISSING,
    )


def flag_of(name: str) -> str:
    """The option on the command line: `max_tps` → `--max-tps`, `sources` → `SOURCE`."""
    return "SOURCE" if name == "sources" else f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """The environment variable: `max_tps` → `BATCHCL_MAX_TPS`."""
    return f"BATCHCL_{name.upper()}"
