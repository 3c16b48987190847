"""A few images: each has its answer or its error, and what concerns them all ends the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError

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

FILES = FileReader()

MODEL = ModelArn.parse("arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000")


class Client:
    """Answers each image by its bytes: `says` may hold an error's code and status, or seconds to wait."""

    def __init__(self, says: dict[bytes, Any]) -> None:
        self.meta = SimpleNamespace(endpoint_url="https://x")
        self.says = says
        self.at_once = 0
        self.most_at_once = 0

    async def detect_custom_labels(self, *, Image: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            said = self.says.get(Image["Bytes"], 0.001)
            if isinstance(said, float):
                await anyio.sleep(said)
                name = Image["Bytes"].decode()
                metadata = {"RequestId": f"r-{name}"}
                return {"CustomLabels": [{"Name": name, "Confidence": 50.0}], "ResponseMetadata": metadata}
            metadata = {"HTTPStatusCode": said[1]}
            response: Any = {"Error": {"Code": said[0], "Message": "as it said."}, "ResponseMetadata": metadata}
            raise ClientError(response, "DetectCustomLabels")
        finally:
            self.at_once -= 1


def look(client: Client, images: Sequence[ImageInput], *, deadline_s: float | None = None) -> list[DetectResult]:
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


def test_answers_come_in_the_order_of_the_images_and_a_few_are_asked_about_at_once() -> None:
    client = Client({b"0": 0.05})
    found = look(client, bytes_of(*map(str, range(12))))
    assert [each.labels[0].name for each in found] == [str(n) for n in range(12)]
    assert found[3].answer == {"CustomLabels": [{"Name": "3", "Confidence": 50.0}]}
    assert found[3].request_id == "r-3"
    assert client.most_at_once == 4


def test_an_image_that_fails_leaves_the_others_alone() -> None:
    client = Client(
        {b"b": ("ProvisionedThroughputExceededException", 400), b"c": ("InternalServerError", 500), b"d": 9.0}
    )
    found = look(client, bytes_of(*"abcd"), deadline_s=0.2)
    assert found[0].error is None
    kinds: list[type[CallError] | None] = [None if each.error is None else type(each.error) for each in found]
    assert kinds == [None, ThrottledError, TransientError, TransientError]
    assert found[3].error is not None
    assert found[3].error.code == "Timeout"
    assert [each.labels for each in found[1:]] == [()] * 3


@pytest.mark.parametrize(
    ("code", "kind", "says"),
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
def test_what_concerns_all_images_ends_the_whole(code: str, kind: type[BatchclError], says: str) -> None:
    with pytest.raises(kind) as caught:
        look(Client(dict.fromkeys((b"a", b"b", b"c"), (code, 400))), bytes_of(*"abc"))
    assert says in str(caught.value)


@pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException", "InvalidParameterException"])
def test_a_rejection_beside_an_answer_is_that_images_own(code: str) -> None:
    answered, rejected = look(Client({b"b": (code, 400)}), bytes_of(*"ab"))
    assert answered.error is None
    assert isinstance(rejected.error, RejectedError)


def test_a_file_that_is_no_image_by_its_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES_FITTABLE + 1)
    (found,) = look(Client({}), [image_input(path)])
    assert found.error is not None
    assert found.error.code == "TooLarge"


def test_an_image_is_given_by_its_uri_its_path_or_its_bytes(tmp_path: Path) -> None:
    version = image_input("s3://b/a b.jpg", version_id="v")
    assert version.image == ImageRef(uri="s3://b/a b.jpg", bucket="b", key="a b.jpg", version_id="v")
    assert image_input(tmp_path / "x.jpg").image is not None
    assert image_input(b"x") == ImageInput(name="bytes", data=b"x")
    assert "secret" not in repr(image_input(b"secret"))
