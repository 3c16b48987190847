from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from batchcl.emulator import ACCOUNT
from batchcl.emulator.errors import ApiError
from batchcl.emulator.signature import Caller, Credential, Verifier, known_credentials
from batchcl.errors import UsageError

URL = "http://127.0.0.1:1234/"
BODY = b'{"ProjectName":"a"}'


def signed(
    key: str = "emulator",
    secret: str = "emulator",
    *,
    token: str | None = None,
    region: str = "eu-west-1",
    service: str = "rekognition",
    url: str = URL,
    body: bytes = BODY,
) -> dict[str, str]:
    request = AWSRequest(
        "POST", url, data=body, headers={"Content-Type": "application/x-amz-json-1.1", "X-Odd": " a  b "}
    )
    SigV4Auth(Credentials(key, secret, token), service, region).add_auth(request)
    return {"Host": "127.0.0.1:1234", **dict(request.headers)}


def verify(
    headers: dict[str, str], *, body: bytes = BODY, ahead: float = 0.0, query: str = "", method: str = "POST"
) -> Caller:
    now = dt.datetime.now(dt.UTC).timestamp() + ahead
    verifier = Verifier(known_credentials({"BATCHCL_EMULATOR_CREDENTIALS": "KEY:SECRET/+=:210987654321"}))
    return verifier.verify(method=method, path="/", query=query, headers=list(headers.items()), body=body, now=now)


def code(*arguments: Any, **named: Any) -> str:
    with pytest.raises(ApiError) as caught:
        verify(*arguments, **named)
    return caught.value.code


def test_botocores_signature_is_accepted() -> None:
    assert verify(signed()) == Caller(ACCOUNT, "eu-west-1")
    assert verify(signed("KEY", "SECRET/+=", region="us-east-2")) == Caller("210987654321", "us-east-2")


def test_a_query_string_is_part_of_the_signature() -> None:
    headers = signed(url=f"{URL}?b=2&a=1&a=0")
    assert verify(headers, query="b=2&a=1&a=0").region == "eu-west-1"
    assert code(headers, query="b=2&a=1") == "InvalidSignatureException"


def test_temporary_credentials_bring_a_signed_token() -> None:
    headers = signed(token="a session")
    assert verify(headers).account == ACCOUNT
    assert code({**headers, "X-Amz-Security-Token": "another"}) == "InvalidSignatureException"
    assert code({**signed(), "X-Amz-Security-Token": "unsigned"}) == "InvalidSignatureException"


def test_a_wrong_secret_is_refused() -> None:
    assert code(signed(secret="wrong")) == "InvalidSignatureException"


def test_tampered_requests_are_refused() -> None:
    assert code(signed(), body=BODY + b" ") == "InvalidSignatureException"
    assert code({**signed(), "X-Odd": "c"}) == "InvalidSignatureException"
    assert code(signed(), method="PUT") == "InvalidSignatureException"
    lied = {**signed(), "X-Amz-Content-SHA256": hashlib.sha256(BODY).hexdigest()}
    assert code(lied, body=b"{}") == "InvalidSignatureException"


def test_a_wrong_content_hash_is_refused_even_if_unsigned() -> None:
    assert code({**signed(), "X-Amz-Content-SHA256": "0" * 64}) == "InvalidSignatureException"
    assert verify({**signed(), "X-Amz-Content-SHA256": hashlib.sha256(BODY).hexdigest()})


def test_an_unknown_key_is_refused() -> None:
    assert code(signed("nobody")) == "UnrecognizedClientException"


def test_a_request_without_or_with_half_a_signature_is_refused() -> None:
    headers = signed()
    assert code({k: v for k, v in headers.items() if k != "Authorization"}) == "MissingAuthenticationTokenException"
    assert code({**headers, "Authorization": "AWS4-HMAC-SHA256 Credential=x"}) == "IncompleteSignatureException"
    assert code({k: v for k, v in headers.items() if k != "X-Amz-Date"}) == "IncompleteSignatureException"


def test_another_services_signature_is_refused() -> None:
    assert code(signed(service="s3")) == "InvalidSignatureException"


def test_up_to_five_minutes_of_clock_skew_are_accepted() -> None:
    for ahead in (-290, 290):
        assert verify(signed(), ahead=ahead)
    for ahead in (-310, 310):
        assert code(signed(), ahead=ahead) == "RequestTimeTooSkewed"


def test_signing_keys_are_cached_by_day_and_region() -> None:
    verifier = Verifier([Credential("emulator", "emulator")])
    for region in ("eu-west-1", "us-east-1", "eu-west-1"):
        headers = list(signed(region=region).items())
        now = dt.datetime.now(dt.UTC).timestamp()
        caller = verifier.verify(method="POST", path="/", query="", headers=headers, body=BODY, now=now)
        assert caller.region == region


def test_credentials_of_the_environment_are_not_in_messages() -> None:
    found = known_credentials(
        {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "BATCHCL_EMULATOR_CREDENTIALS": "C:D,E:F:000000000001"}
    )
    assert [(c.access_key_id, c.account) for c in found] == [
        ("emulator", ACCOUNT),
        ("A", ACCOUNT),
        ("C", ACCOUNT),
        ("E", "000000000001"),
    ]
    assert "'D'" not in repr(found)
    with pytest.raises(UsageError) as caught:
        known_credentials({"BATCHCL_EMULATOR_CREDENTIALS": "C:D,broken-hush"})
    assert "hush" not in str(caught.value)
