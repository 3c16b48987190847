"""The caller's identity and the account's Custom Labels quotas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from batchcl.aws.errors import cause_code, translate_errors
from batchcl.errors import RefusedError
from batchcl.quantities import MAX_UNITS

__all__ = ["DEFAULTS", "Identity", "Quotas", "caller_identity", "read_quotas"]

_SERVICE: Final = "rekognition"
_CALLS_QUOTA: Final = "L-EA71C84A"
_UNITS_QUOTA: Final = "L-4FA65ECB"
_RUNNING_QUOTA: Final = "L-5E225387"


@dataclass(frozen=True, slots=True)
class Identity:
    """An account, and the ARN of the user or role in it."""

    account: str
    arn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The Custom Labels quotas of an account in a region.

    Attributes:
        calls_tps: DetectCustomLabels calls a second, over all models.
        units: inference units of one running model.
        running: models running at the same time.
    """

    calls_tps: float
    units: int
    running: int

    def __str__(self) -> str:
        return f"{self.calls_tps:g} calls a second, {self.units} units a model, {self.running} running models"


DEFAULTS: Final = Quotas(calls_tps=50, units=MAX_UNITS, running=2)
"""AWS's default quotas."""


async def caller_identity(client: Any) -> Identity:
    """The identity of the credentials, by GetCallerIdentity with an open STS client; needs no permission.

    Raises:
        CredentialsError: the credentials are unknown to AWS or have expired.
        UnreachableError: STS does not respond.
    """
    with translate_errors("looking up the identity of the credentials"):
        response = await client.get_caller_identity()
    return Identity(response["Account"], response["Arn"])


async def read_quotas(client: Any) -> Quotas:
    """The account's quotas, with an open Service Quotas client.

    Raises:
        CredentialsError: the credentials are unknown to AWS or lack the permission.
        UnreachableError: Service Quotas does not respond.
    """
    return Quotas(
        calls_tps=await _quota(client, _CALLS_QUOTA),
        units=int(await _quota(client, _UNITS_QUOTA)),
        running=int(await _quota(client, _RUNNING_QUOTA)),
    )


async def _quota(client: Any, code: str) -> float:
    """The applied quota, or AWS's default if none was ever applied."""
    try:
        with translate_errors("reading the quotas"):
            response = await client.get_service_quota(ServiceCode=_SERVICE, QuotaCode=code)
    except RefusedError as error:
        if cause_code(error) != "NoSuchResourceException":
            raise
        with translate_errors("reading the default quotas"):
            response = await client.get_aws_default_service_quota(ServiceCode=_SERVICE, QuotaCode=code)
    return float(response["Quota"]["Value"])
