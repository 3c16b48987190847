"""`batchcl retry`."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from batchcl.cli.local_emulator import Emulator, EmulatorState, check_emulator, emulated_session, emulator_options
from batchcl.cli.options import Json, LogFormatOption, flags, takes_job_options
from batchcl.cli.output import Root
from batchcl.cli.run import finish
from batchcl.errors import UsageError

if TYPE_CHECKING:
    from batchcl.summary import Summary

__all__ = ["retry"]

_OPTIONS: Final = (
    "fit",
    "max_tps",
    "max_in_flight",
    "transport",
    "max_failures",
    "deadline",
    "grace",
    "max_cost",
    "monthly_budget",
    "allow_overlap",
    "if_held",
    "sse",
    "sse_kms_key_id",
    "start_model",
    "keep_model",
    "lease",
    "scheduled_stop_role",
    "metrics_file",
    "otel",
    "ping",
    "webhook",
    "sns_topic",
    "profile",
    "region",
)
"""The options that do not change what the rows of a run contain."""


@takes_job_options(*_OPTIONS)
def retry(
    root: Root,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id of a completed run.", show_default=False)],
    *,
    code: Annotated[
        list[str] | None,
        typer.Option("--code", help="Retry only failures with this error code; may be repeated.", show_default=False),
    ] = None,
    json: Json = False,
    log_format: LogFormatOption = None,
    emulator: Emulator = False,
    emulator_state: EmulatorState = None,
    **options: Any,
) -> None:
    """Retry the failed images of a run that may succeed.

    Images that succeed get a row in results/, and commands no longer show their failure. Permanent failures are
    reported and not retried; --fit retries those that it can fix, skipped images included. The model, confidence and
    all else that determines the rows are those of the run. Repeat the command to resume. With nothing to retry it
    exits with code 0 and starts no model.

    Examples:

      batchcl failures out --run 2026-11-21

      batchcl retry out 2026-11-21 --start-model 1

      batchcl retry out 2026-11-21 --code InternalServerError --code Timeout

      batchcl retry out 2026-11-21 --fit
    """
    from batchcl.aws.session import Aws, AwsSettings
    from batchcl.cli.reporter import reporting
    from batchcl.cli.signals import GRACE_S, run_until_signalled
    from batchcl.job import grace_seconds
    from batchcl.monitoring import environment
    from batchcl.runs.layout import valid_run_id
    from batchcl.runs.record import read_record
    from batchcl.runs.store import Store
    from batchcl.scoring.retry import retry as score_again
    from batchcl.stop_signal import StopSignal

    check_emulator(emulator=emulator)
    given, grace = flags(options), options.get("grace")
    changes = environment(without=given) | given
    try:
        grace_s = GRACE_S if grace is None else grace_seconds(grace)
    except UsageError as error:
        raise UsageError(f"--grace {grace}: {error}") from error

    async def work(stop_signal: StopSignal) -> Summary:
        async with AsyncExitStack() as stack:
            observer, aws = await stack.enter_async_context(reporting(log_format)), None
            if emulator:
                where: dict[str, Any] = {"profile": options.get("profile"), "region": options.get("region")}
                store = await Store.open_async(root, aws=Aws(AwsSettings(**where)))
                record = await read_record(store, valid_run_id(run))
                if record is not None:
                    session = emulated_session(record.model, state=emulator_state, **where)
                    _, aws = await stack.enter_async_context(session)
            return await score_again(
                root, run, codes=code or (), changes=changes, observer=observer, stop_signal=stop_signal, aws=aws
            )

    finish(
        lambda: run_until_signalled(work, grace_s=grace_s),
        json=json,
        log_format=log_format,
        options=emulator_options(emulator=emulator, state=emulator_state),
    )
