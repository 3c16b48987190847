from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError

from batchcl.aws.account import Quotas, read_quotas
from batchcl.errors import CredentialsError


class FakeServiceQuotas:
    """Applied quotas by code; the default is 100."""

    def __init__(self, applied: dict[str, float], *, refusal: str = "NoSuchResourceException") -> None:
        self._applied = applied
        self._refusal = refusal

    async def get_service_quota(self, *, ServiceCode: str, QuotaCode: str) -> dict[str, Any]:
        assert ServiceCode == "rekognition"
        if QuotaCode not in self._applied:
            raise ClientError({"Error": {"Code": self._refusal, "Message": "no"}}, "GetServiceQuota")
        return {"Quota": {"Value": self._applied[QuotaCode]}}

    async def get_aws_default_service_quota(self, **_: str) -> dict[str, Any]:
        return {"Quota": {"Value": 100.0}}


def run(work: Callable[[], Awaitable[Quotas]]) -> Quotas:
    return anyio.run(work)


def test_the_applied_quota_is_used_or_else_the_default() -> None:
    client = FakeServiceQuotas({"L-EA71C84A": 75.0, "L-5E225387": 3.0})
    assert run(lambda: read_quotas(client)) == Quotas(calls_tps=75.0, units=100, running=3)


def test_a_refused_request_does_not_use_the_default() -> None:
    client = FakeServiceQuotas({}, refusal="AccessDeniedException")
    with pytest.raises(CredentialsError, match="reading the quotas failed: AccessDeniedException"):
        run(lambda: read_quotas(client))
