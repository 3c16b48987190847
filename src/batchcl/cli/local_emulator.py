"""`--emulator`: the local emulator of `run`, `plan`, `doctor` and `retry`, for the time of the command."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from batchcl.errors import UsageError

if TYPE_CHECKING:
    from batchcl.aws.session import Aws
    from batchcl.emulator import EmulatorSettings
    from batchcl.job import Job

__all__ = [
    "Emulator",
    "EmulatorState",
    "check_emulator",
    "default_model",
    "emulated",
    "emulated_session",
    "emulator_options",
]

_PANEL: Final = "Local emulator"
_DEFAULT_STATE: Final = "~/.cache/batchcl/emulator"
_TPS_PER_UNIT: Final = 10.0
"""Faster than a real unit (about 3 TPS), so that trials are short."""

Emulator = Annotated[
    bool,
    typer.Option(
        "--emulator",
        envvar="BATCHCL_EMULATOR",
        show_envvar=False,
        help="Score with a local emulator instead of AWS, free of charge. Its demo model reads handwritten digits.",
        rich_help_panel=_PANEL,
    ),
]
EmulatorState = Annotated[
    Path | None,
    typer.Option(
        "--emulator-state",
        metavar="DIR",
        envvar="BATCHCL_EMULATOR_STATE",
        show_envvar=False,
        help=f"Projects and models of the emulator (default: {_DEFAULT_STATE}).",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]


def default_model(*, emulator: bool) -> dict[str, Any]:
    """Defaults for `load_job`: with the emulator, a job needs no model.

    Raises:
        UsageError: the packages of the extra `emulator` are not installed.
    """
    check_emulator(emulator=emulator)
    from batchcl.job import NO_MODEL

    return {"model": NO_MODEL} if emulator else {}


def emulator_options(*, emulator: bool, state: Path | None) -> list[str]:
    """The options of a command that uses the same emulator."""
    if not emulator:
        return []
    return ["--emulator"] if state is None else ["--emulator", "--emulator-state", str(state)]


@asynccontextmanager
async def emulated(job: Job, *, emulator: bool, state: Path | None) -> AsyncIterator[tuple[Job, Aws | None]]:
    """Run an emulator for the time of the block, if asked to; yields the job with its model, and the session.

    A job without a model gets the demo model, which is trained once and kept in `state`. Raises as `emulated_session`.
    """
    if not emulator:
        yield job, None
        return
    from batchcl.job import NO_MODEL

    model = None if job.model == NO_MODEL else job.model
    async with emulated_session(model, state=state, profile=job.profile, region=job.region) as (called, aws):
        yield job.model_copy(update={"model": called}), aws


@asynccontextmanager
async def emulated_session(
    model: str | None, *, state: Path | None, profile: str | None, region: str | None
) -> AsyncIterator[tuple[str, Aws]]:
    """Run an emulator for the time of the block; yields `model`, by default the demo model's ARN, and a session.

    Raises:
        RefusedError: the emulator did not start, or `state` can't be written.
    """
    from batchcl.emulator import running

    settings = _settings(model, state=state, profile=profile, region=region)
    async with running(settings, demo_model=model is None) as started:
        yield model or str(started.model), started.aws(profile=profile, region=region)


def _settings(model: str | None, *, state: Path | None, profile: str | None, region: str | None) -> EmulatorSettings:
    """Settings of an emulator that reads S3 in the region of `model`, by default the demo model's."""
    from batchcl.aws.names import region_in
    from batchcl.aws.session import DEFAULT_REGION, Aws, AwsSettings
    from batchcl.emulator import EmulatorSettings

    called = DEFAULT_REGION if model is None else region_in(model)
    return EmulatorSettings(
        state=_state_folder(state),
        s3_endpoint_url=_s3_endpoint_url(called or Aws(AwsSettings(region=region, profile=profile)).region),
        tps_per_unit=_TPS_PER_UNIT,
        exit_with_parent=True,
    )


def check_emulator(*, emulator: bool) -> None:
    """Raise `UsageError` if the packages of the extra `emulator` are needed and not installed."""
    if emulator:
        from batchcl.extras import require_extra

        require_extra("emulator", "--emulator")


def _state_folder(state: Path | None) -> Path:
    from batchcl.runs.layout import expand_home

    try:
        return Path(expand_home(str(state or _DEFAULT_STATE))).absolute()
    except UsageError as error:
        text = f"finding the default directory of the emulator failed: {error}; or pass --emulator-state DIR"
        raise UsageError(text) from error


def _s3_endpoint_url(region: str) -> str:
    """Return the S3 endpoint of the session; the emulator reads images from it too."""
    configured = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return configured or f"https://s3.{region}.amazonaws.com"
