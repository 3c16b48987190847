"""The two other services that clients of Custom Labels call: STS and Service Quotas.

STS has GetCallerIdentity (query protocol); Service Quotas has GetServiceQuota and GetAWSDefaultServiceQuota (JSON 1.1)
with the quotas of this emulator. All other calls are errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import orjson
from aiohttp import web

from batchcl.emulator.errors import ApiError

if TYPE_CHECKING:
    from batchcl.emulator.capacity import Quotas
    from batchcl.emulator.signature import Caller

__all__ = ["QUOTAS", "STS", "answer_quotas", "answer_sts", "other_service", "sts_error"]

STS: Final = "sts"
QUOTAS: Final = "servicequotas"

_QUOTAS_TARGET: Final = "ServiceQuotasV20190624."
_FORM: Final = "application/x-www-form-urlencoded"
_CALL_QUOTA: Final = (
    "Transactions per second per account for individual Amazon Rekognition Custom Labels data plane operation"
)
_STS_NAMESPACE: Final = "https://sts.amazonaws.com/doc/2011-06-15/"


def other_service(request: web.Request) -> str | None:
    """The signing name of the service that a request is for; None for Rekognition."""
    if request.headers.get("X-Amz-Target", "").startswith(_QUOTAS_TARGET):
        return QUOTAS
    return STS if request.content_type == _FORM else None


def answer_sts(body: bytes, caller: Caller, request_id: str) -> web.Response:
    """The caller's identity.

    Raises:
        ApiError: InvalidAction for any other action.
    """
    action = parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
    if action != "GetCallerIdentity":
        raise ApiError("InvalidAction", f"Could not find operation {action} for version 2011-06-15")
    arn = f"arn:aws:iam::{caller.account}:user/emulator"
    return _xml(
        f'<GetCallerIdentityResponse xmlns="{_STS_NAMESPACE}"><GetCallerIdentityResult><Arn>{arn}</Arn>'
        f"<UserId>AIDAEMULATOR</UserId><Account>{caller.account}</Account></GetCallerIdentityResult>"
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        status=200,
    )


def sts_error(error: ApiError, request_id: str) -> web.Response:
    """An error response in XML. STS has another code for unknown access keys."""
    code = "InvalidClientTokenId" if error.code == "UnrecognizedClientException" else error.code
    return _xml(
        f'<ErrorResponse xmlns="{_STS_NAMESPACE}"><Error><Type>Sender</Type><Code>{escape(code)}</Code>'
        f"<Message>{escape(str(error))}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
        status=403,
    )


def answer_quotas(target: str, body: bytes, caller: Caller, *, account_tps: float, quotas: Quotas) -> bytes:
    """One of the three quotas that the emulator enforces.

    Raises:
        ApiError: NoSuchResourceException for other quotas, UnknownOperationException for another operation.
    """
    operation = target.removeprefix(_QUOTAS_TARGET)
    if operation not in {"GetServiceQuota", "GetAWSDefaultServiceQuota"}:
        raise ApiError("UnknownOperationException", f"The operation {operation!r} is not one of the emulator's.")
    try:
        parameters: dict[str, Any] = orjson.loads(body)
        service, code = parameters["ServiceCode"], parameters["QuotaCode"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ApiError("IllegalArgumentException", "ServiceCode and QuotaCode are needed.") from error
    known = _by_code(account_tps, quotas).get(code) if service == "rekognition" else None
    if known is None:
        raise ApiError("NoSuchResourceException", "The request failed because the specified quota does not exist.")
    name, value = known
    quota = {
        "ServiceCode": service,
        "ServiceName": "Amazon Rekognition",
        "QuotaCode": code,
        "QuotaName": name,
        "QuotaArn": f"arn:aws:servicequotas:{caller.region}:{caller.account}:{service}/{code}",
        "Value": value,
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }
    return orjson.dumps({"Quota": quota})


def _by_code(account_tps: float, quotas: Quotas) -> dict[str, tuple[str, float]]:
    """Quota code → name and value, as listed by Service Quotas for `rekognition`."""
    return {
        "L-EA71C84A": (
            f"{_CALL_QUOTA} DetectCustomLabels",
            account_tps,
        ),
        "L-4FA65ECB": (
            "Maximum inference units per running Amazon Rekognition Custom Labels model.",
            float(quotas.units),
        ),
        "L-5E225387": (
            "Concurrently running Amazon Rekognition Custom Labels models per account",
            float(quotas.running),
        ),
    }


def _xml(body: str, *, status: int) -> web.Response:
    return web.Response(body=body.encode(), status=status, content_type="text/xml")
