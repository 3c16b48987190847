"""AWS clients for the workflow, from the standard AWS settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from batchcl.aws.service_clock import ServiceClock
from batchcl.aws.session import Aws, AwsSettings
from batchcl.lifetime.scheduled_stop import remove_schedule

__all__ = ["WorkflowClients", "connect"]


@dataclass(frozen=True, slots=True)
class WorkflowClients:
    """An open Rekognition client with its clock, and S3 clients of the same region and credentials."""

    rekognition: Any
    region: str
    aws: Aws
    clock: ServiceClock

    def s3(self) -> AbstractAsyncContextManager[Any]:
        """An S3 client for an `async with` block."""
        return self.aws.s3(region=self.region)

    async def remove_schedule(self, name: str) -> bool:
        """Delete the schedule `name`; False if it doesn't exist. Raises `RefusedError`."""
        async with self.aws.scheduler(region=self.region) as client:
            return await remove_schedule(client, name)


@asynccontextmanager
async def connect(*, profile: str | None = None, region: str | None = None) -> AsyncIterator[WorkflowClients]:
    """Open the clients for an `async with` block. None means: as the AWS CLI determines profile and region.

    Raises:
        CredentialsError: no credentials were found.
    """
    aws = Aws(AwsSettings(profile=profile, region=region))
    await aws.check_credentials()
    async with aws.rekognition() as client:
        yield WorkflowClients(client, aws.region, aws, ServiceClock(client))
