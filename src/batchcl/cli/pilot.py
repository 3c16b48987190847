"""`batchcl pilot`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from batchcl.cli.local_emulator import Emulator, EmulatorState, default_model, emulated, emulator_options
from batchcl.cli.options import Config, Json, LogFormatOption, flags, takes_job_options
from batchcl.cli.run import report_end
from batchcl.cli.service import Yes, confirm
from batchcl.cli.streams import write_line
from batchcl.errors import BatchclError
from batchcl.quantities import Units, period_text

if TYPE_CHECKING:
    from batchcl.scoring.pilot import Pilot, PilotProposal, PilotRate
    from batchcl.stop_signal import StopSignal

__all__ = ["pilot"]


@takes_job_options()
def pilot(
    *,
    images: Annotated[
        int, typer.Option("--images", metavar="N", help="Size of the sample (default: 300).", show_default=False)
    ] = 300,
    yes: Yes = False,
    config: Config = None,
    json: Json = False,
    log_format: LogFormatOption = None,
    emulator: Emulator = False,
    emulator_state: EmulatorState = None,
    **options: Any,
) -> None:
    """Score a random sample of the images, and estimate time and cost of the rest from its measured rate.

    Takes the arguments of `run`, and asks before it spends. The sample is a part of the run: the same arguments with
    `run` score the rest, and no image is scored twice. A model that the pilot started is stopped. Repeat the command to
    resume, or to see the figures again without a call.

    Examples:

      batchcl pilot s3://photos/2026/ --model ARN --out s3://tables/labels --run-id 2026 --start-model 1

      batchcl pilot --config configs/nightly.toml --run-id 2026 --images 1000 --yes --json
    """
    import anyio

    from batchcl.aws.session import Aws, AwsSettings
    from batchcl.cli.reporter import reporting
    from batchcl.cli.signals import run_until_signalled
    from batchcl.events import SilentObserver
    from batchcl.job import load_job
    from batchcl.scoring.pilot import PilotProposal, propose
    from batchcl.scoring.pilot import pilot as measure

    job = load_job(config, flags(options), defaults=default_model(emulator=emulator))

    async def read() -> Pilot | PilotProposal:
        aws = Aws(AwsSettings(profile=job.profile, region=job.region))
        return await propose(job, images=images, aws=aws, observer=SilentObserver())

    if not emulator:
        proposal = anyio.run(read)
        if isinstance(proposal, PilotProposal) and proposal.images:
            confirm(proposal.text, yes=yes, refused="nothing was scored")

    async def work(stop_signal: StopSignal) -> Pilot:
        async with (
            reporting(log_format) as observer,
            emulated(job, emulator=emulator, state=emulator_state) as (scored, aws),
        ):
            return await measure(scored, images=images, observer=observer, stop_signal=stop_signal, aws=aws)

    try:
        found = run_until_signalled(work, grace_s=job.grace_s)
    except BatchclError as error:
        if error.summary is not None:
            more = emulator_options(emulator=emulator, state=emulator_state)
            report_end(error.summary, json=json, log_format=log_format, options=more)
        raise
    if json:
        sys.stdout.write(orjson.dumps(found.as_dict(), option=orjson.OPT_UTC_Z).decode() + "\n")
    else:
        _show(found)
    if not found.is_done:
        write_line(f"the run continues with the same arguments and `batchcl run` --run-id {found.run_id}")


def _show(found: Pilot) -> None:
    import polars as pl

    from batchcl.cli.output import emit, emit_object
    from batchcl.cli.plan import estimate_cells

    shown: dict[str, Any] = {
        "run": found.run_id,
        "model": found.model,
        "images": found.planned,
        "scored": found.scored,
        "failed": found.failed,
        "left": found.left,
        "calls left": found.calls_left,
        "cost so far": "not counted" if found.cost_usd is None else f"${found.cost_usd:.2f}",
    }
    if found.rate is not None:
        shown |= _rate_in_words(found.rate)
    emit_object(shown, title="Pilot")
    if not found.estimates:
        return
    sys.stdout.write("\n")
    rows = [
        {"units": f"{each.units} (requested)" if each.is_requested else str(each.units)}
        | estimate_cells(each, is_free=found.is_free)
        | {"ends at": f"{found.ends_at(each):%Y-%m-%dT%H:%MZ}"}
        for each in found.estimates
    ]
    start = period_text(found.start_s) + ("" if found.starts else ", assumed")
    emit(pl.DataFrame(rows), title=f"The rest of the run, if it is continued now; start-up of the model: {start}")


def _rate_in_words(rate: PilotRate) -> dict[str, str]:
    words = {
        "measured": f"{rate.images:,} images in {period_text(rate.seconds)} with {_units(rate)}",
        "images/s": f"{rate.tps:.2f}",
        "95 % interval": f"{rate.tps_low:.2f} to {rate.tps_high:.2f} (Poisson)",
    }
    if (unit := rate.per_unit) is not None:
        words["images/s per unit"] = f"{unit.typical:.2f} ({unit.low:.2f} to {unit.high:.2f})"
    if rate.is_lower_bound:
        words["lower bound"] = "the model may be faster: the rate was still rising; use more --images"
    return words


def _units(rate: PilotRate) -> str:
    return "an unknown number of units" if rate.units is None else Units.parse(rate.units).words
