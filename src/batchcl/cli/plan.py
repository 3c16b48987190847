"""`batchcl plan`."""

from __future__ import annotations

import sys
from typing import Any

import orjson

from batchcl.cli.local_emulator import Emulator, EmulatorState, default_model, emulated
from batchcl.cli.options import Config, Json, LogFormatOption, flags, takes_job_options

__all__ = ["plan"]


@takes_job_options()
def plan(
    *,
    config: Config = None,
    json: Json = False,
    log_format: LogFormatOption = None,
    emulator: Emulator = False,
    emulator_state: EmulatorState = None,
    **options: Any,
) -> None:
    """Show what `run` would do: images, bytes, skips, and hours and dollars at 1 to 5 inference units.

    Takes the arguments of `run`. Reads the lists completely, and does not call the model. The hours assume 2.8 images
    per second and inference unit, as AWS's pricing example implies; a real model may be twice as fast or slow.

    Examples:

      batchcl plan s3://photos/2026/ --model ARN

      batchcl plan --config configs/nightly.toml --json
    """
    import anyio
    import polars as pl

    from batchcl.cli.output import emit, emit_object
    from batchcl.cli.reporter import reporting
    from batchcl.job import load_job
    from batchcl.scoring.plan import Plan
    from batchcl.scoring.plan import plan as planned
    from batchcl.sources.filters import describe_filters

    job = load_job(config, flags(options), defaults={"out": "unused"} | default_model(emulator=emulator))

    async def work() -> Plan:
        async with (
            reporting(log_format) as observer,
            emulated(job, emulator=emulator, state=emulator_state) as (planned_job, aws),
        ):
            return await planned(planned_job, observer=observer, aws=aws)

    found = anyio.run(work)
    if json:
        sys.stdout.write(orjson.dumps(found.as_dict()).decode() + "\n")
        return
    shown = {
        "model": found.model,
        "images": found.planned,
        "calls": found.calls,
        "skipped": sum(found.skipped.values()),
        **{f"  {code}": count for code, count in found.skipped.items()},
        "bytes": found.bytes,
        "size unknown": found.unknown_bytes,
        "bad lines": found.bad_lines,
        "duplicates": found.duplicates,
        "already scored": found.already_scored,
        "failed permanently before": found.already_failed,
        "filtered": found.filtered,
        **{f"  {describe_filters(name)}": count for name, count in found.filtered_by.items()},
        **found.ignored,
    }
    if found.lines is not None:
        shown |= {"beyond the limit": found.unread, "lines read": found.lines}
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
    emit(pl.DataFrame(rows), title="At 2.8 images/s per unit and $4 per unit-hour, without start-up")
