from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import anyio
import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoRegionError,
    ParamValidationError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    UnknownEndpointError,
)

from batchcl.arns import ModelArn
from batchcl.aws.credentials import CredentialCache, FixedCredentials
from batchcl.aws.detect import LimitsDetector, SdkDetector, open_detector
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import (
    CallError,
    CredentialsError,
    CredentialsFailingError,
    FatalCallError,
    ImageError,
    ThrottledError,
    TransientError,
)
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader
from batchcl.outcomes import Detection, Label
from fake_rekognition import FakeDetection, refused
from pixels import encoded, noise
from virtual import run_virtual

FILES = FileReader()

MODEL = ModelArn.parse("arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000")
IMAGE = ImageRef(uri="s3://b/a b+c%2F é.jpg", bucket="b", key="a b+c%2F é.jpg")
EMPTY = {"CustomLabels": [], "ResponseMetadata": {"RequestId": "r-1"}}


CUT = aiohttp.ClientPayloadError("cut")
RESET = aiohttp.ServerDisconnectedError()
DNS = aiohttp.ClientConnectorDNSError(
    cast("Any", SimpleNamespace(host="x", port=443, ssl=True)), OSError(-2, "unknown")
)


def proxy_says(status: int) -> aiohttp.ClientHttpProxyError:
    request = cast("Any", SimpleNamespace(real_url="http://p"))
    return aiohttp.ClientHttpProxyError(request, (), status=status, message="No")


async def never(_: dict[str, Any]) -> None:
    await anyio.sleep_forever()


def detect(client: FakeDetection, image: ImageRef = IMAGE, **options: Any) -> Detection:
    return anyio.run(SdkDetector(client, MODEL, **{"reader": FILES, **options}).detect, image)


def test_an_s3_image_is_sent_by_its_key_without_unset_options() -> None:
    client = FakeDetection(EMPTY)
    detect(client)
    s3_object = {"Bucket": "b", "Name": "a b+c%2F é.jpg"}
    assert client.asked == [{"ProjectVersionArn": MODEL.text, "Image": {"S3Object": s3_object}}]


def test_the_version_in_the_list_is_sent() -> None:
    client = FakeDetection(EMPTY)
    detect(client, ImageRef(uri="s3://b/k", bucket="b", key="k", version_id="null"))
    assert client.asked[0]["Image"] == {"S3Object": {"Bucket": "b", "Name": "k", "Version": "null"}}


def test_a_local_image_is_sent_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG bytes")
    client = FakeDetection(EMPTY)
    detect(client, ImageRef(uri=str(path), bucket="", key=str(path)))
    assert client.asked[0]["Image"] == {"Bytes": b"\x89PNG bytes"}


def test_zero_is_not_an_unset_option() -> None:
    client = FakeDetection(EMPTY)
    detect(client, min_confidence=0.0, max_results=0)
    assert (client.asked[0]["MinConfidence"], client.asked[0]["MaxResults"]) == (0.0, 0)


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_an_unreadable_file_fails_without_a_call(tmp_path: Path, name: str) -> None:
    client = FakeDetection(EMPTY)
    with pytest.raises(ImageError, match="can't be read") as caught:
        detect(client, ImageRef(uri="x", bucket="", key=str(tmp_path / name)))
    assert caught.value.code == "UnreadableFile"
    assert client.asked == []


def test_labels_keep_the_services_order_with_boxes_and_polygons() -> None:
    geometry = {
        "BoundingBox": {"Left": 0.0, "Top": 0.25, "Width": 0.5, "Height": 0.75},
        "Polygon": [{"X": 0.0, "Y": 0.25}, {"X": 0.5, "Y": 1.0}],
    }
    labels = [
        {"Name": "b", "Confidence": 90.5, "Geometry": geometry},
        {"Name": "a", "Confidence": 95.0},
        {"Name": "c", "Confidence": 1.0, "Geometry": {}},
        {"Name": "d", "Confidence": 1.0, "Geometry": {**geometry, "Polygon": []}},
    ]
    answer = {"CustomLabels": labels, "ResponseMetadata": {"RequestId": "r-7"}}
    box = (0.0, 0.25, 0.5, 0.75)
    assert detect(FakeDetection(answer)) == Detection(
        (
            Label("b", 90.5, box, ((0.0, 0.25), (0.5, 1.0))),
            Label("a", 95.0),
            Label("c", 1.0),
            Label("d", 1.0, box),
        ),
        "r-7",
    )


def test_a_response_without_a_request_id_is_accepted() -> None:
    assert detect(FakeDetection({"CustomLabels": []})) == Detection((), "")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        None,
        [],
        {"CustomLabels": None},
        {"CustomLabels": 3},
        {"CustomLabels": [None]},
        {"CustomLabels": ["cat"]},
        {"CustomLabels": [{"Confidence": 1.0}]},
        {"CustomLabels": [{"Name": "a"}]},
        {"CustomLabels": [{"Name": "a", "Confidence": 1.0, "Geometry": {"BoundingBox": {"Left": 0.1}}}]},
        {"CustomLabels": [{"Name": "a", "Confidence": 1.0, "Geometry": {"Polygon": [{"X": 0.1}]}}]},
        {"CustomLabels": [{"Name": "a", "Confidence": 1.0, "Geometry": "box"}]},
    ],
)
def test_a_malformed_response_is_transient(answer: object) -> None:
    with pytest.raises(TransientError) as caught:
        detect(FakeDetection(answer))
    assert caught.value.code == "MalformedAnswer"


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (refused("ProvisionedThroughputExceededException"), ThrottledError, "ProvisionedThroughputExceededException"),
        (refused("InternalServerError", status=500), TransientError, "InternalServerError"),
        (ParamValidationError(report="too long"), ImageError, "InvalidParameterException"),
        (SSLError(endpoint_url="https://x", error="self-signed"), FatalCallError, "Tls"),
        (CredentialsError("gone"), FatalCallError, "Credentials"),
        (CredentialsError("gone", may_pass=True), CredentialsFailingError, "Credentials"),
        (NoRegionError(), FatalCallError, "Credentials"),
        (UnknownEndpointError(service_name="r", region_name="mars"), FatalCallError, "Credentials"),
        (EndpointConnectionError(endpoint_url="https://x", error=DNS), TransientError, "Unreachable"),
        (EndpointConnectionError(endpoint_url="https://x", error=RESET), TransientError, "ConnectionLost"),
        (EndpointConnectionError(endpoint_url="https://x"), TransientError, "EndpointConnectionError"),
        (ConnectionClosedError(endpoint_url="https://x", error=CUT), TransientError, "ConnectionLost"),
        (ProxyConnectionError(proxy_url="http://p", error=proxy_says(407)), FatalCallError, "Proxy"),
        (ProxyConnectionError(proxy_url="http://p", error=proxy_says(503)), TransientError, "Proxy"),
        (ReadTimeoutError(endpoint_url="https://x"), TransientError, "Timeout"),
        (ConnectTimeoutError(endpoint_url="https://x"), TransientError, "Timeout"),
        (HTTPClientError(error="broken"), TransientError, "HTTPClientError"),
        (HTTPClientError(error=KeyError("x")), TransientError, "KeyError"),
        (BotoCoreError(), TransientError, "BotoCoreError"),
        (CUT, TransientError, "ConnectionLost"),
        (RESET, TransientError, "ConnectionLost"),
        (ssl.SSLError("bad record"), TransientError, "ConnectionLost"),
        (ssl.SSLCertVerificationError("self-signed"), FatalCallError, "Tls"),
        (ConnectionResetError(104, "reset"), TransientError, "ConnectionLost"),
        (OSError(), TransientError, "ConnectionLost"),
        (ValueError(), TransientError, "ValueError"),
        (aiohttp.ServerTimeoutError("slow"), TransientError, "Timeout"),
        (TimeoutError(), TransientError, "Timeout"),
    ],
)
def test_any_client_exception_has_a_class_and_a_message(raised: Exception, kind: type[CallError], code: str) -> None:
    with pytest.raises(CallError) as caught:
        detect(FakeDetection(raised))
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert str(caught.value) or isinstance(raised, ClientError)
    assert caught.value.__cause__ is raised


def test_a_refusal_keeps_status_and_request_id_for_support() -> None:
    with pytest.raises(TransientError, match="Service Unavailable") as caught:
        detect(FakeDetection(refused("ThrottlingException", 500, message="Service Unavailable")))
    assert (caught.value.status, caught.value.request_id) == (500, "r-9")


def test_a_refusal_without_any_detail_is_classified() -> None:
    with pytest.raises(TransientError) as caught:
        detect(FakeDetection(ClientError(cast("Any", {}), "DetectCustomLabels")))
    assert caught.value.code == "Unknown"


def test_cancellation_is_not_an_error() -> None:
    async def main() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await SdkDetector(FakeDetection(never), MODEL, reader=FILES).detect(IMAGE)
        return scope.cancelled_caught

    assert anyio.run(main)


def test_no_call_outlives_its_deadline() -> None:
    async def main() -> float:
        with pytest.raises(TransientError) as caught:
            await SdkDetector(FakeDetection(never), MODEL, reader=FILES).detect(IMAGE)
        assert caught.value.code == "Timeout"
        return anyio.current_time()

    assert run_virtual(main) == pytest.approx(60)


def test_the_scoring_client_has_the_models_region_and_no_retries() -> None:
    opened: list[dict[str, Any]] = []
    client = FakeDetection(EMPTY)

    class FakeAws:
        def credentials_of(self, _service: str) -> CredentialCache:
            return FixedCredentials("AKID", "secret")

        @asynccontextmanager
        async def rekognition(self, **options: Any) -> AsyncIterator[FakeDetection]:
            opened.append(options)
            yield client

    async def main() -> Detection:
        options: dict[str, Any] = {"min_confidence": 12.5, "max_results": 3, "connections": 7}
        aws = cast("Aws", FakeAws())
        async with open_detector(aws, MODEL, transport=Transport.AIOBOTO3, reader=FILES, **options) as detector:
            return await detector.detect(IMAGE)

    assert anyio.run(main).request_id == "r-1"
    assert opened == [{"region": "eu-west-1", "retries": False, "connections": 7}]
    assert (client.asked[0]["MinConfidence"], client.asked[0]["MaxResults"]) == (12.5, 3)


def test_no_message_holds_the_secret_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "verysecretkeyverysecretkey"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_SESSION_TOKEN", secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # no server listens there

    async def main() -> None:
        async with open_detector(Aws(), MODEL, transport=Transport.AIOBOTO3, reader=FILES) as detector:
            await detector.detect(ImageRef(uri="s3://pics/a.png", bucket="pics", key="a.png"))

    with pytest.raises(TransientError) as caught:
        anyio.run(main)
    assert "127.0.0.1:1" in str(caught.value)
    for error in (caught.value, caught.value.__cause__):
        assert secret not in f"{error!r} {error} {vars(error)}"


@pytest.mark.parametrize(
    ("refusal", "size", "code"),
    [
        ("InvalidParameterException", (32, 80), "TooFewPixels"),
        ("InvalidParameterException", (1500, 70), "TooLong"),
        ("InvalidParameterException", (80, 80), "InvalidParameterException"),
        ("InvalidParameterException", None, "InvalidParameterException"),
        ("InvalidImageFormatException", (32, 80), "InvalidImageFormatException"),
    ],
)
def test_a_refused_parameter_names_the_limit_that_is_violated(
    tmp_path: Path, refusal: str, size: tuple[int, int] | None, code: str
) -> None:
    class InS3(FileReader):
        def accepts(self, image: ImageRef) -> bool:
            return image.key == ""

    if size is not None:
        (tmp_path / "a.png").write_bytes(encoded(noise(*size)))
    image = ImageRef(uri="a", bucket="", key=str(tmp_path / "a.png"))
    inner = SdkDetector(FakeDetection(refused(refusal, message="Request has invalid parameters")), MODEL, reader=InS3())
    with pytest.raises(ImageError, match="Request has invalid parameters") as caught:
        anyio.run(LimitsDetector(inner, FILES).detect, image)
    assert (caught.value.code, caught.value.status, caught.value.request_id) == (code, 400, "r-9")
