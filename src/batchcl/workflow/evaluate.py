"""Fetches what a training wrote to S3 and reads it."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain
from batchcl.aws.datasets import S3Location
from batchcl.aws.errors import error_code
from batchcl.aws.lifecycle import Model
from batchcl.errors import ModelError, SourceError
from batchcl.workflow.evaluation import ModelEvaluation, evaluation_of

__all__ = ["evaluate_model"]


async def evaluate_model(s3: Any, model: Model) -> ModelEvaluation:
    """The figures that the model's training came to, from its summary and its evaluation snapshot.

    Args:
        s3: an open S3 client.
        model: as `describe` gives it.

    Raises:
        ModelError: it has no evaluation, as it isn't trained.
        SourceError: summary or snapshot are gone from S3, or not what the guide says.
        CredentialsError: they may not be read.
    """
    if model.summary is None:
        reason = f": {model.message}" if model.message else ""
        raise ModelError(f"{model.name} has no evaluation, as it is {model.status}{reason}")
    summary = await _read(s3, model.summary)
    lines: list[bytes] = []
    for manifest in model.testing_manifests:
        lines += (await _read(s3, manifest)).splitlines()
    return evaluation_of(summary, lines)


async def _read(s3: Any, uri: str) -> bytes:
    where = S3Location.parse(uri)
    try:
        answer = await s3.get_object(Bucket=where.bucket, Key=where.key)
        async with answer["Body"] as body:
            data: bytes = await body.read()
    except ClientError as error:
        if error_code(error) in {"NoSuchKey", "404"}:
            raise SourceError(f"reading {uri} failed: there is no such object; it was deleted or moved") from error
        raise explain(error, f"reading {uri}", where.bucket) from error
    except BotoCoreError as error:
        raise explain(error, f"reading {uri}", where.bucket) from error
    return data
