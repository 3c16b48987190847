"""STS and Service Quotas of the emulator, through boto3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from unit.emulator.harness import Server, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    others = {"BATCHCL_EMULATOR_CREDENTIALS": "AKIAOTHER:secret:210987654321"}
    with running_server(others, account_tps=70.0) as running:
        yield running


def client(server: Server, service: str, key: str = "emulator", secret: str = "emulator") -> Any:
    return boto3.client(
        service,
        endpoint_url=server.endpoint,
        region_name="eu-west-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.mark.parametrize(
    ("key", "secret", "account"), [("emulator",) * 2 + ("123456789012",), ("AKIAOTHER", "secret", "210987654321")]
)
def test_sts_returns_the_callers_identity(server, key, secret, account):
    answer = client(server, "sts", key, secret).get_caller_identity()
    assert answer["Account"] == account
    assert answer["Arn"] == f"arn:aws:iam::{account}:user/emulator"
    assert answer["ResponseMetadata"]["RequestId"]


@pytest.mark.parametrize(
    ("key", "secret", "code"),
    [("nobody", "x", "InvalidClientTokenId"), ("emulator", "wrong", "InvalidSignatureException")],
)
def test_sts_checks_signatures(server, key, secret, code):
    with pytest.raises(ClientError, match=code):
        client(server, "sts", key, secret).get_caller_identity()


def test_sts_has_no_other_action(server):
    with pytest.raises(ClientError, match="InvalidAction"):
        client(server, "sts").get_session_token()


@pytest.mark.parametrize(("code", "value"), [("L-EA71C84A", 70.0), ("L-4FA65ECB", 5.0), ("L-5E225387", 2.0)])
def test_quotas_are_those_that_the_emulator_enforces(server, code, value):
    quotas = client(server, "service-quotas")
    for ask in (quotas.get_service_quota, quotas.get_aws_default_service_quota):
        quota = ask(ServiceCode="rekognition", QuotaCode=code)["Quota"]
        assert quota["Value"] == value
        assert quota["QuotaArn"] == f"arn:aws:servicequotas:eu-west-1:123456789012:rekognition/{code}"


def test_other_quotas_and_operations_are_errors_of_the_service(server):
    quotas = client(server, "service-quotas")
    with pytest.raises(quotas.exceptions.NoSuchResourceException):
        quotas.get_service_quota(ServiceCode="rekognition", QuotaCode="L-00000000")
    with pytest.raises(quotas.exceptions.NoSuchResourceException):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-EA71C84A")
    with pytest.raises(ClientError, match="UnknownOperationException"):
        quotas.list_services()
    with pytest.raises(ClientError, match="UnrecognizedClientException"):
        client(server, "service-quotas", "nobody").get_service_quota(ServiceCode="rekognition", QuotaCode="L-EA71C84A")
