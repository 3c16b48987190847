"""The signed client with servers that respond like AWS, and with broken ones."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.detect import open_detector
from batchcl.aws.errors import REDIRECTS, RedirectedError
from batchcl.aws.http import HttpRequest, HttpResponse, SignedClient, open_signed_client
from batchcl.aws.listing import open_page_reader
from batchcl.aws.names import find_model
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.aws.store_access import find_store_access
from batchcl.choices import Transport
from batchcl.errors import (
    CallError,
    CredentialsError,
    FatalCallError,
    HostError,
    RefusedError,
    TransientError,
    UnreachableError,
)
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader
from batchcl.loaders.s3_objects import open_object_reader
from certificates import certificates
from servers import KEY, SECRET
from servers import client as boto3_client
from unit.aws.raw_server import CUT, HANG, Asked, RawServer, answering, error, http, tunnelling

OK = http(200, b"{}")
CALL = HttpRequest(method="POST", headers=(("X-Amz-Target", "RekognitionService.DetectCustomLabels"),), body=b'{"a":1}')

MODEL = ModelArn.parse("arn:aws:rekognition:us-east-1:123456789012:project/dogs/version/v1/1700000000000")
IMAGE = ImageRef(uri="s3://pics/k", bucket="pics", key="k")


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys in the environment, and no other AWS settings."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy") or name == "REQUESTS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@asynccontextmanager
async def connected(
    *answers: bytes, aws: Aws | None = None, **options: Any
) -> AsyncIterator[tuple[SignedClient, RawServer]]:
    """A client of a server with these responses, by the session's settings."""
    async with answering(*answers) as server:
        os.environ["AWS_ENDPOINT_URL"] = server.url  # the fixture's monkeypatch restores it
        async with open_signed_client(aws or Aws(), "rekognition", region="eu-west-1", **options) as client:
            yield client, server


def run(act: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def within() -> Any:
        with anyio.fail_after(20):
            return await act()

    return anyio.run(within)


def send(*answers: bytes, request: HttpRequest = CALL, **options: Any) -> tuple[HttpResponse, RawServer]:
    async def act() -> tuple[HttpResponse, RawServer]:
        async with connected(*answers, **options) as (client, server):
            return await client.send(request), server

    found: tuple[HttpResponse, RawServer] = run(act)
    return found


def failure(*answers: bytes, **options: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        send(*answers, **options)
    return caught.value


def test_any_status_is_returned_and_header_names_ignore_case() -> None:
    for status in (200, 204, 301, 307, 400, 404, 500, 503):
        body = b"" if status == 204 else b"said"
        answer, server = send(http(status, body, ("X-AMZN-requestid", "r"), ("Location", "https://elsewhere/")))
        assert (answer.status, answer.body, answer.headers["x-amzn-RequestId"]) == (status, body, "r")
        assert len(server.asked) == 1


def test_requests_have_a_user_agent_and_no_other_default_headers() -> None:
    _, server = send(OK)
    assert server.asked[0].headers["user-agent"].startswith("batchcl/")
    assert set(server.asked[0].headers) == {
        *("host", "user-agent", "content-length", "x-amz-date", "x-amz-target", "authorization"),
    }


def test_connections_are_reused_and_limited() -> None:
    async def act() -> None:
        async with connected(OK, connections=3) as (client, server):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(client.send, CALL)
            assert len(server.asked) == 50
            assert server.connections <= 3

    run(act)


def test_waiting_for_a_connection_counts_towards_the_deadline() -> None:
    async def act() -> None:
        async with connected(HANG, connections=1) as (client, server), anyio.create_task_group() as group:
            arrived = anyio.Event()

            def hang(_: int, __: Asked) -> bytes:
                arrived.set()
                return HANG

            server.answers = hang
            group.start_soon(client.send, CALL)
            await arrived.wait()
            client._deadline_s = 0.2  # for the second request only, which waits for the first one's connection
            with pytest.raises(TransientError) as caught:
                await client.send(CALL)
            assert caught.value.code == "Timeout"
            assert len(server.asked) == 1
            group.cancel_scope.cancel()

    run(act)


def test_an_entry_in_netrc_does_not_replace_the_signature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    answer, server = send(OK)
    assert answer.status == 200
    assert server.asked[0].headers["authorization"].startswith("AWS4-HMAC-SHA256 ")


def test_a_connection_closed_by_the_server_is_replaced() -> None:
    async def act() -> None:
        ended = http(200, b"{}", version="HTTP/1.0") + CUT
        async with connected(ended, OK, http(200, b"{}", ("Connection", "close")) + CUT, OK) as (client, server):
            for _ in range(4):
                assert (await client.send(CALL)).status == 200
            assert server.connections == 3

    run(act)


# --- time and credentials -------------------------------------------------------------------------------------------


def stamped(asked: Asked) -> float:
    return dt.datetime.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%S%z").timestamp()


def service_at(there: float, answers: dict[str, bytes]) -> Callable[[int, Asked], bytes]:
    """A service whose clock shows `there` and which refuses requests that are 5 minutes off."""
    date = ("Date", format_datetime(dt.datetime.fromtimestamp(there, dt.UTC), usegmt=True))

    def answer(_: int, asked: Asked) -> bytes:
        if abs(stamped(asked) - there) > 300:
            return answers["refused"].replace(b"\r\n", f"\r\n{date[0]}: {date[1]}\r\n".encode(), 1)
        return answers["ok"]

    return answer


@pytest.mark.parametrize(
    ("ahead_s", "refused"),
    [
        (-86_400 * 400, error(403, "RequestTimeTooSkewed", "Signature expired")),
        (-301, error(400, "InvalidSignatureException", "Signature expired: 2025 is now earlier than 2026")),
        (301, error(400, "InvalidSignatureException", "Signature not yet current: 2026 is still later than 2025")),
        (3600, http(403, b"<?xml version='1.0'?><Error><Code>RequestTimeTooSkewed</Code></Error>")),
    ],
)
def test_a_wrong_clock_is_corrected_once_and_for_all_later_calls(ahead_s: float, refused: bytes) -> None:
    async def act() -> None:
        there = time.time()
        async with connected(clock=lambda: there + ahead_s) as (client, server):
            server.answers = service_at(there, {"refused": refused, "ok": OK})
            for _ in range(3):
                assert (await client.send(CALL)).status == 200
            assert len(server.asked) == 4
            assert all(abs(stamped(asked) - there) < 2 for asked in server.asked[1:])

    run(act)


def test_a_clock_that_is_corrected_later_is_used_again() -> None:
    async def act() -> None:
        there, ahead_s = time.time(), 3600.0
        refused = error(403, "RequestTimeTooSkewed")
        async with connected(clock=lambda: there + ahead_s) as (client, server):
            server.answers = service_at(there, {"refused": refused, "ok": OK})
            assert (await client.send(CALL)).status == 200
            ahead_s = 0.0
            assert (await client.send(CALL)).status == 200
            assert (await client.send(CALL)).status == 200
            assert len(server.asked) == 5

    run(act)


@pytest.mark.parametrize(
    "answer",
    [
        error(403, "RequestTimeTooSkewed"),
        error(403, "RequestTimeTooSkewed", "m", ("Date", "yesterday")),
        error(403, "RequestTimeTooSkewed", "m", ("Date", "Thu, 01 Jan 2026 00:00:30 GMT")),
    ],
)
def test_a_refusal_without_clock_skew_is_not_repeated(answer: bytes) -> None:
    found, server = send(answer, clock=dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp)
    assert (found.status, len(server.asked)) == (403, 1)


def test_a_second_refusal_for_the_clock_is_returned() -> None:
    answer, server = send(error(403, "RequestTimeTooSkewed", "m", ("Date", "Thu, 01 Jan 2026 00:00:00 GMT")))
    assert (answer.status, len(server.asked)) == (403, 2)


def credential(asked: Asked) -> str:
    return asked.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def rotating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential_process; the returned file counts its calls."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    calls = tmp_path / "calls"
    calls.write_text("")
    script = tmp_path / "keys.sh"
    script.write_text(
        f"echo >> {calls}\n"
        f'printf \'{{"Version":1,"AccessKeyId":"KEY%d","SecretAccessKey":"s","SessionToken":"t"}}\' '
        f"$(wc -l < {calls})\n"
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = /bin/sh {script}\n")
    return calls


@pytest.mark.parametrize(
    "refused",
    [
        error(400, "ExpiredTokenException"),
        http(400, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"),
    ],
)
def test_concurrent_calls_reload_expired_credentials_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bytes
) -> None:
    calls = rotating(tmp_path, monkeypatch)

    async def act() -> None:
        answers: list[HttpResponse] = []
        async with connected() as (client, server):
            known = len(calls.read_text())
            expired: set[str] = set()
            server.answers = lambda _, asked: refused if credential(asked) in expired else OK

            async def one() -> None:
                answers.append(await client.send(CALL))

            await one()
            for _ in range(2):
                expired.add(credential(server.asked[-1]))
                async with anyio.create_task_group() as group:
                    for _ in range(30):
                        group.start_soon(one)
            assert {answer.status for answer in answers} == {200}
            assert len(calls.read_text()) == known + 2
            assert server.asked[-1].headers["x-amz-security-token"] == "t"

    run(act)


def test_a_second_refusal_of_the_credentials_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rotating(tmp_path, monkeypatch)
    answer, server = send(error(400, "ExpiredTokenException"))
    assert (answer.status, len(server.asked)) == (400, 2)


def test_without_credentials_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError, match="no AWS credentials found"):
        send(OK)


@pytest.mark.parametrize("token", ["two\nlines", "trailing\r\nX-Injected: 1", "with blank", "ü"])
def test_an_invalid_token_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    with pytest.raises(CredentialsError, match="session token contains a space") as caught:
        send(OK)
    assert token not in str(caught.value)


def test_explicit_keys_are_for_rekognition_only() -> None:
    aws = Aws(AwsSettings(rekognition_credentials=StaticCredentials("GIVEN", "secret")))
    _, server = send(OK, aws=aws)
    assert credential(server.asked[0]) == "GIVEN"


# --- endpoints ------------------------------------------------------------------------------------------------------


def endpoint(service: str, region: str = "eu-west-1", bucket: str | None = None) -> tuple[str, str, str, str]:
    async def act() -> tuple[str, str, str, str]:
        async with open_signed_client(Aws(), service, region=region, bucket=bucket) as client:
            found = client.endpoint
            return found.url, found.root, found.region, found.signing_name

    place: tuple[str, str, str, str] = run(act)
    return place


def test_endpoints_are_those_of_botocore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert endpoint("rekognition") == ("https://rekognition.eu-west-1.amazonaws.com", "", "eu-west-1", "rekognition")
    assert endpoint("rekognition", "cn-north-1")[0] == "https://rekognition.cn-north-1.amazonaws.com.cn"
    assert endpoint("s3", bucket="pics") == ("https://pics.s3.eu-west-1.amazonaws.com", "", "eu-west-1", "s3")
    assert endpoint("s3", bucket="my.pics")[:2] == ("https://s3.eu-west-1.amazonaws.com", "/my.pics")
    (tmp_path / "config").write_text(
        "[default]\nuse_fips_endpoint = true\nservices = local\n[services local]\ns3 =\n  endpoint_url = http://[::1]:9/x\n"
    )
    assert endpoint("rekognition", "us-east-1")[0] == "https://rekognition-fips.us-east-1.amazonaws.com"
    assert endpoint("s3", bucket="pics")[:2] == ("http://[::1]:9", "/x/pics")
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    assert endpoint("rekognition", "us-east-1")[0] == "https://rekognition-fips.us-east-1.api.aws"
    monkeypatch.setenv("AWS_ENDPOINT_URL_REKOGNITION", "https://localhost:443/")
    assert endpoint("rekognition")[0] == "https://localhost"


def test_an_invalid_endpoint_is_refused_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "here")
    with pytest.raises(RefusedError, match=r"AWS_ENDPOINT_URL is not a URL: .*here.*; write it like"):
        endpoint("rekognition")


@pytest.mark.parametrize("server", ["seaweed", "moto"])
def test_s3_accepts_the_signature_of_any_key(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = request.getfixturevalue(server)
    s3 = boto3_client("s3", url)
    s3.create_bucket(Bucket="wired")
    for number, key in enumerate(keys := ["a b+c%2F", "é/ü~*'()!", "x=1&y?#", "日本/🙂.png"]):
        s3.put_object(Bucket="wired", Key=key, Body=str(number).encode())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)

    async def act() -> None:
        from urllib.parse import quote

        async with open_signed_client(Aws(), "s3", region="us-east-1", bucket="wired") as client:
            for number, key in enumerate(keys):
                answer = await client.send(HttpRequest(path=f"/{quote(key, safe='/~')}"))
                assert (answer.status, answer.body) == (200, str(number).encode()), answer
                query = (("list-type", "2"), ("prefix", key), ("encoding-type", "url"), ("max-keys", "2"))
                answer = await client.send(HttpRequest(query=query))
                assert (answer.status, answer.body.count(b"<Contents>")) == (200, 1), answer
            assert (await client.send(HttpRequest(path="/missing"))).status == 404

    run(act)


# --- what nobody wants to meet --------------------------------------------------------------------------------------


def test_a_silent_server_costs_only_the_deadline() -> None:
    begun = time.monotonic()
    for answer in (HANG, http(200, b"{}", length=100), b"HTTP/1.1 200 OK\r\nContent-"):
        found = failure(answer, deadline_s=0.2)
        assert isinstance(found, TransientError)
        assert (found.code, str(found).partition(" from ")[0]) == ("Timeout", "no response in time")
    assert time.monotonic() - begun < 10


def test_a_refused_connection_is_reported_with_its_address() -> None:
    async def act() -> None:
        async with connected(OK) as (client, server):
            pass
        async with open_signed_client(Aws(), "rekognition", region="eu-west-1") as client:
            with pytest.raises(TransientError, match=f"{server.url} can't be reached: ") as caught:
                await client.send(CALL)
            assert caught.value.code == "Unreachable"

    run(act)


def test_an_unknown_host_name_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")

    async def act() -> None:
        async with open_signed_client(Aws(), "rekognition", region="eu-west-1") as client:
            with pytest.raises(TransientError, match=r"nowhere\.invalid can't be reached") as caught:
                await client.send(CALL)
            assert caught.value.code == "Unreachable"

    run(act)


def test_a_body_of_megabytes_is_sent() -> None:
    _, server = send(OK, request=HttpRequest(method="POST", body=b"x" * 6_000_000))
    assert len(server.asked[0].body) == 6_000_000


def over_tls(directory: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> HttpResponse:
    tls, _ = certificates(directory)

    async def act() -> HttpResponse:
        async with answering(OK, tls=tls) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http:", "https:"))
            for variable, value in settings.items():
                monkeypatch.setenv(variable, value)
            async with open_signed_client(Aws(), "rekognition", region="eu-west-1") as client:
                return await client.send(CALL)

    answer: HttpResponse = run(act)
    return answer


def test_an_untrusted_certificate_is_fatal_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FatalCallError, match=r"https://127\.0\.0\.1:\d+ failed: .*; set AWS_CA_BUNDLE") as caught:
        over_tls(tmp_path, monkeypatch)
    assert caught.value.code == "Tls"


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_the_environment_is_trusted(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert over_tls(tmp_path, monkeypatch, **{variable: str(tmp_path / "ca.pem")}).status == 200


def test_a_bundle_of_the_config_file_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(f"[default]\nca_bundle = {tmp_path / 'ca.pem'}\n")
    assert over_tls(tmp_path, monkeypatch).status == 200


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unreadable_bundle_is_refused_with_its_name(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "mine.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(RefusedError, match=r"CA certificates in .*mine\.pem can't be read: .*AWS_CA_BUNDLE"):
        over_tls(tmp_path, monkeypatch, AWS_CA_BUNDLE=str(bundle))


def test_a_server_without_tls_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> CallError:
        async with answering(http(400, b"no TLS here") + CUT) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http:", "https:"))
            async with open_signed_client(Aws(), "rekognition", region="eu-west-1", deadline_s=1) as client:
                with pytest.raises(CallError) as caught:
                    await client.send(CALL)
                return caught.value

    found = run(act)
    assert "\n" not in str(found)
    assert found.code in {"Tls", "ConnectionLost", "Timeout"}


# --- proxies --------------------------------------------------------------------------------------------------------


def through_proxy(monkeypatch: pytest.MonkeyPatch, *answers: bytes, target: str, **settings: str) -> RawServer:
    async def act() -> RawServer:
        async with answering(*answers) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", target)
            for variable, value in settings.items():
                monkeypatch.setenv(variable, value.replace("PROXY", f"127.0.0.1:{proxy.port}"))
            async with open_signed_client(Aws(), "rekognition", region="eu-west-1", deadline_s=5) as client:
                await client.send(CALL)
            return proxy

    proxy: RawServer = run(act)
    return proxy


def test_a_plain_request_through_a_proxy_has_the_full_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("http://PROXY", "PROXY"):
        proxy = through_proxy(monkeypatch, OK, target="http://nowhere.invalid", http_proxy=value)
        assert "proxy-authorization" not in proxy.asked[0].headers
        assert proxy.asked[0].line == "POST http://nowhere.invalid/ HTTP/1.1"
        assert proxy.asked[0].headers["host"] == "nowhere.invalid"


def test_a_tunnel_through_a_proxy_carries_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, bundle = certificates(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "verytoken")

    async def act() -> None:
        async with answering(OK, tls=tls) as server, tunnelling() as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http:", "https:"))
            monkeypatch.setenv("https_proxy", f"http://user:s3cr3t@127.0.0.1:{proxy.port}")
            async with open_signed_client(Aws(), "rekognition", region="eu-west-1", deadline_s=5) as client:
                assert [(await client.send(CALL)).status for _ in range(2)] == [200, 200]
            (asked,) = proxy.asked
            assert asked.line == f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"
            assert asked.headers["proxy-authorization"] == f"Basic {ENCODED}"
            assert not {"authorization", "x-amz-security-token"} & asked.headers.keys()
            assert [each.line for each in server.asked] == ["POST / HTTP/1.1"] * 2
            assert "proxy-authorization" not in server.asked[0].headers

    run(act)


def test_no_proxy_excludes_a_host_from_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransientError, match="can't be reached"):
        through_proxy(
            monkeypatch, OK, target="http://nowhere.invalid", http_proxy="http://PROXY", no_proxy=".invalid,other"
        )


@pytest.mark.parametrize("value", ["socks5://PROXY", "http://host:port", "http://", "http://[::1"])
def test_an_invalid_proxy_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(RefusedError, match="HTTPS_PROXY or HTTP_PROXY is not the address of a proxy"):
        through_proxy(monkeypatch, OK, target="http://nowhere.invalid", http_proxy=value)


def shown(error: CallError) -> str:
    """All text of an error that a log or a traceback can contain."""
    assert error.__cause__ is None
    assert error.__suppress_context__
    return f"{error} {error!r} {vars(error)}"


ENCODED = "dXNlcjpzM2NyM3Q="  # user:s3cr3t
SAYS = {
    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n": ("Proxy", FatalCallError),
    b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n": ("Proxy", TransientError),
    CUT: ("ConnectionLost", TransientError),
    b"HTTP/1.1 200 Connected\r\n\r\n" + CUT: ("ConnectionLost", TransientError),
    b"nonsense\r\n\r\n": ("MalformedAnswer", TransientError),
}


@pytest.mark.parametrize("answer", SAYS, ids=[str(n) for n in range(len(SAYS))])
def test_a_failed_tunnel_is_reported_without_the_password(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    with pytest.raises(CallError) as caught:
        through_proxy(monkeypatch, answer, target="https://nowhere.invalid", https_proxy="http://user:s3cr3t@PROXY")
    found = caught.value
    assert (found.code, type(found)) == SAYS[answer]
    assert "https://nowhere.invalid" in str(found)
    assert "s3cr3t" not in shown(found)
    assert ENCODED not in shown(found)
    assert "\n" not in str(found)


def test_a_tunnel_is_requested_with_the_proxys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> Asked:
        async with answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", "https://nowhere.invalid")
            monkeypatch.setenv("https_proxy", f"http://user:s3cr3t@127.0.0.1:{proxy.port}")
            async with open_signed_client(Aws(), "rekognition", region="eu-west-1") as client:
                assert "s3cr3t" not in repr(client.endpoint)
                with pytest.raises(CallError):
                    await client.send(CALL)
            return proxy.asked[0]

    asked: Asked = run(act)
    assert asked.line == "CONNECT nowhere.invalid:443 HTTP/1.1"
    assert asked.headers["proxy-authorization"] == f"Basic {ENCODED}"
    assert "authorization" not in asked.headers


def test_without_tls_the_request_has_the_proxys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with_umlaut = "http://user:p%C3%A4ss@PROXY"
    asked = through_proxy(monkeypatch, OK, target="http://nowhere.invalid", http_proxy=with_umlaut).asked[0]
    assert asked.headers["proxy-authorization"] == "Basic dXNlcjpww6Rzcw=="
    assert "proxy-authorization" not in asked.headers["authorization"]


def test_no_message_contains_a_key_or_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "verytoken")
    for answer in (CUT, b"nonsense\r\n\r\n"):
        found = failure(answer)
        assert "verysecret" not in shown(found)
        assert "verytoken" not in shown(found)


# --- redirects ------------------------------------------------------------------------------------------------------


async def over_http(aws: Aws) -> None:
    async with open_signed_client(aws, "rekognition", region="us-east-1") as client:
        assert (await client.send(CALL)).status in REDIRECTS


async def detect(aws: Aws, transport: Transport) -> None:
    async with open_detector(aws, MODEL, transport=transport, reader=FileReader()) as detector:
        with pytest.raises(FatalCallError, match=r"redirects to http://127\.0\.0\.1:\d+/there; check the region"):
            await detector.detect(IMAGE)


async def describe(aws: Aws) -> None:
    async with aws.rekognition() as client:
        with pytest.raises(UnreachableError, match=r"redirects to http://127\.0\.0\.1:\d+/there; check the region"):
            await find_model(client, MODEL.name)


async def identify(aws: Aws) -> None:
    async with aws.auxiliary_client("sts") as client:
        with pytest.raises(RedirectedError):
            await client.get_caller_identity()


async def read(aws: Aws) -> None:
    async with open_object_reader(aws, region="us-east-1") as reader:
        with pytest.raises(HostError, match="redirects to"):
            await reader.read(IMAGE)


async def read_blocking(aws: Aws) -> None:
    def get() -> None:
        with closing(aws.blocking_s3(region="us-east-1")) as client, pytest.raises(RedirectedError):
            client.get_object(Bucket="pics", Key="k")

    await anyio.to_thread.run_sync(get)


async def look_up_output(aws: Aws) -> None:
    access = await find_store_access(aws, "pics")
    assert access.region == aws.region


async def list_pages(aws: Aws, transport: Transport) -> None:
    pages = open_page_reader(aws, bucket="pics", prefix="", region="us-east-1", transport=transport, connections=1)
    async with pages as reader:
        with pytest.raises(RefusedError):
            await reader.page()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "act",
    [
        over_http,
        partial(detect, transport=Transport.AIOHTTP),
        partial(detect, transport=Transport.AIOBOTO3),
        describe,
        identify,
        read,
        read_blocking,
        look_up_output,
        partial(list_pages, transport=Transport.AIOHTTP),
        partial(list_pages, transport=Transport.AIOBOTO3),
    ],
    ids=[
        "http",
        "detect",
        "detect by the SDK",
        "describe",
        "identify",
        "read",
        "read in a thread",
        "output",
        "list",
        "list by the SDK",
    ],
)
def test_a_redirect_is_not_followed(
    act: Callable[[Aws], Coroutine[Any, Any, None]], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "verytoken")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    async def main() -> None:
        async with answering(OK) as there, answering() as here:
            here.answers = lambda *_: http(status, b"", ("Location", f"{there.url}/there"))
            monkeypatch.setenv("AWS_ENDPOINT_URL", here.url)
            await act(Aws())
            assert here.asked[0].headers["x-amz-security-token"] == "verytoken"
            assert there.connections == 0

    run(main)


def test_a_bucket_in_another_region_gets_its_own_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = b"<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>"

    async def main() -> None:
        region = ("x-amz-bucket-region", "eu-west-3")
        async with answering(http(301, moved, region), http(200, b"picture")) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            async with open_object_reader(Aws(), region="us-east-1") as reader:
                assert await reader.read(IMAGE) == b"picture"
            scopes = [asked.headers["authorization"].split("/")[2] for asked in server.asked]
            assert scopes == ["us-east-1", "eu-west-3"]

    run(main)
