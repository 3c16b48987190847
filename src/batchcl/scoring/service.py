"""Which Custom Labels service a job talks to: AWS, or the local emulator for the time of the run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio.to_thread

from batchcl.aws.arn import ModelArn
from batchcl.aws.names import find_trained_model, region_in
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.errors import ModelError, UsageError
from batchcl.job import Job
from batchcl.runs.layout import expand_home

__all__ = ["DEFAULT_STATE", "service_of"]

DEFAULT_STATE: Final = "~/.cache/batchcl/emulator"
"""Where `--emulator` keeps its projects and models unless it is told otherwise."""

EMULATED_TPS_PER_UNIT: Final = 10.0
"""A unit of the run's own emulator is faster than a real one: it is there to try things out."""


@asynccontextmanager
async def service_of(job: Job) -> AsyncIterator[tuple[Aws, ModelArn]]:
    """The session and the model that `job` means, for the time of the block.

    With `emulator` it starts one, which ends with the block; without `model` it has the emulator train one on
    handwritten digits, once.

    Raises:
        UsageError: the emulator's extra packages are missing.
        ModelError: there is no model of the given name, or the job's region is not that of the model's ARN.
        CredentialsError: there are none to look it up with, or AWS refuses them.
    """
    if not job.emulator:
        assert job.model is not None
        aws = Aws(AwsSettings(profile=job.profile, region=job.region))
        yield aws, await _found(aws, job.model)
        return
    state = await anyio.to_thread.run_sync(_emulator_state, job.emulator_state or DEFAULT_STATE)
    try:
        from batchcl.demo import demo_model  # noqa: PLC0415 - an extra that most runs do without
        from batchcl.emulator.process import running_emulator  # noqa: PLC0415
        from batchcl.emulator.settings import EmulatorSettings  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"--emulator needs {error.name}; pip install 'batchcl[emulator]'") from error
    named = job.model or await demo_model(state)
    region = region_in(named) or Aws(AwsSettings(region=job.region, profile=job.profile)).region
    settings = EmulatorSettings(
        state=state,
        s3_endpoint_url=_s3_endpoint_url(region),
        tps_per_unit=EMULATED_TPS_PER_UNIT,
        exit_with_parent=True,
    )
    async with running_emulator(settings) as emulator:
        aws = _emulated(job, emulator.endpoint)
        yield aws, await _found(aws, named)


async def _found(aws: Aws, named: str) -> ModelArn:
    """The model of an ARN, which isn't looked up, or of a name."""
    if named.startswith("arn:"):
        model = ModelArn.parse(named)
        if aws.settings.region not in (None, model.region):
            raise ModelError(
                f"there is no model {model} in {aws.settings.region}, which --region names: it is in {model.region}; "
                "leave --region out"
            )
        return model
    await aws.check_credentials()
    async with aws.rekognition() as client:
        return await find_trained_model(client, named)


def _emulated(job: Job, endpoint: str) -> Aws:
    """A session whose Rekognition is the emulator, with its built-in credentials; S3 stays what it was."""
    return Aws(
        AwsSettings(
            profile=job.profile,
            region=job.region,
            rekognition_endpoint_url=endpoint,
            rekognition_credentials=StaticCredentials("emulator", "emulator"),
        )
    )


def _emulator_state(path: str) -> Path:
    try:
        return Path(expand_home(path)).absolute()
    except UsageError as error:
        raise UsageError(f"keeping the emulator's state failed: {error}; or pass --emulator-state DIR") from error


def _s3_endpoint_url(region: str) -> str:
    """Where the emulator reads S3 images: where the session does."""
    configured = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return configured or f"https://s3.{region}.amazonaws.com"
