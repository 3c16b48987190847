"""A DetectCustomLabels request as JSON: reading one, and an empty one."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from batchcl.errors import UsageError
from batchcl.images import ImageRef
from batchcl.quantities import MAX_INT32
from batchcl.runs.layout import expand_home
from batchcl.scoring.detect import ImageInput

__all__ = ["DetectRequest", "read_request", "skeleton"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _S3Object(_Shape):
    bucket: Annotated[str, Field(alias="Bucket")] = ""
    name: Annotated[str, Field(alias="Name")] = ""
    version: Annotated[str | None, Field(alias="Version")] = None


def _decoded(text: object) -> object:
    """The bytes in `text`, base64 with or without line breaks."""
    if not isinstance(text, str):
        return text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise PydanticCustomError("base64", "invalid base64: {reason}", {"reason": str(error)}) from error


class _Image(_Shape):
    data: Annotated[bytes | None, BeforeValidator(_decoded), Field(alias="Bytes")] = None
    s3_object: Annotated[_S3Object | None, Field(alias="S3Object")] = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        where = self.s3_object
        if where is None or not (where.bucket or where.name or where.version):
            return self
        if self.data:
            raise PydanticCustomError("both", "expected Bytes or S3Object, got both")
        if not where.bucket or not where.name:
            raise PydanticCustomError("incomplete", "S3Object needs Bucket and Name")
        return self


class DetectRequest(_Shape):
    """The input of DetectCustomLabels, with the API's names. Empty fields, as in the skeleton, are ignored."""

    model: Annotated[str | None, Field(alias="ProjectVersionArn")] = None
    image: Annotated[_Image | None, Field(alias="Image")] = None
    max_results: Annotated[int | None, Field(alias="MaxResults", ge=0, le=MAX_INT32)] = None
    min_confidence: Annotated[float | None, Field(alias="MinConfidence", ge=0, le=100)] = None

    def given(self) -> ImageInput | None:
        """The image, or None if the request has none."""
        where = None if self.image is None else self.image.s3_object
        if where is not None and where.bucket and where.name:
            uri = f"s3://{where.bucket}/{where.name}"
            image = ImageRef(uri=uri, bucket=where.bucket, key=where.name, version_id=where.version or None)
            return ImageInput(name=uri, image=image)
        if self.image is not None and self.image.data:
            return ImageInput(name="Bytes", data=self.image.data)
        return None


def read_request(source: str) -> DetectRequest:
    """Read a request from JSON text, from a path or `file://` URI, or from stdin for `-`.

    Raises:
        UsageError: the file is missing, or is not a request.
    """
    name = " on stdin" if source == "-" else f" {source}"
    try:
        if source.lstrip().startswith("{"):
            name, text = "", source.encode(errors="surrogateescape")
        elif source == "-":
            text = sys.stdin.buffer.read()
        else:
            path = expand_home(source.removeprefix("file://"))
            text = Path(path).read_bytes()
        return DetectRequest.model_validate_json(text)
    except OSError as error:
        raise UsageError(f"reading --input-json{name} failed: {error.strerror}; check the path") from error
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, found['loc'])) or 'JSON'}: {found['msg']}" for found in error.errors()]
        raise UsageError(
            f"--input-json{name} is not a DetectCustomLabels request: {'; '.join(parts)}; "
            "print an empty one with `batchcl detect --skeleton`"
        ) from error


def skeleton() -> dict[str, Any]:
    """An empty request with all fields, from the API's service model."""
    from botocore.session import get_session
    from botocore.utils import ArgumentGenerator

    operation = get_session().get_service_model("rekognition").operation_model("DetectCustomLabels")
    made: dict[str, Any] = json.loads(json.dumps(ArgumentGenerator().generate_skeleton(operation.input_shape)))
    return made
