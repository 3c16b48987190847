"""`batchcl plan`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from batchcl.cli.local_emulator import Emulator, EmulatorState, default_model, emulated
from batchcl.cli.options import Config, Json, LogFormatOption, flags, takes_job_options

if TYPE_CHECKING:
    from batchcl.job import Job
    from batchcl.scoring.estimates import Estimate
    from batchcl.scoring.plan import Plan

__all__ = ["estimate_cells", "plan"]


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
    """Show what `run` would do: images, bytes, skips, and time and dollars at 1 to 5 inference units.

    Takes the arguments of `run`. Reads the lists completely, and does not call the model. Rates and start-up time are
    those that earlier runs into --out have measured for the model. If there are none, 2.8 images per second and unit
    are assumed, as AWS's pricing example implies; a real model may be twice as fast or slow.

    Examples:

      batchcl plan s3://photos/2026/ --model ARN --out s3://tables/labels

      batchcl plan --config configs/nightly.toml --deadline 06:00 --start-model auto

      batchcl plan --config configs/nightly.toml --json
    """
    import anyio

    from batchcl.cli.output import emit_object
    from batchcl.cli.reporter import reporting
    from batchcl.job import load_job
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
        sys.stdout.write(orjson.dumps(found.as_dict(), option=orjson.OPT_UTC_Z).decode() + "\n")
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
    if found.identical:
        shown["identical content"] = _identical(found)
    if found.postponed is not None:
        shown["would be postponed"] = found.postponed
    emit_object(shown, title="Plan")
    sys.stdout.write("\n")
    _emit_estimates(found)
    if found.deadline is not None:
        sys.stdout.write("".join(f"{line}\n" for line in ["", *_deadline_lines(job, found)]))


def _identical(found: Plan) -> str:
    from batchcl.scoring.budget import usd

    cost = "" if found.is_free else f", and scoring these costs {usd(found.repeated_dollars)}"
    return (
        f"{found.identical:,} share ETag and size with another one; {found.repeated:,} of them repeat a content{cost}"
    )


def _emit_estimates(found: Plan) -> None:
    """Write the table of estimates; rows that differ only in the number of units are merged."""
    import polars as pl

    from batchcl.cli.output import emit
    from batchcl.prices import unit_hour_usd
    from batchcl.quantities import period_text

    rows: list[tuple[list[Estimate], dict[str, str]]] = []
    for each in found.estimates:
        cells = estimate_cells(each, is_free=found.is_free)
        if rows and rows[-1][1] == cells and not (each.is_requested or rows[-1][0][-1].is_requested):
            rows[-1][0].append(each)
        else:
            rows.append(([each], cells))
    table = [{"units": _units(merged)} | cells for merged, cells in rows]
    starts = "assumed" if not found.starts else f"measured in {found.starts} start{'' if found.starts == 1 else 's'}"
    start = _with_range(period_text, found.start_s, found.start_s_low, found.start_s_high)
    price = "free, as the model is emulated" if found.is_free else f"at ${unit_hour_usd():g} per unit-hour"
    title = f"Time in RUNNING and cost, {price}; start-up before it, {starts} and not billed: {start}"
    emit(pl.DataFrame(table), title=title)


def _units(merged: Sequence[Estimate]) -> str:
    first, last = merged[0], merged[-1]
    text = str(first.units) if first.max_units is None else f"{first.units}:{first.max_units}"
    if first is not last:
        return f"{text}-{last.units}"
    return f"{text} (requested)" if first.is_requested else text


def estimate_cells(each: Estimate, *, is_free: bool) -> dict[str, str]:
    """Rate, time and cost of an estimate, with their ranges."""
    from batchcl.quantities import period_text
    from batchcl.scoring.budget import usd
    from batchcl.scoring.estimates import Basis

    basis = f"scaled from {each.measured_units}" if each.basis is Basis.SCALED else str(each.basis)
    cells = {
        "images/s": _with_range(
            "{:.1f}".format, each.images_per_second, each.images_per_second_low, each.images_per_second_high
        ),
        "rate": f"{basis}, limited" if each.is_limited else basis,
        "RUNNING": _with_range(period_text, each.billed_s, each.billed_s_low, each.billed_s_high),
    }
    if not is_free:
        cells["cost"] = _with_range(usd, each.dollars, each.dollars_low, each.dollars_high)
    return cells


def _with_range(text: Callable[[float], str], typical: float, low: float, high: float) -> str:
    ends = text(low), text(high)
    return text(typical) if ends[0] == ends[1] else f"{text(typical)} ({' to '.join(ends)})"


def _deadline_lines(job: Job, found: Plan) -> list[str]:
    """What to do about the deadline, with the restart that another number of units takes."""
    from batchcl.quantities import AutoUnits, Units, period_text, pluralize
    from batchcl.scoring.budget import usd

    plan = found.deadline
    assert plan is not None
    with_units = f"with {pluralize(plan.units, 'inference unit')}"
    cost = "" if found.is_free else f", for about {usd(plan.dollars)}"
    needs = f"it needs {period_text(plan.needed_s)} at the slow end, start-up and a margin of 10 % included"
    if plan.is_met:
        start = f", if started by {plan.start_by:%Y-%m-%dT%H:%MZ}" if plan.start_by is not None else ""
        lines = [f"Deadline {job.deadline}: met {with_units}{start}{cost}; {needs}"]
    else:
        late = period_text(plan.needed_s - plan.left_s)
        lines = [f"Deadline {job.deadline}: may be missed by {late} even {with_units}{cost}; {needs}"]
    units = job.units
    if isinstance(units, AutoUnits):
        lines.append(f"--start-model {units} starts the model {with_units}")
    elif plan.is_met_as_requested is False and isinstance(units, Units) and units != Units(plan.units):
        lines.append(f"--start-model {units} may miss it; use --start-model {plan.units}")
    if plan.restart_images is not None:
        restart = period_text(plan.restart_s)
        before = units if isinstance(units, Units) else Units(1)
        lines.append(
            f"Changing from {before} to {plan.units} units takes a stop and a start, about {restart} without calls; "
            f"it pays off from {plan.restart_images:,} images left"
        )
    return lines
