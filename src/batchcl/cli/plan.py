"""`batchcl plan`."""

from __future__ import annotations

import sys
from functools import partial

import orjson

from batchcl.cli.options import (
    Config,
    Emulator,
    EmulatorState,
    Exclude,
    Include,
    Json,
    Kind,
    Limit,
    ModelArnOption,
    Profile,
    Region,
    SkipBadLines,
    Sources,
    flags,
)
from batchcl.cli.talk import LogFormat, talking

__all__ = ["plan"]


def plan(
    sources: Sources = None,
    *,
    config: Config = None,
    model: ModelArnOption = None,
    include: Include = None,
    exclude: Exclude = None,
    limit: Limit = None,
    source_kind: Kind = None,
    skip_bad_lines: SkipBadLines = None,
    emulator: Emulator = None,
    emulator_state: EmulatorState = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Tell what `run` would do: images, bytes, skips, and hours and dollars at 1 to 5 inference units.

    Lists are read to their end; no call is made to the model. The hours assume 2.8 images a second and unit, which is
    what AWS's pricing example implies: a real model may be twice as fast or slow.

    Examples:

      batchcl plan s3://photos/2026/ --model ARN

      batchcl plan --config configs/nightly.toml --json
    """  # noqa: D412 - Typer shows the examples as they stand
    import anyio  # noqa: PLC0415 - `batchcl --help` goes without
    import polars as pl  # noqa: PLC0415

    from batchcl.cli.output import emit, emit_object  # noqa: PLC0415
    from batchcl.job import load_job  # noqa: PLC0415
    from batchcl.scoring.plan import Plan  # noqa: PLC0415
    from batchcl.scoring.plan import plan as planned  # noqa: PLC0415

    job = load_job(
        config,
        {"out": "unused"}
        | flags(
            sources=sources,
            model=model,
            include=include,
            exclude=exclude,
            limit=limit,
            source_kind=source_kind,
            skip_bad_lines=skip_bad_lines,
            emulator=emulator,
            emulator_state=emulator_state,
            profile=profile,
            region=region,
        ),
    )

    async def work() -> Plan:
        async with talking(LogFormat.TEXT) as observer:
            return await planned(job, observer=observer)

    found = anyio.run(partial(work))
    if json:
        sys.stdout.write(orjson.dumps(found.as_dict()).decode() + "\n")
        return
    shown = {
        "model": found.model,
        "images": found.images,
        "calls": found.calls,
        "skipped": sum(found.skipped.values()),
        **{f"  {code}": count for code, count in found.skipped.items()},
        "bytes": found.bytes,
        "size not known": found.unknown_bytes,
        "bad lines left out": found.bad_lines,
        "named more than once": found.repeated,
    }
    emit_object(shown, title="Plan")
    sys.stdout.write("\n")
    rows = [
        {
            "units": each.units,
            "images/s": each.images_per_second,
            "hours": each.hours,
            "dollars": each.dollars,
        }
        for each in found.estimates
    ]
    emit(pl.DataFrame(rows), title="At 2.8 images/s and unit, $4 per unit and hour; start-up not counted")
