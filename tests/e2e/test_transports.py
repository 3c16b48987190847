"""Both transports against a service that checks signatures and decodes the images."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.detect import SignedDetector, open_detector
from batchcl.aws.http import open_signed_client
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.choices import Transport
from batchcl.errors import FatalCallError, ImageError
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader
from servers import KEY, SECRET, aws_env, client, make_bucket
from tables import published

FILES = FileReader()

HOUR_S = 3600


def aws(service: str, *, secret: str = SECRET) -> Aws:
    return Aws(AwsSettings(rekognition_endpoint_url=service, rekognition_credentials=StaticCredentials(KEY, secret)))


@pytest.fixture(scope="module")
def images(demo, seaweed) -> list[ImageRef]:
    """The same images as files, which are sent as bytes, and in a bucket under unusual keys."""
    s3 = client("s3", seaweed)
    make_bucket(s3, "transports")
    images = []
    for number, path in enumerate(sorted(demo.data.images.iterdir())[:4]):
        key = f"a b+c%2F é'{number}{path.suffix}"
        s3.put_object(Bucket="transports", Key=key, Body=path.read_bytes())
        images.append(ImageRef(uri=str(path), bucket="", key=str(path)))
        images.append(ImageRef(uri=f"s3://transports/{key}", bucket="transports", key=key))
    return images


def test_both_transports_return_the_same_labels(service, demo, images):
    async def labels(transport: Transport) -> list[Any]:
        model = ModelArn.parse(demo.arn)
        async with open_detector(aws(service), model, transport=transport, min_confidence=0, reader=FILES) as detector:
            return [(await detector.detect(image)).labels for image in images]

    ours, theirs = (anyio.run(labels, transport) for transport in (Transport.AIOHTTP, Transport.AIOBOTO3))
    assert ours == theirs
    assert all(ours)
    assert ours[0::2] == ours[1::2]  # as bytes and as objects


@pytest.mark.parametrize("transport", Transport)
def test_both_transports_raise_the_same_errors(service, demo, transport):
    missing = ImageRef(uri="s3://transports/no", bucket="transports", key="no")
    text = ImageRef(uri=__file__, bucket="", key=__file__)

    async def main() -> None:
        model = ModelArn.parse(demo.arn)
        async with open_detector(aws(service), model, transport=transport, reader=FILES) as detector:
            for image, code in ((missing, "InvalidS3ObjectException"), (text, "InvalidImageFormatException")):
                with pytest.raises(ImageError) as caught:
                    await detector.detect(image)
                assert (caught.value.code, caught.value.status) == (code, 400)
        async with open_detector(aws(service, secret="wrong"), model, transport=transport, reader=FILES) as detector:
            with pytest.raises(FatalCallError, match="secret key does not match") as refused:
                await detector.detect(text)
            assert refused.value.code == "InvalidSignatureException"

    anyio.run(main)


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_a_wrong_local_clock_does_not_fail_calls(service, demo, images, ahead_s):
    async def main() -> None:
        session = aws(service)
        region = ModelArn.parse(demo.arn).region
        async with open_signed_client(
            session, "rekognition", region=region, clock=lambda: time.time() + ahead_s
        ) as client:
            detector = SignedDetector(client, ModelArn.parse(demo.arn), min_confidence=0, reader=FILES)
            for image in images[:3]:
                assert (await detector.detect(image)).labels

    anyio.run(main)


def test_both_transports_write_the_same_rows(service, demo, seaweed, cli, tmp_path):
    frames = {}
    for transport in Transport:
        out = tmp_path / transport
        done = cli(
            *("run", demo.data.images, "--model", demo.arn, "--out", out, "--limit", 8, "--transport", transport),
            env=aws_env(service, seaweed),
        )
        assert done.code == 0, done.err
        frames[transport] = published(out).select("uri", "labels").sort("uri")
    assert frames[Transport.AIOHTTP].equals(frames[Transport.AIOBOTO3])
    refused = cli("run", "x", "--model", demo.arn, "--out", tmp_path, "--transport", "pigeon")
    assert refused.code == 2
    assert "pigeon" in refused.err
