"""The caller's identity and the account's Custom Labels quotas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from batchcl.aws.errors import cause_code, translate_errors
from batchcl.errors import RefusedError
from batchcl.quantities import MAX_UNITS

__all__ = ["DEFAULTS", "Identity", "Quotas", "caller_identity", "read_quotas"]


@dataclass(frozen=True, slots=True)
class Identity:
    """An account, and the ARN of the user or role in it."""

    account: str
    arn: str


async def caller_identity(client: Any) -> Identity:
    """The identity that signs, by GetCallerIdentity of an open STS client; it needs no permission.

    Raises:
        CredentialsError: AWS doesn't know the credentials, or they have expired.
        UnreachableError: STS doesn't answer.
    """
    with translate_errors("asking whose credentials these are"):
        answer = await client.get_caller_identity()
    return Identity(answer["Account"], answer["Arn"])


_SERVICE: Final = "rekognition"
_CALLS: Final = "L-EA71C84A"
_UNITS: Final = "L-4FA65ECB"
_RUNNING: Final = "L-5E225387"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Upper bounds in an account and region.

    Attributes:
        calls_tps: DetectCustomLabels calls a second, over all models.
        units: inference units of one running model.
        running: models that run at the same time.
    """

    calls_tps: float
    units: int
    running: int

    def __str__(self) -> str:
        return f"{self.calls_tps:g} calls a second, {self.units} units a model, {self.running} running models"


DEFAULTS: Final = Quotas(calls_tps=50, units=MAX_UNITS, running=2)
"""Those of an account that never asked for more."""


async def read_quotas(client: Any) -> Quotas:
    """The account's own quotas, by an open Service Quotas client.

    Raises:
        CredentialsError: the identity may not ask, or isn't known.
        UnreachableError: Service Quotas doesn't answer.
    """
    return Quotas(
        calls_tps=await _value(client, _CALLS),
        units=int(await _value(client, _UNITS)),
        running=int(await _value(client, _RUNNING)),
    )


async def _value(client: Any, code: str) -> float:
    """The applied value, or AWS's default where none was ever applied."""
    try:
        with translate_errors("reading the quotas"):
            answer = await client.get_service_quota(ServiceCode=_SERVICE, QuotaCode=code)
    except RefusedError as error:
        if cause_code(error) != "NoSuchResourceException":
            raise
        with translate_errors("reading the default quotas"):
            answer = await client.get_aws_default_service_quota(ServiceCode=_SERVICE, QuotaCode=code)
    return float(answer["Quota"]["Value"])
