"""`batchcl retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import (
    AllowOverlap,
    Deadline,
    DeadManRole,
    Emulator,
    EmulatorState,
    Fit,
    Grace,
    Json,
    KeepModel,
    Lease,
    LogFormatOption,
    MaxCost,
    MaxFailures,
    MaxInFlight,
    MaxTps,
    Profile,
    Region,
    Sse,
    SseKmsKeyId,
    StartModel,
    TransportOption,
    flags,
)
from batchcl.cli.output import Root
from batchcl.cli.run import finish
from batchcl.errors import UsageError

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = ["retry"]


def retry(
    root: Root,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that is done.", show_default=False)],
    *,
    code: Annotated[
        list[str] | None, typer.Option("--code", help="Only failures with this error code.", show_default=False)
    ] = None,
    fit: Fit = None,
    max_tps: MaxTps = None,
    max_in_flight: MaxInFlight = None,
    transport: TransportOption = None,
    max_failures: MaxFailures = None,
    deadline: Deadline = None,
    grace: Grace = None,
    max_cost: MaxCost = None,
    allow_overlap: AllowOverlap = None,
    sse: Sse = None,
    sse_kms_key_id: SseKmsKeyId = None,
    start_model: StartModel = None,
    keep_model: KeepModel = None,
    lease: Lease = None,
    dead_man_role: DeadManRole = None,
    emulator: Emulator = None,
    emulator_state: EmulatorState = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
    log_format: LogFormatOption = None,
) -> None:
    """Score the failed images of a run again that may succeed.

    Images that succeed now get a row in results/; batchcl's commands no longer show their failure. Failures that would
    repeat are reported and left as they are: with --fit, those are scored that it may help, skipped images included.
    Model, confidence and everything else that decides about the rows stay those of the run. The next retry continues
    one that was interrupted. Nothing to score ends with exit code 0, and starts no model.

    Examples:

      batchcl failures out --run 2026-11-21

      batchcl retry out 2026-11-21 --start-model 1

      batchcl retry out 2026-11-21 --code InternalServerError --code Timeout

      batchcl retry out 2026-11-21 --fit
    """
    from batchcl.cli.reporter import reporting
    from batchcl.cli.signals import GRACE_S, run_until_signalled
    from batchcl.job import grace_seconds
    from batchcl.scoring.retry import retry as score_again
    from batchcl.stop_signal import StopSignal

    changes = flags(
        fit=fit,
        max_tps=max_tps,
        max_in_flight=max_in_flight,
        transport=transport,
        max_failures=max_failures,
        deadline=deadline,
        grace=grace,
        max_cost=max_cost,
        allow_overlap=allow_overlap,
        sse=sse,
        sse_kms_key_id=sse_kms_key_id,
        start_model=start_model,
        keep_model=keep_model,
        lease=lease,
        dead_man_role=dead_man_role,
        emulator=emulator,
        emulator_state=emulator_state,
        profile=profile,
        region=region,
    )

    try:
        grace_s = GRACE_S if grace is None else grace_seconds(grace)
    except UsageError as error:
        raise UsageError(f"--grace {grace}: {error}") from error

    async def work(stopper: StopSignal) -> Summary:
        async with reporting(log_format) as observer:
            return await score_again(
                root, run, codes=code or (), changes=changes, observer=observer, stop_signal=stopper
            )

    finish(lambda: run_until_signalled(work, grace_s=grace_s), json=json, log_format=log_format)
