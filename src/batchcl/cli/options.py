"""The options of `run` and `plan`, which describe a job, and how they become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from batchcl.aws.transport import Transport
from batchcl.sources.recognise import SourceKind

__all__ = [
    "AllVersions",
    "AllowHttpSources",
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
    "Include",
    "Incremental",
    "Json",
    "KeepModel",
    "KeyColumn",
    "Kind",
    "Lease",
    "Limit",
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
    "RunId",
    "Sample",
    "SampleSeed",
    "ShardSize",
    "SingleWriter",
    "SkipBadLines",
    "Sources",
    "StartModel",
    "TransportOption",
    "UriColumn",
    "UriField",
    "Where",
    "flags",
]

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
    typer.Option(
        "--from-results",
        metavar="ROOT",
        help="Instead of SOURCE: what earlier runs scored or failed on; see --where.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="Job file (TOML); flags win over it.", show_default=False)
]
ModelArnOption = Annotated[
    str | None, typer.Option("--model", metavar="ARN", help="The trained model's ARN.", show_default=False)
]
Out = Annotated[
    str | None, typer.Option("--out", metavar="ROOT", help="Directory or s3://bucket/prefix.", show_default=False)
]
RunId = Annotated[
    str | None, typer.Option("--run-id", help="Names the run, e.g. the date; made when left out.", show_default=False)
]
MinConfidence = Annotated[
    float | None,
    typer.Option("--min-confidence", help="0-100; left out, each label's own threshold decides.", show_default=False),
]
MaxResults = Annotated[int | None, typer.Option("--max-results", help="Labels an image.", show_default=False)]
Fit = Annotated[
    bool | None,
    typer.Option("--fit", help="Shrink or convert what the service would refuse; boxes stay.", show_default=False),
]
MaxTps = Annotated[
    float | None, typer.Option("--max-tps", help="Never more calls a second than this.", show_default=False)
]
MaxInFlight = Annotated[
    int | None, typer.Option("--max-in-flight", help="Calls at once (256): a guard for memory.", show_default=False)
]
TransportOption = Annotated[
    Transport | None,
    typer.Option(
        "--transport", help="How calls and listings go (wire); the SDK takes many times the CPU.", show_default=False
    ),
]
Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="GLOB", help="Take these only.", show_default=False)
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Leave these out.", show_default=False)
]
NewerThan = Annotated[
    str | None,
    typer.Option("--newer-than", metavar="24h|DATE", help="Modified since then; UTC.", show_default=False),
]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", metavar="7d|DATE", help="Modified before; UTC.", show_default=False)
]
MinSize = Annotated[
    str | None, typer.Option("--min-size", metavar="SIZE", help="At least so large: 10KB, 4MiB.", show_default=False)
]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="At most so large.", show_default=False)
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", metavar="SQL", help="A condition on the list's columns: 'size > 10000'.", show_default=False
    ),
]
Sample = Annotated[
    str | None,
    typer.Option(
        "--sample", metavar="N|P%", help="So many of them, or such a share; ever the same.", show_default=False
    ),
]
SampleSeed = Annotated[
    int | None, typer.Option("--sample-seed", metavar="N", help="Another sample (0).", show_default=False)
]
Limit = Annotated[int | None, typer.Option("--limit", help="The first N images only.", show_default=False)]
Kind = Annotated[
    SourceKind | None,
    typer.Option("--source-kind", help="What the sources are, if their content doesn't tell.", show_default=False),
]
UriColumn = Annotated[
    str | None, typer.Option("--uri-column", help="Of a table: it holds s3://bucket/key.", show_default=False)
]
BucketColumn = Annotated[
    str | None, typer.Option("--bucket-column", help="Of a table, with --key-column.", show_default=False)
]
KeyColumn = Annotated[
    str | None, typer.Option("--key-column", help="Of a table, with --bucket-column.", show_default=False)
]
UriField = Annotated[
    str | None, typer.Option("--uri-field", help="Of JSON Lines: it holds s3://bucket/key.", show_default=False)
]
Attribute = Annotated[
    str | None, typer.Option("--attribute", help="Of a manifest: the labels that count.", show_default=False)
]
AllVersions = Annotated[
    bool | None,
    typer.Option("--all-versions", help="Of an S3 Inventory: older versions too.", show_default=False),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", metavar="DATE", help="Of S3 Inventories: the newest of this day or earlier.", show_default=False
    ),
]
SkipBadLines = Annotated[
    bool | None, typer.Option("--skip-bad-lines", help="Leave lines out that name no image.", show_default=False)
]
MaxFailures = Annotated[
    str | None,
    typer.Option(
        "--max-failures", metavar="N|P%", help="More than this ends with exit code 3 (0).", show_default=False
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="6h", help="End, resumably, after so much time.", show_default=False),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        "--max-cost", metavar="USD", help="End, resumably, when the model has cost so much.", show_default=False
    ),
]
Incremental = Annotated[
    bool | None,
    typer.Option("--incremental", help="Leave out images whose version has a result already.", show_default=False),
]
AllowHttpSources = Annotated[
    bool | None,
    typer.Option("--allow-http-sources", help="Lists may name images on the web, sent as bytes.", show_default=False),
]
CrossRegion = Annotated[
    bool | None,
    typer.Option(
        "--cross-region", help="Fetch images from other regions' buckets and send them as bytes.", show_default=False
    ),
]
SingleWriter = Annotated[
    bool | None,
    typer.Option(
        "--single-writer", help="Nobody else writes to ROOT: for stores without conditional writes.", show_default=False
    ),
]
ShardSize = Annotated[
    int | None, typer.Option("--shard-size", help="Images a published file (10,000).", show_default=False)
]
StartModel = Annotated[
    str | None,
    typer.Option(
        "--start-model",
        metavar="MIN[:MAX]",
        help="Start the model with these inference units if it isn't running, and stop it at the end.",
        show_default=False,
    ),
]
KeepModel = Annotated[
    bool | None, typer.Option("--keep-model", help="Leave a started model running.", show_default=False)
]
Lease = Annotated[
    str | None,
    typer.Option(
        "--lease",
        metavar="15m",
        help="Let `model reap` stop a started model so long after this run's last sign of life; none: never.",
        show_default=False,
    ),
]
DeadManRole = Annotated[
    str | None,
    typer.Option(
        "--dead-man-role",
        metavar="ARN",
        help="Let EventBridge Scheduler stop a started model by this role, 5 minutes after the deadline.",
        show_default=False,
    ),
]
Emulator = Annotated[
    bool | None,
    typer.Option("--emulator", help="Score with the local emulator, offline and for nothing.", show_default=False),
]
EmulatorState = Annotated[
    str | None,
    typer.Option("--emulator-state", metavar="DIR", help="The emulator's projects and models.", show_default=False),
]
Profile = Annotated[str | None, typer.Option("--profile", help="AWS profile.", show_default=False)]
Region = Annotated[str | None, typer.Option("--region", help="AWS region.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout at the end.")]


def flags(**given: Any) -> dict[str, Any]:
    """What was given on the command line, under the names of `Job`'s fields."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None and value != []
    }
