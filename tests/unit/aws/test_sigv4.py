"""The signer compared with botocore's."""

from __future__ import annotations

import datetime as dt
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.sigv4 import Headers, Keys, Signer, canonical_path, canonical_query

TARGET: Headers = (
    ("Content-Type", "application/x-amz-json-1.1"),
    ("X-Amz-Target", "RekognitionService.DetectCustomLabels"),
)
KEYS = Keys("AKIDEXAMPLE", "secret/+key", None)

tokens = st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=300)
all_keys = st.builds(
    Keys,
    st.text(st.characters(categories=["Lu", "Nd"], max_codepoint=127), min_size=16, max_size=20),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60),
    tokens,
)
times = st.integers(0, 4_102_444_799).map(float) | st.floats(0, 4_102_444_799)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
"""Any Unicode text without lone surrogates."""


def theirs(
    keys: Keys, at_s: float, method: str, url: str, *, headers: Headers = (), body: bytes = b"", service: str
) -> dict[str, str]:
    """The headers that botocore adds to the same request."""
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    credentials = ReadOnlyCredentials(keys.access_key, keys.secret_key, keys.token)
    kind = auth.S3SigV4Auth if service == "s3" else auth.SigV4Auth
    now = dt.datetime.fromtimestamp(at_s // 1, dt.UTC).replace(tzinfo=None)
    with mock.patch.object(auth, "get_current_datetime", return_value=now):
        kind(credentials, service, "eu-west-1").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def ours(signer: Signer, keys: Keys, at_s: float, **request: Any) -> dict[str, str]:
    headers = {name.lower(): value for name, value in signer.sign(keys, at_s=at_s, **request).items()}
    del headers["host"]  # botocore leaves it to its HTTP client
    return headers


def rekognition(host: str = "rekognition.eu-west-1.amazonaws.com") -> Signer:
    return Signer(service="rekognition", region="eu-west-1", host=host, names_content=False)


def s3(host: str = "b.s3.eu-west-1.amazonaws.com") -> Signer:
    return Signer(service="s3", region="eu-west-1", host=host, names_content=True)


@given(all_keys, times, st.binary(max_size=200))
def test_a_call_has_the_same_signature_as_with_botocore(keys: Keys, at_s: float, body: bytes) -> None:
    url = "https://rekognition.eu-west-1.amazonaws.com/"
    expected = theirs(keys, at_s, "POST", url, headers=TARGET, body=body, service="rekognition")
    assert ours(rekognition(), keys, at_s, method="POST", headers=TARGET, body=body) == expected


@given(all_keys, times, st.lists(st.tuples(texts, texts), max_size=6))
def test_a_listing_has_the_same_signature_as_with_botocore(
    keys: Keys, at_s: float, pairs: list[tuple[str, str]]
) -> None:
    query = canonical_query(pairs)
    expected = theirs(keys, at_s, "GET", f"https://b.s3.eu-west-1.amazonaws.com/?{query}", service="s3")
    assert ours(s3(), keys, at_s, method="GET", query=query) == expected


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_a_query_has_the_same_encoding_as_with_botocore(pairs: list[tuple[str, str]]) -> None:
    request = AWSRequest(method="GET", url="https://h/", params=pairs)
    credentials = ReadOnlyCredentials("A", "s", None)
    assert canonical_query(pairs) == auth.SigV4Auth(credentials, "s3", "r").canonical_query_string(request)


@given(all_keys, times, texts)
def test_an_object_is_signed_by_its_exact_key(keys: Keys, at_s: float, key: str) -> None:
    path = f"/{quote(key, safe='/~')}"
    expected = theirs(keys, at_s, "GET", f"http://127.0.0.1:8333{path}", service="s3")
    assert ours(s3("127.0.0.1:8333"), keys, at_s, method="GET", path=path) == expected


@pytest.mark.parametrize("root", ["", "/emulated", "/a%20b/c~d", "/é", "/a=b"])
def test_the_path_is_encoded_twice_except_for_s3(root: str) -> None:
    path = f"{quote(root, safe='/~%=')}/"
    expected = theirs(KEYS, 1e9, "POST", f"http://h:1{path}", headers=TARGET, body=b"{}", service="rekognition")
    signed = ours(rekognition("h:1"), KEYS, 1e9, method="POST", path=canonical_path(path), headers=TARGET, body=b"{}")
    assert signed == expected


@pytest.mark.parametrize(
    "value", ["plain", "  around  ", "two  spaces", "tab\there", "a,b", "é"], ids=lambda value: value.strip()
)
def test_header_values_are_trimmed_only_in_the_signature(value: str) -> None:
    headers = (*TARGET, ("X-Custom", value), ("A-First", "1"), ("zz-last", "2"))
    expected = theirs(KEYS, 1e9, "POST", "http://h/", headers=headers, body=b"x", service="rekognition")
    assert ours(rekognition("h"), KEYS, 1e9, method="POST", headers=headers, body=b"x") == expected


MIDNIGHT = dt.datetime(2027, 1, 1, tzinfo=dt.UTC).timestamp()
LEAP_DAY = dt.datetime(2028, 2, 29, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize("edge", [MIDNIGHT, LEAP_DAY, LEAP_DAY + 86_400])
def test_a_signer_works_across_midnight(edge: float) -> None:
    signer = rekognition("h")
    for at_s in (edge - 0.001, edge, edge - 1, edge + 0.999, edge - 86_400, edge + 86_400):
        expected = theirs(KEYS, at_s, "POST", "http://h/", headers=TARGET, body=b"{}", service="rekognition")
        assert ours(signer, KEYS, at_s, method="POST", headers=TARGET, body=b"{}") == expected


def test_a_signer_accepts_other_keys_and_headers_at_any_time() -> None:
    signer = s3("h")
    with_token = Keys("AKIDOTHER", "other", "token==")
    for keys in (KEYS, with_token, KEYS, Keys("AKIDEXAMPLE", "rotated", "token2")):
        for headers in ((), (("X-Custom", "1"),), tuple((f"X-{n}", str(n)) for n in range(3))):
            expected = theirs(keys, MIDNIGHT, "GET", "http://h/k", headers=headers, service="s3")
            assert ours(signer, keys, MIDNIGHT, method="GET", path="/k", headers=headers) == expected


def test_more_header_sets_than_are_cached_are_signed() -> None:
    signer = rekognition("h")
    for number in (*range(200), 0):
        headers = (("X-Number", str(number)),)
        expected = theirs(KEYS, 1e9, "POST", "http://h/", headers=headers, body=b"", service="rekognition")
        assert ours(signer, KEYS, 1e9, method="POST", headers=headers) == expected


def test_keys_hide_their_secrets() -> None:
    shown = repr(Keys("AKID", "s3cr3t", "t0ken"))
    assert "AKID" in shown
    assert "s3cr3t" not in shown
    assert "t0ken" not in shown
