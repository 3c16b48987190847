"""The options of `run` and `plan`, which describe a job, and how they become one."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from batchcl.choices import ServerSideEncryption, SourceKind, Transport

__all__ = [
    "AllVersions",
    "AllowOverlap",
    "AnyName",
    "AsOf",
    "Attribute",
    "BucketColumn",
    "Config",
    "CrossRegion",
    "DeadManRole",
    "Deadline",
    "Emulator",
    "EmulatorState",
    "Exclude",
    "Fit",
    "FromResults",
    "Grace",
    "Include",
    "Incremental",
    "Json",
    "KeepModel",
    "KeyColumn",
    "Kind",
    "Lease",
    "Limit",
    "LogFormat",
    "LogFormatOption",
    "MaxCost",
    "MaxFailures",
    "MaxInFlight",
    "MaxResults",
    "MaxSize",
    "MaxTps",
    "MinConfidence",
    "MinSize",
    "ModelArnOption",
    "NewerThan",
    "OlderThan",
    "Out",
    "Profile",
    "Region",
    "RetryFailed",
    "RunId",
    "Sample",
    "SampleSeed",
    "ShardSize",
    "SingleWriter",
    "SkipBadLines",
    "Sources",
    "Sse",
    "SseKmsKeyId",
    "StartModel",
    "TransportOption",
    "UriColumn",
    "UriField",
    "Where",
    "flags",
]

_option = partial(typer.Option, show_default=False)
_lists = partial(_option, rich_help_panel="Reading lists")
_choice = partial(_option, rich_help_panel="Choosing images")
_scoring = partial(_option, rich_help_panel="Scoring")
_bounds = partial(_option, rich_help_panel="Bounds of time, money and failures")
_running = partial(_option, rich_help_panel="Starting and stopping the model")
_output = partial(_option, rich_help_panel="Output")
_local = partial(_option, rich_help_panel="Offline")

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="s3://bucket/prefix, a directory, an image, a tar archive, a list of images (keys, Ground Truth manifest, "
        "S3 Inventory, Batch Operations CSV, JSON Lines, table), a glob of such, or - for a list on stdin.",
        show_default=False,
    ),
]
FromResults = Annotated[
    str | None,
    _lists(
        "--from-results", metavar="ROOT", help="Instead of SOURCE: what earlier runs scored or failed on; see --where."
    ),
]
Config = Annotated[Path | None, _option("--config", help="Job file (TOML); flags win over it.")]
ModelArnOption = Annotated[
    str | None,
    _option("--model", metavar="MODEL", help="PROJECT@VERSION, PROJECT (its newest trained version) or an ARN."),
]
Out = Annotated[str | None, _option("--out", metavar="ROOT", help="Directory or s3://bucket/prefix.")]
RunId = Annotated[str | None, _option("--run-id", help="Names the run, e.g. the date; made when left out.")]
MinConfidence = Annotated[
    float | None,
    _scoring("--min-confidence", help="0-100; left out, each label's own threshold decides."),
]
MaxResults = Annotated[int | None, _scoring("--max-results", help="Labels an image.")]
Fit = Annotated[
    bool | None,
    _scoring("--fit", help="Shrink or convert what the service would refuse; boxes stay."),
]
MaxTps = Annotated[float | None, _scoring("--max-tps", help="Never more calls a second than this.")]
MaxInFlight = Annotated[int | None, _scoring("--max-in-flight", help="Calls at once (256): a guard for memory.")]
TransportOption = Annotated[
    Transport | None,
    _scoring("--transport", help="How calls and listings go (wire); the SDK takes about four times the CPU."),
]
Include = Annotated[list[str] | None, _choice("--include", metavar="GLOB", help="Take these only.")]
Exclude = Annotated[list[str] | None, _choice("--exclude", metavar="GLOB", help="Leave these out.")]
NewerThan = Annotated[
    str | None,
    _choice("--newer-than", metavar="24h|DATE", help="Modified since then; UTC."),
]
OlderThan = Annotated[str | None, _choice("--older-than", metavar="7d|DATE", help="Modified before; UTC.")]
MinSize = Annotated[str | None, _choice("--min-size", metavar="SIZE", help="At least so large: 10KB, 4MiB.")]
MaxSize = Annotated[str | None, _choice("--max-size", metavar="SIZE", help="At most so large.")]
Where = Annotated[
    str | None,
    _choice("--where", metavar="SQL", help="A condition on the list's columns: 'size > 10000'."),
]
Sample = Annotated[
    str | None,
    _choice("--sample", metavar="N|P%", help="So many of them, or such a share; ever the same."),
]
SampleSeed = Annotated[int | None, _choice("--sample-seed", metavar="N", help="Another sample (0).")]
Limit = Annotated[int | None, _choice("--limit", help="The first N images only.")]
Kind = Annotated[
    SourceKind | None,
    _lists("--source-kind", help="What the sources are, if their content doesn't tell."),
]
UriColumn = Annotated[str | None, _lists("--uri-column", help="Of a table: it holds s3://bucket/key.")]
BucketColumn = Annotated[str | None, _lists("--bucket-column", help="Of a table, with --key-column.")]
KeyColumn = Annotated[str | None, _lists("--key-column", help="Of a table, with --bucket-column.")]
UriField = Annotated[str | None, _lists("--uri-field", help="Of JSON Lines: it holds s3://bucket/key.")]
Attribute = Annotated[str | None, _lists("--attribute", help="Of a manifest: the labels that count.")]
AllVersions = Annotated[
    bool | None,
    _lists("--all-versions", help="Of an S3 Inventory: older versions too."),
]
AsOf = Annotated[
    str | None,
    _lists("--as-of", metavar="DATE", help="Of S3 Inventories: the newest of this day or earlier."),
]
AnyName = Annotated[
    bool | None,
    _lists("--any-name", help="Of a prefix, directory, archive or inventory: names without .jpg or .png too."),
]
SkipBadLines = Annotated[bool | None, _lists("--skip-bad-lines", help="Leave lines out that name no image.")]
MaxFailures = Annotated[
    str | None,
    _bounds("--max-failures", metavar="N|P%", help="More than this ends with exit code 3 (0)."),
]
Deadline = Annotated[
    str | None,
    _bounds("--deadline", metavar="6h", help="End, resumably, after so much time."),
]
Grace = Annotated[
    str | None,
    _bounds("--grace", metavar="25s", help="From a signal to the end of the process, at most."),
]
MaxCost = Annotated[
    float | None,
    _bounds("--max-cost", metavar="USD", help="End, resumably, when the model has cost so much."),
]
Incremental = Annotated[
    bool | None,
    _choice("--incremental", help="Leave out images whose version has a result or a permanent failure already."),
]
RetryFailed = Annotated[
    bool | None,
    _choice("--retry-failed", help="With --incremental: try permanent failures again."),
]
AllowOverlap = Annotated[
    bool | None,
    _choice("--allow-overlap", help="Start even if another run may be scoring the same images."),
]
CrossRegion = Annotated[
    bool | None,
    _scoring("--cross-region", help="Fetch images from other regions' buckets and send them as bytes."),
]
SingleWriter = Annotated[
    bool | None,
    _output("--single-writer", help="Nobody else writes to ROOT: for stores without conditional writes."),
]
Sse = Annotated[
    ServerSideEncryption | None,
    _output("--sse", help="Encryption of what is written to ROOT in S3 (the bucket's own)."),
]
SseKmsKeyId = Annotated[
    str | None,
    _output("--sse-kms-key-id", metavar="KEY", help="With --sse aws:kms: ARN, id or alias of the KMS key."),
]
ShardSize = Annotated[int | None, _output("--shard-size", help="Images a published file (10,000).")]
StartModel = Annotated[
    str | None,
    _running(
        "--start-model",
        metavar="MIN[:MAX]",
        help="Start the model with these inference units if it isn't running, and stop it at the end.",
    ),
]
KeepModel = Annotated[bool | None, _running("--keep-model", help="Leave a started model running.")]
Lease = Annotated[
    str | None,
    _running(
        "--lease",
        metavar="15m",
        help="Let `model reap` stop a started model so long after this run's last sign of life; none: never.",
    ),
]
DeadManRole = Annotated[
    str | None,
    _running(
        "--dead-man-role",
        metavar="ARN",
        help="Let EventBridge Scheduler stop a started model by this role, 5 minutes after the deadline.",
    ),
]
Emulator = Annotated[
    bool | None,
    _local("--emulator", help="Score with the local emulator, offline and for nothing."),
]
EmulatorState = Annotated[
    str | None,
    _local("--emulator-state", metavar="DIR", help="The emulator's projects and models."),
]
Profile = Annotated[str | None, _option("--profile", help="AWS profile.")]
Region = Annotated[str | None, _option("--region", help="AWS region.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout at the end.")]


class LogFormat(StrEnum):
    """How log lines look where stderr is no terminal."""

    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat | None,
    _option("--log-format", help="Log lines instead of the live line; JSON for log collectors."),
]


def flags(**given: Any) -> dict[str, Any]:
    """What was given on the command line, under the names of `Job`'s fields."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None and value != []
    }
