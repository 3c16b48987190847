"""Writes to S3 whose answers are lost or late: each is decided by what is stored."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
from obstore.store import S3Store

from batchcl.errors import OutputError, StoppedError
from batchcl.runs.store import Store

RESET = "reset"
CODES = {400: "RequestTimeout", 403: "AccessDenied", 409: "ConditionalRequestConflict", 501: "NotImplemented"}


class Handler(BaseHTTPRequestHandler):
    """A bucket. `faults` are what the next writes end with: (before or after they take effect, how)."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]
    faults: ClassVar[list[tuple[str, Any]]]
    writes: ClassVar[int]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        bucket = type(self)
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
        if data is None:
            self._answer(404, "NoSuchKey")
        else:
            self._answer(200, body=data)

    def _answer(self, status: int, code: str = "", *, body: bytes = b"") -> None:
        data = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if status >= 300 else body
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def bucket() -> Iterator[tuple[type[Handler], Store]]:
    handler = type("Bucket", (Handler,), {"objects": {}, "faults": [], "writes": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
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

    yield handler, Store("s3://b", backend, sleep=at_once)
    server.shutdown()
    thread.join()
    server.server_close()


PASSING = [RESET, 400, 409]


@pytest.mark.parametrize(
    ("when", "how"), [("before", RESET), ("after", RESET), ("before", 400), ("after", 400), ("before", 409)]
)
def test_a_creation_whose_answer_was_lost_is_decided_by_what_is_stored(bucket, when, how):
    handler, store = bucket
    handler.faults = [(when, how)]
    assert anyio.run(store.put_new, "runs/r/run.json", b"mine")
    assert handler.objects == {"/b/runs/r/run.json": b"mine"}


@pytest.mark.parametrize("how", PASSING)
def test_a_creation_that_another_process_was_faster_with_is_not_ours(bucket, how):
    handler, store = bucket
    handler.objects["/b/x"] = b"theirs"
    handler.faults = [("before", how)]
    assert not anyio.run(store.put_new, "x", b"mine")
    handler.faults = [("before", how)]

    async def mine() -> None:
        with pytest.raises(StoppedError, match="another runner"):
            await store.put_mine("x", b"mine", what="a segment")

    anyio.run(mine)
    assert handler.objects == {"/b/x": b"theirs"}


def test_an_object_of_the_same_content_that_was_there_before_is_not_ours(bucket):
    handler, store = bucket
    handler.objects["/b/x"] = b"same"
    assert not anyio.run(store.put_new, "x", b"same")


@pytest.mark.parametrize("how", PASSING)
def test_a_replacement_is_written_again(bucket, how):
    handler, store = bucket
    handler.faults = [("before", how)]
    anyio.run(store.put, "runs/r/summary.json", b"new")
    assert handler.objects == {"/b/runs/r/summary.json": b"new"}


@pytest.mark.parametrize("how", PASSING)
def test_a_store_that_stays_away_is_reported(bucket, how):
    handler, store = bucket
    handler.faults = [("before", how)] * 100
    with pytest.raises(OutputError, match=r"creating s3://b/x failed"):
        anyio.run(store.put_new, "x", b"1")
    assert 8 <= handler.writes <= 16


def test_a_refusal_is_reported_at_once(bucket):
    handler, store = bucket
    handler.faults = [("before", 403)] * 100
    with pytest.raises(OutputError, match="AccessDenied"):
        anyio.run(store.put_new, "x/HTTP error - <Code>RequestTimeout</Code>", b"1")
    assert handler.writes == 1
