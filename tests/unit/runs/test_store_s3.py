"""The output root in S3: lost responses, credentials, headers and error messages."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from obstore.store import S3Store

from batchcl.analysis.part_filter import PartFilter
from batchcl.analysis.results import Results
from batchcl.aws.session import Aws
from batchcl.choices import Encryption, ServerSideEncryption
from batchcl.errors import ExitCode, OutputCredentialsError, OutputError, StoppedError, UsageError
from batchcl.runs.published import PublishedPart
from batchcl.runs.store import Store
from virtual import run_virtual

RESET = "reset"
LISTED = (
    b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>runs/r/run.json</Key><Size>3</Size>"
    b"<LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
)
CODES = {400: "RequestTimeout", 403: "AccessDenied", 409: "ConditionalRequestConflict", 501: "NotImplemented"}


class Handler(BaseHTTPRequestHandler):
    """A bucket. `faults` are the errors of the next writes: (before or after taking effect, kind)."""

    protocol_version = "HTTP/1.1"
    accepts = ""  # the only valid access key; empty for any
    refusal = "InvalidAccessKeyId"
    objects: ClassVar[dict[str, bytes]]
    faults: ClassVar[list[tuple[str, Any]]]
    writes: ClassVar[int]
    requests: ClassVar[list[tuple[str, dict[str, str]]]]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        bucket = type(self)
        if self._is_refused():
            return
        bucket.writes += 1
        when, how = bucket.faults.pop(0) if bucket.faults else ("after", 200)
        taken = self.headers.get("If-None-Match") == "*" and self.path in bucket.objects
        if when == "after" and not taken:
            bucket.objects[self.path] = data
        if how == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif how == 200 and taken:
            self._answer(412, "PreconditionFailed")
        else:
            self._answer(how, CODES.get(how, ""))

    def do_GET(self) -> None:
        data = type(self).objects.get(self.path)
        if self._is_refused():
            return
        if "list-type" in self.path:
            self._answer(200, body=LISTED)
        elif data is None:
            self._answer(404, "NoSuchKey")
        elif (wanted := self.headers["Range"]) is None:
            self._answer(200, body=data)
        else:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            self._answer(206, body=data[first : last + 1], content_range=f"bytes {first}-{last}/{len(data)}")

    def do_HEAD(self) -> None:
        if not self._is_refused():
            self._answer(200)

    def _is_refused(self) -> bool:
        type(self).requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        key = self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        if type(self).accepts in {"", key}:
            return False
        self._answer(403, type(self).refusal)
        return True

    def _answer(self, status: int, code: str = "", *, body: bytes = b"", content_range: str | None = None) -> None:
        data = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if status >= 300 else body
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    """Its handler is set by each test: stopping a server takes up to half a second."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(server: ThreadingHTTPServer) -> tuple[type[Handler], Store]:
    handler = type("Bucket", (Handler,), {"objects": {}, "faults": [], "writes": 0, "requests": []})
    server.RequestHandlerClass = handler
    backend = S3Store(
        "b",
        config={
            "region": "us-east-1",
            "endpoint": f"http://127.0.0.1:{server.server_port}",
            "access_key_id": "a",
            "secret_access_key": "s",
            "virtual_hosted_style_request": False,
        },
        client_options={"allow_http": True},
    )

    async def at_once(_: float) -> None:
        await anyio.lowlevel.checkpoint()

    return handler, Store("s3://b", backend, sleep=at_once)


PASSING = [RESET, 400, 409]


@pytest.mark.parametrize(
    ("when", "how"), [("before", RESET), ("after", RESET), ("before", 400), ("after", 400), ("before", 409)]
)
def test_after_a_lost_response_the_stored_object_decides(bucket, when, how):
    handler, store = bucket
    handler.faults = [(when, how)]
    assert anyio.run(store.put_new, "runs/r/run.json", b"mine")
    assert handler.objects == {"/b/runs/r/run.json": b"mine"}


@pytest.mark.parametrize("how", PASSING)
def test_a_creation_by_another_process_is_recognized(bucket, how):
    handler, store = bucket
    handler.objects["/b/x"] = b"theirs"
    handler.faults = [("before", how)]
    assert not anyio.run(store.put_new, "x", b"mine")
    handler.faults = [("before", how)]

    async def mine() -> None:
        with pytest.raises(StoppedError, match="another process"):
            await store.put_exclusive("x", b"mine", what="a segment")

    anyio.run(mine)
    assert handler.objects == {"/b/x": b"theirs"}


def test_an_older_object_of_equal_content_is_not_ours(bucket):
    handler, store = bucket
    handler.objects["/b/x"] = b"same"
    assert not anyio.run(store.put_new, "x", b"same")


@pytest.mark.parametrize("how", PASSING)
def test_replacements_are_retried(bucket, how):
    handler, store = bucket
    handler.faults = [("before", how)]
    anyio.run(store.put, "runs/r/summary.json", b"new")
    assert handler.objects == {"/b/runs/r/summary.json": b"new"}


@pytest.mark.parametrize("how", PASSING)
def test_a_permanently_failing_store_is_reported(bucket, how):
    handler, store = bucket
    handler.faults = [("before", how)] * 100
    with pytest.raises(OutputError, match=r"creating s3://b/x failed"):
        anyio.run(store.put_new, "x", b"1")
    assert 8 <= handler.writes <= 16


def test_refused_writes_are_not_retried(bucket):
    handler, store = bucket
    handler.faults = [("before", 403)] * 100
    with pytest.raises(OutputError, match="AccessDenied"):
        anyio.run(store.put_new, "x/HTTP error - <Code>RequestTimeout</Code>", b"1")
    assert handler.writes == 1


# --- credentials ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rotated(bucket, monkeypatch, tmp_path):
    """The bucket, opened with `Store.open`, and a function that writes keys to ~/.aws/credentials."""
    handler, plain = bucket
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", plain._backend.config["endpoint"])

    def write(key: str) -> None:
        (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=hush\n")

    write("OLD")
    return handler, Store.open("s3://b", aws=Aws()), write


OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "put": lambda store: store.put("x", b"2"),
    "put_new": lambda store: store.put_new("y", b"2"),
    "get": lambda store: store.get("x"),
    "exists": lambda store: store.exists("x"),
    "list_all": lambda store: store.list_all("runs"),
    "children": lambda store: store.children("runs"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_uses_rotated_credentials(rotated, name):
    handler, store, write = rotated

    async def main() -> None:
        await store.put("x", b"1")
        write("NEW")
        handler.accepts = "NEW"
        await OPERATIONS[name](store)
        assert anyio.current_time() < 10

    run_virtual(main)


@pytest.mark.parametrize("name", OPERATIONS)
def test_invalid_credentials_are_reported(rotated, name):
    handler, _, _ = rotated
    handler.accepts = "NEW"
    store = Store.open("s3://b", aws=Aws())  # finding the bucket's region is refused, too
    with pytest.raises(
        OutputCredentialsError, match=r"InvalidAccessKeyId: m; check the profile and its keys"
    ) as caught:
        anyio.run(OPERATIONS[name], store)
    assert caught.value.exit_code is ExitCode.REFUSED
    assert "hush" not in str(caught.value)


def test_refused_credentials_are_retried_for_five_minutes(rotated):
    handler, store, write = rotated

    async def main() -> None:
        await store.put("x", b"1")
        handler.accepts = "NEW"
        async with anyio.create_task_group() as group:
            group.start_soon(store.put, "x", b"2")
            await anyio.sleep(290)
            assert handler.objects["/b/x"] == b"1"
            write("NEW")
        assert handler.objects["/b/x"] == b"2"
        handler.accepts = "NEWER"
        with pytest.raises(
            OutputCredentialsError, match=r"writing s3://b/x failed: no valid AWS cred.* 5 min"
        ) as caught:
            await store.put("x", b"3")
        assert caught.value.exit_code is ExitCode.STOPPED

    run_virtual(main, grace_s=0.01)


def test_synchronous_reads_use_the_credential_cache(rotated):
    handler, store, write = rotated
    handler.objects["/b/x"] = b"1"
    handler.accepts = "OLD"
    assert store.open_file("x", size_bytes=1).read() == b"1"
    assert [file.path for file in store.list_sync("runs")] == ["runs/r/run.json"]
    assert store.open_file("x").seekable()
    handler.accepts = "NEW"
    with pytest.raises(OutputCredentialsError, match="InvalidAccessKeyId"):
        store.open_file("x", size_bytes=1).read()
    write("NEW")
    reopened = Store.open("s3://b", aws=Aws())
    assert anyio.run(anyio.to_thread.run_sync, lambda: reopened.open_file("x", size_bytes=1).read()) == b"1"


def test_errors_of_credential_providers_are_reported(rotated, tmp_path):
    _, store, _ = rotated
    (tmp_path / "credentials").unlink()
    (tmp_path / "config").write_text("[default]\ncredential_process = /opt/none\n")
    store._keys._keys = None
    with pytest.raises(OutputCredentialsError) as caught:
        store.open_file("x", size_bytes=1).read()
    assert str(caught.value) == (
        "reading s3://b/x failed: loading the AWS credentials of profile default with credential_process failed: No "
        "such file or directory: /opt/none; run that command in a shell and correct it"
    )


# --- headers and error messages --------------------------------------------------------------------------------------


HOSTILE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ALLOW_HTTP": "false",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_CONDITIONAL_PUT": "disabled",
    "AWS_REQUEST_PAYER": "requester",
    "AWS_UNSIGNED_PAYLOAD": "true",
    "AWS_S3_EXPRESS": "true",
    "AWS_CHECKSUM_ALGORITHM": "crc64nvme",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    "AWS_PROXY_URL": "http://127.0.0.1:1",
    "AWS_TIMEOUT": "1ns",
}
KEY = "arn:aws:kms:us-east-1:123456789012:key/k"
SSE = "x-amz-server-side-encryption"


def written(handler: type[Handler], store: Store) -> list[dict[str, str]]:
    """The headers of a replacement and of a creation; both must contain the checksum of the content."""

    async def main() -> None:
        await store.put("x", b"1")
        assert await store.put_new("y", b"1")
        assert not await store.put_new("y", b"2")
        assert await store.get("x") == b"1"

    anyio.run(main)
    assert handler.objects == {"/b/x": b"1", "/b/y": b"1"}
    puts = [headers for method, headers in handler.requests if method == "PUT"]
    assert [headers.get("if-none-match") for headers in puts] == [None, "*", "*"]
    assert [headers["x-amz-checksum-sha256"] for headers in puts[:2]] == [ONE] * 2
    return puts


ONE = "a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s="
"""SHA-256 of b"1"."""


def test_variables_read_only_by_obstore_have_no_effect(rotated, monkeypatch):
    handler, _, _ = rotated
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    for headers in written(handler, Store.open("s3://b", aws=Aws())):
        assert "Credential=OLD/" in headers["authorization"]
        assert headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD"
        assert not {SSE, "x-amz-request-payer", "x-amz-checksum-crc64nvme"} & headers.keys()


@pytest.mark.parametrize(
    ("encryption", "variables", "sent"),
    [
        (Encryption(), {}, (None, None, None)),
        (Encryption(ServerSideEncryption.S3), {}, ("AES256", None, None)),
        (Encryption(ServerSideEncryption.KMS), {}, ("aws:kms", None, None)),
        (Encryption(ServerSideEncryption.DSSE_KMS, KEY), {}, ("aws:kms:dsse", KEY, None)),
        (Encryption(ServerSideEncryption.KMS), {"AWS_SSE_KMS_KEY_ID": KEY}, ("aws:kms", KEY, None)),
        (
            Encryption(),
            {"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms", "AWS_SSE_KMS_KEY_ID": KEY, "AWS_SSE_BUCKET_KEY_ENABLED": "true"},
            ("aws:kms", KEY, "true"),
        ),
        (Encryption(ServerSideEncryption.S3), {"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms"}, ("AES256", None, None)),
    ],
)
def test_writes_request_the_configured_encryption(rotated, encryption, variables, sent, monkeypatch):
    handler, _, _ = rotated
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for headers in written(handler, Store.open("s3://b", aws=Aws(), encryption=encryption)):
        found = (headers.get(name) for name in (SSE, f"{SSE}-aws-kms-key-id", f"{SSE}-bucket-key-enabled"))
        assert tuple(found) == sent
    assert all(SSE not in headers for method, headers in handler.requests if method != "PUT")


@pytest.mark.usefixtures("rotated")
def test_contradicting_encryption_settings_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="--sse-kms-key-id needs --sse aws:kms"):
        Encryption(ServerSideEncryption.S3, KEY)
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", KEY)
    with pytest.raises(UsageError, match="AWS_SSE_KMS_KEY_ID is set, but --sse AES256 does not use a key"):
        Store.open("s3://b", aws=Aws(), encryption=Encryption(ServerSideEncryption.S3))
    monkeypatch.delenv("AWS_SSE_KMS_KEY_ID")
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "rot13")
    with pytest.raises(OutputError, match=r"opening the output root s3://b failed: Invalid encryption type: rot13"):
        Store.open("s3://b", aws=Aws())


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_contain_only_the_path_and_the_reason(bucket, name):
    handler, store = bucket
    handler.accepts, handler.refusal = "NOBODY", "AccessDenied"
    with pytest.raises(OutputError) as caught:
        anyio.run(OPERATIONS[name], store)
    doing, _, reason = str(caught.value).partition(" failed: ")
    assert re.fullmatch(r"[a-z ]+ s3://b/(x|y|runs)", doing)
    assert reason == "403 Forbidden: AccessDenied: m; check that it exists and is writable"


def test_connection_errors_are_reported_with_the_reason():
    backend = S3Store(
        "b",
        config={
            "region": "us-east-1",
            "aws_endpoint_url_s3": "http://127.0.0.1:1",
            "access_key_id": "a",
            "secret_access_key": "s",
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    store = Store("s3://b/p", backend)
    with pytest.raises(OutputError) as caught:
        anyio.run(store.get, "runs/r/run.json")
    assert str(caught.value) == (
        "reading s3://b/p/runs/r/run.json failed: the connection failed: Connection refused; check the endpoint, the "
        "proxy and the network"
    )


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ("AccessDenied", "403 Forbidden: AccessDenied: m; check that it exists and is writable"),
        ("ExpiredToken", "ExpiredToken: m; check the profile and its keys, or log in again"),
    ],
)
def test_a_table_that_may_not_be_read_is_named(rotated, refusal, reason):
    handler, store, _ = rotated
    handler.accepts, handler.refusal = "NOBODY", refusal
    path = "results/model=a b@1/date=2026-11-21/r-00000-000000.parquet"
    part = PublishedPart("results", "a b@1", "2026-11-21", "r-00000-000000.parquet", path, store.uri(path), 99)
    images = Results(store, [part], part_filter=PartFilter()).images()

    async def main() -> None:
        with pytest.raises(OutputError) as caught:
            images.collect()
        assert str(caught.value) == f"reading s3://b/{path} failed: {reason}"
        assert caught.value.exit_code is ExitCode.REFUSED

    anyio.run(main)  # a loop that runs doesn't matter
