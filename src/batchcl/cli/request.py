"""A whole DetectCustomLabels request as JSON: read, and its skeleton."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from batchcl.errors import UsageError
from batchcl.images import ImageRef
from batchcl.scoring.few import Given

__all__ = ["Request", "read_request", "skeleton"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _S3Object(_Shape):
    bucket: Annotated[str, Field(alias="Bucket")] = ""
    name: Annotated[str, Field(alias="Name")] = ""
    version: Annotated[str | None, Field(alias="Version")] = None


class _Image(_Shape):
    data: Annotated[Base64Bytes | None, Field(alias="Bytes", strict=False)] = None
    s3_object: Annotated[_S3Object | None, Field(alias="S3Object")] = None


class Request(_Shape):
    """The input of DetectCustomLabels, under the API's names. What is empty, as in the skeleton, is left out."""

    model: Annotated[str | None, Field(alias="ProjectVersionArn")] = None
    image: Annotated[_Image | None, Field(alias="Image")] = None
    max_results: Annotated[int | None, Field(alias="MaxResults", ge=0)] = None
    min_confidence: Annotated[float | None, Field(alias="MinConfidence", ge=0, le=100)] = None

    def given(self) -> Given | None:
        """The image, or None where the request has none."""
        where = None if self.image is None else self.image.s3_object
        if where is not None and where.bucket and where.name:
            uri = f"s3://{where.bucket}/{where.name}"
            image = ImageRef(uri=uri, bucket=where.bucket, key=where.name, version_id=where.version or None)
            return Given(name=uri, image=image)
        if self.image is not None and self.image.data:
            return Given(name="Bytes", data=self.image.data)
        return None


def read_request(path: str) -> Request:
    """The request in the file `path`, or on stdin for `-`. Raises `UsageError`."""
    name = "stdin" if path == "-" else path
    try:
        text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return Request.model_validate_json(text)
    except OSError as error:
        raise UsageError(f"can't read --input-json {path}: {error.strerror}; check the path") from error
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, found['loc'])) or 'it'}: {found['msg']}" for found in error.errors()]
        raise UsageError(
            f"--input-json {name} is no DetectCustomLabels request: {'; '.join(parts)}; see `batchcl detect --skeleton`"
        ) from error


def skeleton() -> dict[str, Any]:
    """A request with everything in it, empty: from the API's own model."""
    from botocore.session import get_session  # noqa: PLC0415 - takes a while
    from botocore.utils import ArgumentGenerator  # noqa: PLC0415

    operation = get_session().get_service_model("rekognition").operation_model("DetectCustomLabels")
    made: dict[str, Any] = json.loads(json.dumps(ArgumentGenerator().generate_skeleton(operation.input_shape)))
    return made
