"""Both transports have the same outcomes for the same bytes."""

from __future__ import annotations

import gzip
from base64 import b64decode
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio.from_thread
import orjson
import pytest
from anyio.from_thread import BlockingPortal

from batchcl.arns import ModelArn
from batchcl.aws.detect import Detector, open_detector
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.choices import Transport
from batchcl.errors import (
    CallError,
    FatalCallError,
    ImageError,
    ModelNotReadyError,
    RejectedError,
    ThrottledError,
    TransientError,
)
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader
from batchcl.outcomes import Detection
from unit.aws.raw_server import CUT, RawServer, answering, error, http, in_turn

FILES = FileReader()

MODEL = ModelArn.parse("arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000")
IMAGE = ImageRef(uri="s3://b/a", bucket="pics", key="a b+c%2F é.jpg", version_id="v1")
ID = ("x-amzn-RequestId", "r-7")


@dataclass(slots=True)
class Both:
    portal: BlockingPortal
    server: RawServer
    detectors: dict[Transport, Detector]

    def outcomes(self, *answers: bytes, image: ImageRef = IMAGE) -> dict[Transport, Detection | CallError]:
        found: dict[Transport, Detection | CallError] = {}
        for transport, detector in self.detectors.items():
            self.server.asked.clear()
            self.server.answers = in_turn(answers)
            try:
                found[transport] = self.portal.call(detector.detect, image)
            except CallError as raised:
                found[transport] = raised
        return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both detectors, open on one server."""
    empty = str(tmp_path_factory.mktemp("aws") / "none")
    with pytest.MonkeyPatch.context() as patch, anyio.from_thread.start_blocking_portal() as portal:
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, empty)
        stack = AsyncExitStack()

        async def open_all() -> Both:
            server = await stack.enter_async_context(answering())
            keys = StaticCredentials("AKID", "secret")
            aws = Aws(AwsSettings(rekognition_endpoint_url=server.url, rekognition_credentials=keys))
            detectors = {
                transport: await stack.enter_async_context(
                    open_detector(aws, MODEL, transport=transport, min_confidence=12.5, max_results=3, reader=FILES)
                )
                for transport in Transport
            }
            return Both(portal, server, detectors)

        yield portal.call(open_all)
        portal.call(stack.aclose)


def ok(labels: Any, *headers: tuple[str, str]) -> bytes:
    return http(200, orjson.dumps({"CustomLabels": labels}), ID, *headers)


GEOMETRY = {
    "BoundingBox": {"Left": 0, "Top": 0.25, "Width": 0.5, "Height": 0.75},
    "Polygon": [{"X": 0.0, "Y": 0.25}, {"X": 0.5, "Y": 1}],
}
LABELS = [
    {"Name": "bé", "Confidence": 90.53612518310547, "Geometry": GEOMETRY},
    {"Name": "a", "Confidence": 100},
    {"Name": "c", "Confidence": 1.0, "Geometry": {}},
    {"Name": "d", "Confidence": 1.5, "Geometry": {**GEOMETRY, "Polygon": []}, "Unknown": 1},
]


@pytest.mark.parametrize(
    "answer",
    [
        ok([]),
        ok(LABELS),
        ok([{"Name": f"label-{n}", "Confidence": n / 3} for n in range(250)]),
        http(200, b'{"CustomLabels":[]}'),
        http(200, b'{"CustomLabels":[]}', ID, version="HTTP/1.0") + CUT,
        http(200, b'{"CustomLabels":[]}', ID, ("Connection", "close")) + CUT,
        http(200, b' {"CustomLabels" : [ ] , "More":null} ', ID, ("Content-Type", "text/plain")),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n" + b'{"CustomLabels":[]}' + b"\r\n0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\n\r\n{"CustomLabels":[]}' + CUT,
        ok([], ("Set-Cookie", "a=b"), ("X-Long", "x" * 8000)),
    ],
)
def test_successful_responses_are_the_same_detection(both: Both, answer: bytes) -> None:
    found = both.outcomes(answer)
    assert isinstance(found[Transport.AIOHTTP], Detection)
    assert found[Transport.AIOHTTP] == found[Transport.AIOBOTO3]


def test_both_send_the_same_request(both: Both, tmp_path: Any) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(bytes(range(256)) * 3000)
    for image in (IMAGE, ImageRef(uri="x", bucket="pics", key="k"), ImageRef(uri="x", bucket="", key=str(picture))):
        asked = {}
        for transport, detector in both.detectors.items():
            both.server.asked.clear()
            both.server.answers = in_turn([ok([])])
            both.portal.call(detector.detect, image)
            (asked[transport],) = both.server.asked
        ours, theirs = asked[Transport.AIOHTTP], asked[Transport.AIOBOTO3]
        assert ours.line == theirs.line == "POST / HTTP/1.1"
        assert orjson.loads(ours.body) == orjson.loads(theirs.body)
        for name in ("content-type", "x-amz-target", "host"):
            assert (name, ours.headers[name]) == (name, theirs.headers[name])
        assert ours.headers["user-agent"].startswith("batchcl/")
        assert "content-encoding" not in ours.headers


REFUSALS: list[tuple[bytes, type[CallError], str]] = [
    (error(400, "ProvisionedThroughputExceededException", "Provisioned Rate exceeded"), ThrottledError, ""),
    (error(400, "ThrottlingException", "Slow down; sudden increase in rate of requests"), ThrottledError, ""),
    (error(500, "ThrottlingException", "Service Unavailable"), TransientError, ""),
    (error(500, "InternalServerError"), TransientError, ""),
    (error(503, "ServiceUnavailableException"), TransientError, ""),
    (error(400, "ResourceNotReadyException"), ModelNotReadyError, ""),
    (error(400, "LimitExceededException"), ModelNotReadyError, ""),
    (error(400, "ImageTooLargeException"), ImageError, ""),
    (error(400, "InvalidImageFormatException"), ImageError, ""),
    (error(400, "InvalidS3ObjectException"), RejectedError, ""),
    (error(400, "InvalidParameterException", "1 validation error"), RejectedError, ""),
    (error(400, "AccessDeniedException", "User is not authorized"), RejectedError, ""),
    (error(400, "ResourceNotFoundException"), RejectedError, ""),
    (error(400, "UnrecognizedClientException"), FatalCallError, ""),
    (error(400, "SomethingNewException"), RejectedError, ""),
    (error(403, "SignatureDoesNotMatch", "The request signature does not match"), FatalCallError, ""),
    (error(403, "RequestTimeTooSkewed"), FatalCallError, ""),
    (error(400, "InvalidSignatureException", "Signature expired: 20260101T000000Z is now"), FatalCallError, ""),
    (error(400, "ExpiredTokenException"), FatalCallError, ""),
    (error(400, "com.amazonaws.rekognition#ImageTooLargeException"), ImageError, "ImageTooLargeException"),
    (error(400, "ImageTooLargeException:http://internal/"), ImageError, "ImageTooLargeException"),
    (
        http(400, b'{"__type":"ImageTooLargeException","message":"as it said"}', ID),
        ImageError,
        "ImageTooLargeException",
    ),
    (http(400, b'{"__type":"ImageTooLargeException"}', ID), ImageError, "ImageTooLargeException"),
    (http(400, b'{"message":"as it said"}'), TransientError, "400"),
    (http(400, b"{}"), TransientError, "400"),
    (http(404, b"<html>not here</html>"), TransientError, "404"),
    (http(413, b"too large"), TransientError, "413"),
    (http(500), TransientError, "500"),
    (http(502, b"<html><body>Bad Gateway</body></html>", ("Content-Type", "text/html")), TransientError, "502"),
    (http(503, b"Service Unavailable"), TransientError, "503"),
    (http(503, gzip.compress(b'{"__type":"X"}'), ("Content-Encoding", "gzip")), TransientError, ""),
]


def code_of(answer: bytes) -> str:
    return str(orjson.loads(answer.partition(b"\r\n\r\n")[2])["__type"])


@pytest.mark.parametrize(("answer", "kind", "code"), REFUSALS, ids=[str(n) for n in range(len(REFUSALS))])
def test_error_responses_are_the_same_errors(both: Both, answer: bytes, kind: type[CallError], code: str) -> None:
    found = both.outcomes(answer)
    ours, theirs = found[Transport.AIOHTTP], found[Transport.AIOBOTO3]
    assert isinstance(ours, CallError)
    assert isinstance(theirs, CallError)
    assert type(ours) is type(theirs) is kind
    if b"gzip" not in answer:
        wanted = code or code_of(answer)
        assert (ours.code, ours.status, ours.request_id) == (theirs.code, theirs.status, theirs.request_id)
        assert ours.code == wanted
    if b"as it said" in answer:
        assert str(ours) == str(theirs)
        assert str(ours).startswith("as it said")
    if isinstance(ours, ThrottledError) and isinstance(theirs, ThrottledError):
        assert ours.sudden == theirs.sudden == ("Slow down" in str(ours))


BROKEN: list[bytes] = [
    http(200),
    http(200, b"null"),
    http(200, b"[]"),
    http(200, b"3"),
    http(200, b'"text"'),
    http(200, b"{}"),
    http(200, b'{"CustomLabels":'),
    http(200, b'{"CustomLabels":null}'),
    http(200, b'{"CustomLabels":3}'),
    http(200, b'{"CustomLabels":[null]}'),
    http(200, b'{"CustomLabels":["cat"]}'),
    http(200, b'{"CustomLabels":[{"Confidence":1.0}]}'),
    http(200, b'{"CustomLabels":[{"Name":3,"Confidence":1.0}]}'),
    http(200, b'{"CustomLabels":[{"Name":"a","Confidence":"much"}]}'),
    http(200, b'{"CustomLabels":[{"Name":"a","Confidence":1,"Geometry":"box"}]}'),
    http(200, b'{"CustomLabels":[{"Name":"a","Confidence":1,"Geometry":{"BoundingBox":{"Left":0.1}}}]}'),
    http(200, b"<html><body>Log in to the hotel's network</body></html>", ("Content-Type", "text/html")),
    http(200, b"\xff\xfe\x00"),
    http(200, b"\x1f\x8b nonsense", ("Content-Encoding", "gzip")),
    http(200, gzip.compress(b'{"CustomLabels":[]}'), ("Content-Encoding", "gzip")),
    http(204),
]


@pytest.mark.parametrize("answer", BROKEN, ids=[str(n) for n in range(len(BROKEN))])
def test_malformed_responses_are_transient(both: Both, answer: bytes) -> None:
    for found in both.outcomes(answer).values():
        assert isinstance(found, TransientError)
        assert (found.code, str(found)) == ("MalformedAnswer", "malformed response")


@pytest.mark.parametrize("body", [b"[]", b"null", b'{"__type":3}', b'{"__type":"","message":[1]}'])
def test_malformed_error_responses_are_transient(both: Both, body: bytes) -> None:
    assert [type(found) for found in both.outcomes(http(400, body)).values()] == [TransientError] * 2


LOST: list[tuple[str, bytes]] = [
    ("ConnectionLost", CUT),
    ("ConnectionLost", b"HTTP/1.1 200 OK\r\nContent-Le" + CUT),
    ("ConnectionLost", http(200, b'{"CustomLabels":[]}', length=10_000) + CUT),
    ("ConnectionLost", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n{}" + CUT),
    ("ConnectionLost", http(500, b"{", length=100) + CUT),
    ("MalformedAnswer", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    ("MalformedAnswer", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"),
    ("MalformedAnswer", http(200, b"{}", ("X-Huge", "x" * 100_000))),
]


@pytest.mark.parametrize(("code", "answer"), LOST, ids=[str(n) for n in range(len(LOST))])
def test_broken_connections_are_transient(both: Both, code: str, answer: bytes) -> None:
    for found in both.outcomes(answer).values():
        assert isinstance(found, TransientError)
        assert (found.code, found.status) == (code, None)
        assert both.server.url in str(found)
        assert "\n" not in str(found)


def test_the_next_call_works_after_a_broken_connection(both: Both) -> None:
    for _, answer in LOST:
        both.outcomes(answer)
        assert all(isinstance(found, Detection) for found in both.outcomes(ok([])).values())


def test_the_signed_client_reads_codes_that_the_sdk_ignores(both: Both) -> None:
    """Older field names of the same error; the SDK reads only the status, and so classifies it as transient."""
    for body in (b'{"Code":"ImageTooLargeException"}', b'{"code":"ImageTooLargeException"}'):
        found = both.outcomes(http(400, body))
        assert isinstance(found[Transport.AIOHTTP], ImageError)
        assert isinstance(found[Transport.AIOBOTO3], TransientError)


def test_a_redirect_is_the_same_error(both: Both) -> None:
    moved = http(307, b"", ("Location", "https://rekognition.us-west-2.amazonaws.com/"))
    for found in both.outcomes(moved).values():
        assert isinstance(found, FatalCallError)
        assert (found.code, found.status) == ("307", 307)
        assert str(found) == (
            f"{both.server.url} responded with 307 and redirects to https://rekognition.us-west-2.amazonaws.com/; "
            "check the region, the AWS_ENDPOINT_URL settings and the proxy"
        )


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_an_unreadable_file_fails_without_a_call(both: Both, tmp_path: Any, name: str) -> None:
    image = ImageRef(uri="x", bucket="", key=str(tmp_path / name))
    for found in both.outcomes(ok([]), image=image).values():
        assert isinstance(found, ImageError)
        assert found.code == "UnreadableFile"
    assert both.server.asked == []


class FakeReader:
    """Accepts images in S3, and can't read those without a version."""

    def accepts(self, image: ImageRef) -> bool:
        return bool(image.bucket)

    async def read(self, image: ImageRef) -> bytes:
        if image.version_id is None:
            raise ImageError("it is nowhere", code="Nowhere")
        return bytes(range(256)) * 400


@pytest.mark.parametrize("transport", list(Transport))
def test_the_readers_images_are_sent_as_bytes(both: Both, transport: Transport) -> None:
    keys = StaticCredentials("AKID", "secret")
    aws = Aws(AwsSettings(rekognition_endpoint_url=both.server.url, rekognition_credentials=keys))

    async def detect(image: ImageRef) -> Detection:
        async with open_detector(aws, MODEL, transport=transport, reader=FakeReader()) as detector:
            return await detector.detect(image)

    both.server.asked.clear()
    both.server.answers = in_turn([ok([])])
    both.portal.call(detect, IMAGE)
    (asked,) = both.server.asked
    assert b64decode(orjson.loads(asked.body)["Image"]["Bytes"]) == bytes(range(256)) * 400
    both.server.asked.clear()
    with pytest.raises(ImageError, match="nowhere"):
        both.portal.call(detect, ImageRef(uri="x", bucket="pics", key="k"))
    assert both.server.asked == []
