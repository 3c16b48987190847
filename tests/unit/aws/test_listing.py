from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from batchcl.aws.http import HttpRequest, HttpResponse, SignedClient
from batchcl.aws.listing import ListingPage, SignedPageReader, open_page_reader
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import (
    BatchclError,
    CredentialsError,
    FatalCallError,
    RefusedError,
    RegionError,
    SourceError,
    TransientError,
    UnreachableError,
)

PAGE = (
    b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>k</Key><LastModified>2026-11-21T00:00:00Z"
    b"</LastModified><ETag>e</ETag><Size>1</Size></Contents></ListBucketResult>"
)


def refusal(status: int, code: str, message: str = "so", **headers: str) -> HttpResponse:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return HttpResponse(status, headers, body)


class FakeClient:
    """Returns the given responses; the last one repeats."""

    def __init__(self, *answers: HttpResponse | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[HttpRequest] = []

    async def send(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def read(
    client: FakeClient, *, waits: list[float] | None = None, bucket: str = "b", where: Mapping[str, str] | None = None
) -> ListingPage:
    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    pages = SignedPageReader(
        cast("SignedClient", client),
        bucket=bucket,
        prefix="p +/é",
        uniform=lambda low, high: (low + high) / 2,
        sleep=sleep,
    )

    async def main() -> ListingPage:
        return await pages.page(**where or {})

    return anyio.run(main)


def ok(headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(200, headers or {}, PAGE)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, {}),
        ({"after": "a b"}, {"start-after": "a b"}),
        ({"after": ""}, {}),
        ({"token": "t+/="}, {"continuation-token": "t+/="}),
        ({"after": "a", "token": "t"}, {"continuation-token": "t"}),
    ],
)
def test_a_page_is_requested_with_encoded_keys(where: dict[str, str], expected: dict[str, str]) -> None:
    client = FakeClient(ok())
    page = read(client, where=where)
    assert (page.keys, page.etags, page.sizes) == (["k"], ["e"], [1])
    assert page.modified == [dt.datetime(2026, 11, 21, tzinfo=dt.UTC)]
    assert [(each.method, each.path) for each in client.requests] == [("GET", "/")]
    assert dict(client.requests[0].query) == {"list-type": "2", "encoding-type": "url", "prefix": "p +/é"} | expected


def test_concurrent_pages_are_parsed_one_per_turn_of_the_loop() -> None:
    turns: list[int] = []
    turn = 0

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        pages = SignedPageReader(cast("SignedClient", FakeClient(ok())), bucket="b", prefix="")

        async def one() -> None:
            await pages.page()
            turns.append(turn)

        async with anyio.create_task_group() as group:
            group.start_soon(count)
            async with anyio.create_task_group() as reading:
                for _ in range(16):
                    reading.start_soon(one)
            group.cancel_scope.cancel()

    anyio.run(main)
    assert len(set(turns)) == len(turns) == 16


@pytest.mark.parametrize(
    ("server", "bucket", "expected"),
    [
        ("AmazonS3", "b", True),
        ("SeaweedFS 8000GB 4.48", "b", False),
        (None, "b", False),
        ("AmazonS3", "b--usw2-az1--x-s3", False),
    ],
)
def test_only_s3_general_purpose_buckets_list_in_order(server: str | None, bucket: str, expected: bool) -> None:
    client = FakeClient(ok({} if server is None else {"Server": server}))
    assert read(client, bucket=bucket).is_sorted is expected


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(404, "NoSuchBucket"), SourceError, "there is no bucket b"),
        (refusal(403, "AccessDenied"), CredentialsError, "s3:ListBucket"),
        (HttpResponse(403, {}, b""), CredentialsError, "access denied"),
        (HttpResponse(404, {}, b""), SourceError, "there is no bucket b"),
        (
            refusal(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-3"}),
            RegionError,
            "bucket b is in eu-west-3",
        ),
        (HttpResponse(301, {}, b""), RegionError, "another region"),
        (refusal(307, "TemporaryRedirect", "try eu"), RegionError, "another region (try eu)"),
        (refusal(400, "AuthorizationHeaderMalformed", "expecting eu-west-1"), RegionError, "expecting eu-west-1"),
        (refusal(400, "ExpiredToken"), CredentialsError, "log in again"),
        (refusal(403, "SignatureDoesNotMatch"), CredentialsError, "check the profile"),
        (refusal(400, "InvalidArgument", "bad token"), RefusedError, "InvalidArgument: bad token"),
        (FatalCallError("no AWS credentials found", code="Credentials"), CredentialsError, "no AWS credentials"),
        (FatalCallError("not trusted", code="Tls"), UnreachableError, "not trusted"),
    ],
)
def test_a_refusal_is_the_same_error_as_with_the_sdk(
    answer: HttpResponse | Exception, kind: type[BatchclError], words: str
) -> None:
    waits: list[float] = []
    with pytest.raises(kind, match=r"^listing s3://b/p \+/é failed: ") as caught:
        read(FakeClient(answer), waits=waits)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert waits == []


@pytest.mark.parametrize(
    "answer",
    [
        refusal(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-3"}),
        refusal(307, "TemporaryRedirect", **{"x-amz-bucket-region": "eu-west-3"}),
        HttpResponse(307, {"x-amz-bucket-region": "eu-west-3"}, b""),
        HttpResponse(400, {}, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"),
    ],
)
def test_a_bucket_in_another_region_is_reported_with_its_region(answer: HttpResponse) -> None:
    with pytest.raises(RegionError, match=r"bucket b is in eu-west-3; check the region") as caught:
        read(FakeClient(answer))
    assert caught.value.region == "eu-west-3"


BUSY = [
    refusal(503, "SlowDown", "Please reduce your request rate."),
    refusal(500, "InternalError"),
    refusal(400, "RequestTimeout"),
    HttpResponse(502, {}, b"<html>"),
    HttpResponse(429, {}, b""),
    HttpResponse(200, {}, PAGE[:-10]),
    HttpResponse(200, {}, b"<html>sign in</html>"),
    TransientError("the connection was cut", code="ServerDisconnectedError"),
]


@pytest.mark.parametrize("answer", BUSY)
def test_transient_errors_are_retried_with_jitter(answer: HttpResponse | Exception) -> None:
    waits: list[float] = []
    assert read(FakeClient(answer, answer, ok()), waits=waits).keys == ["k"]
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("answer", BUSY)
def test_six_failed_attempts_are_one_error(answer: HttpResponse | Exception) -> None:
    waits: list[float] = []
    client = FakeClient(answer)
    with pytest.raises(UnreachableError, match=r"^listing s3://b/p \+/é failed 6 times: .*try again later$"):
        read(client, waits=waits)
    assert len(client.requests) == 6
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_without_credentials_no_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/", "HOME": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    async def main() -> Any:
        reader = open_page_reader(
            Aws(), bucket="b", prefix="", region="us-east-1", transport=Transport.AIOHTTP, connections=1
        )
        async with reader as pages:
            return await pages.page()

    with pytest.raises(CredentialsError, match="credentials"):
        anyio.run(main)
