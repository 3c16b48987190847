"""`detect`: each image has a response or an error; errors that concern all images are raised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.detect import SdkDetector
from batchcl.errors import (
    BatchclError,
    CallError,
    ModelError,
    RefusedError,
    RejectedError,
    ThrottledError,
    TransientError,
)
from batchcl.images import MAX_BYTES_FITTABLE, ImageRef
from batchcl.loaders.files import FileReader
from batchcl.loaders.s3_objects import ObjectReader
from batchcl.scoring.detect import DetectResult, ImageInput, _DetectCalls, image_input
from fake_rekognition import FakeDetection, refused

FILES = FileReader()

MODEL = ModelArn.parse("arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000")


def client_of(behaviour: dict[bytes, Exception | float]) -> FakeDetection:
    """A client whose `behaviour` by the image's bytes is an error, or the seconds of a call."""

    async def respond(arguments: dict[str, Any]) -> object:
        data = arguments["Image"]["Bytes"]
        found = behaviour.get(data, 0.001)
        if isinstance(found, Exception):
            return found
        await anyio.sleep(found)
        labels = [{"Name": data.decode(), "Confidence": 50.0}]
        return {"CustomLabels": labels, "ResponseMetadata": {"RequestId": f"r-{data.decode()}"}}

    return FakeDetection(respond)


def detect_all(
    client: FakeDetection, images: Sequence[ImageInput], *, deadline_s: float | None = None
) -> list[DetectResult]:
    calls = _DetectCalls(
        SdkDetector(client, MODEL, reader=FILES),
        MODEL,
        ObjectReader(None),
        fit=False,
        on_read=None,
        deadline_s=deadline_s,
    )
    return anyio.run(calls.detect_all, images)


def bytes_of(*names: str) -> list[ImageInput]:
    return [ImageInput(name=name, data=name.encode()) for name in names]


def test_results_are_in_input_order_with_4_calls_at_a_time() -> None:
    client = client_of({b"0": 0.05})
    found = detect_all(client, bytes_of(*map(str, range(12))))
    assert [each.labels[0].name for each in found] == [str(n) for n in range(12)]
    assert found[3].answer == {"CustomLabels": [{"Name": "3", "Confidence": 50.0}]}
    assert found[3].request_id == "r-3"
    assert client.most_at_once == 4


def test_a_failing_image_does_not_affect_the_others() -> None:
    client = client_of(
        {b"b": refused("ProvisionedThroughputExceededException"), b"c": refused("InternalServerError", 500), b"d": 9.0}
    )
    found = detect_all(client, bytes_of(*"abcd"), deadline_s=0.2)
    assert found[0].error is None
    kinds: list[type[CallError] | None] = [None if each.error is None else type(each.error) for each in found]
    assert kinds == [None, ThrottledError, TransientError, TransientError]
    assert found[3].error is not None
    assert found[3].error.code == "Timeout"
    assert [each.labels for each in found[1:]] == [()] * 3


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("ResourceNotReadyException", ModelError, "as it said; start dogs@v1 with `batchcl model start dogs@v1`"),
        (
            "AccessDeniedException",
            RefusedError,
            "AccessDeniedException: as it said; allow rekognition:DetectCustomLabels",
        ),
        ("ResourceNotFoundException", RefusedError, "check the model's ARN"),
    ],
)
def test_an_error_that_concerns_all_images_is_raised(code: str, kind: type[BatchclError], message: str) -> None:
    with pytest.raises(kind) as caught:
        detect_all(client_of(dict.fromkeys((b"a", b"b", b"c"), refused(code, message="as it said."))), bytes_of(*"abc"))
    assert message in str(caught.value)


@pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException", "InvalidParameterException"])
def test_a_rejection_beside_a_success_fails_only_its_image(code: str) -> None:
    answered, rejected = detect_all(client_of({b"b": refused(code, message="as it said.")}), bytes_of(*"ab"))
    assert answered.error is None
    assert isinstance(rejected.error, RejectedError)


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES_FITTABLE + 1)
    (found,) = detect_all(client_of({}), [image_input(path)])
    assert found.error is not None
    assert found.error.code == "TooLarge"


def test_an_image_is_a_uri_a_path_or_bytes(tmp_path: Path) -> None:
    version = image_input("s3://b/a b.jpg", version_id="v")
    assert version.image == ImageRef(uri="s3://b/a b.jpg", bucket="b", key="a b.jpg", version_id="v")
    assert image_input(tmp_path / "x.jpg").image is not None
    assert image_input(b"x") == ImageInput(name="bytes", data=b"x")
    assert "secret" not in repr(image_input(b"secret"))
