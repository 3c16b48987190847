"""What the SDK's answers and errors hold, found in their nested dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import ClientError

__all__ = ["NO_CREDENTIALS", "S3_DENIED", "error_code", "error_words", "named_region"]

NO_CREDENTIALS: Final = "no AWS credentials found; set AWS_PROFILE or run `aws configure`"
"""What NoCredentialsError means, in our words."""

S3_DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden"})
"""S3's codes for a missing permission. Its answer to a HEAD has no body, so the status stands for the code there."""

_MOST_WORDS: Final = 500


def error_code(error: ClientError) -> str:
    """The service's code for its refusal; empty where it gave none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_words(error: ClientError) -> str:
    """The service's own words, on one line; empty where it gave none. Of another program's page it is the beginning."""
    words = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}…"


def named_region(answer: Mapping[str, Any]) -> str | None:
    """The region that S3 names in an answer about a bucket, which it does in refusals too; None where it names none."""
    region = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return str(region) if region else None
