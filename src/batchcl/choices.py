"""Option values with a fixed set of choices. Imports nothing slow, because the command line needs them at start-up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum

from batchcl.errors import ErrorCode, UsageError

__all__ = ["CostsBy", "Encryption", "IfHeld", "Order", "ServerSideEncryption", "SourceKind", "Transport"]


class Transport(StrEnum):
    """Client for DetectCustomLabels and ListObjectsV2: batchcl's own (`aws.http`), or the SDK."""

    AIOHTTP = "aiohttp"
    AIOBOTO3 = "aioboto3"


class IfHeld(StrEnum):
    """Values of `--if-held`: what a run does while another process works on it.

    Attributes:
        FAIL: end with exit code 4.
        WAIT: follow the other process; take the run over if that dies or stops early, else end with its result.
    """

    FAIL = "fail"
    WAIT = "wait"


class CostsBy(StrEnum):
    """Values of `costs --by`: what a row of costs is about."""

    MONTH = "month"
    MODEL = "model"
    RUN = "run"

    @classmethod
    def parse(cls, text: str) -> CostsBy:
        """The choice with this name; raises `UsageError`."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"costs can't be shown by {text!r}; choose {', '.join(cls)}") from None


class SourceKind(StrEnum):
    """Values of `--source-kind`."""

    PREFIX = "prefix"
    DIRECTORY = "directory"
    KEYS = "keys"
    MANIFEST = "manifest"
    IMAGE = "image"
    INVENTORY = "inventory"
    BATCH_CSV = "batch-csv"
    LABEL_CSV = "label-csv"
    JSON_LINES = "json-lines"
    TABLE = "table"
    TAR = "tar"


class Order(StrEnum):
    """Which images `batchcl show` chooses first: the values of `--sort`.

    Attributes:
        UNCERTAIN: those whose result would change with the smallest change of a confidence.
        CONFIDENCE: those with the lowest confidence of their top label.
        MOST_CONFIDENT: those with the highest one.
        NEWEST: those that were scored last.
        RANDOM: a sample.
        WRONG: those whose top label is not a true label, the most confident first.
    """

    UNCERTAIN = "uncertain"
    CONFIDENCE = "confidence"
    MOST_CONFIDENT = "-confidence"
    NEWEST = "newest"
    RANDOM = "random"
    WRONG = "wrong"


class ServerSideEncryption(StrEnum):
    """Values of `--sse`, named as in S3 and the AWS CLI."""

    S3 = "AES256"
    KMS = "aws:kms"
    DSSE_KMS = "aws:kms:dsse"


@dataclass(frozen=True, slots=True)
class Encryption:
    """Server-side encryption of the objects that batchcl writes.

    Without `sse`, the environment variables named in `store_config` apply, then the bucket's default. Raises
    `UsageError` for a KMS key with an encryption that does not use one.
    """

    sse: ServerSideEncryption | None = None
    kms_key_id: str | None = None

    def __post_init__(self) -> None:
        takes_key = self.sse in {ServerSideEncryption.KMS, ServerSideEncryption.DSSE_KMS}
        if self.kms_key_id is not None and not takes_key:
            raise UsageError(
                "--sse-kms-key-id needs --sse aws:kms or --sse aws:kms:dsse", code=ErrorCode.CONFLICTING_OPTIONS
            )

    def store_config(self) -> dict[str, str]:
        """Options for obstore's configuration.

        obstore reads `AWS_SERVER_SIDE_ENCRYPTION`, `AWS_SSE_KMS_KEY_ID` and `AWS_SSE_BUCKET_KEY_ENABLED` if these
        options are missing.

        Raises:
            UsageError: the environment names a KMS key, which S3 refuses together with AES256.
        """
        if self.sse is None:
            return {}
        if self.sse is ServerSideEncryption.S3 and "AWS_SSE_KMS_KEY_ID" in os.environ:
            raise UsageError(
                "AWS_SSE_KMS_KEY_ID is set, but --sse AES256 does not use a key; unset it, or use --sse aws:kms",
                code=ErrorCode.CONFLICTING_OPTIONS,
            )
        key = {} if self.kms_key_id is None else {"sse_kms_key_id": self.kms_key_id}
        return {"server_side_encryption": self.sse.value, **key}
