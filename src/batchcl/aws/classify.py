"""From an error's code to what the run does about it: one table, read by nobody's string match but this one.

Source: the error list of DetectCustomLabels in the API reference, and the developer guide's page on error handling.
"""

from __future__ import annotations

import re
from typing import Final

from batchcl.errors import (
    CallError,
    FatalCallError,
    ImageError,
    ModelNotReadyError,
    ThrottledError,
    TransientError,
)

__all__ = ["EXPIRED_CODES", "INVALID_S3_OBJECT", "blames_clock", "classify"]

INVALID_S3_OBJECT: Final = "InvalidS3ObjectException"
"""Missing key, wrong region and no permission look the same to the caller."""

EXPIRED_CODES: Final = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired"})
"""Credentials that were good once: worth one look-up of fresh ones."""

_SERVER_ERROR: Final = 500
_ABOUT_THE_ARN: Final = re.compile(r"versionarn|\barn\b", re.IGNORECASE)

_ABOUT_S3: Final = re.compile(r"\bs3\b", re.IGNORECASE)
_ABOUT_THE_RAMP: Final = re.compile(r"slow down|sudden|increase in rate", re.IGNORECASE)

_IMAGE: Final = frozenset(
    {"ImageTooLargeException", "InvalidImageFormatException", INVALID_S3_OBJECT, "InvalidParameterException"}
)
_PAUSE: Final = frozenset({"ResourceNotReadyException", "LimitExceededException"})
_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "RequestTimeTooSkewedException", "RequestInTheFuture"})
_SIGNATURE: Final = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature"})
_ADVICE: Final = {
    "AccessDeniedException": "allow rekognition:DetectCustomLabels on this model and s3:GetObject on its images",
    "ResourceNotFoundException": "check the model's ARN with `batchcl model list`",
    "UnrecognizedClientException": "these credentials are unknown to AWS: check the profile and its keys",
    "InvalidClientTokenId": "these credentials are unknown to AWS: check the profile and its keys",
    "MissingAuthenticationTokenException": "the request was not signed: check the profile",
}


def classify(code: str, message: str, *, status: int | None, request_id: str = "") -> CallError:
    """The `CallError` subclass for an answer of the service.

    Args:
        code: its error code; a `namespace#` prefix is ignored.
        message: its own words.
        status: HTTP status, which tells the two forms of ThrottlingException apart.
        request_id: of the call, for support cases.
    """
    code = code.rpartition("#")[2]
    said = message.rstrip(".")
    kind: type[CallError]
    if code == "ProvisionedThroughputExceededException":
        downloads = _ABOUT_S3.search(message) is not None
        return ThrottledError(message, code=code, status=status, request_id=request_id, downloads=downloads)
    if code == "ThrottlingException" and (status or 0) < _SERVER_ERROR:
        sudden = _ABOUT_THE_RAMP.search(message) is not None
        return ThrottledError(message, code=code, status=status, request_id=request_id, sudden=sudden)
    if code in _PAUSE:
        kind = ModelNotReadyError
    elif blames_clock(code, message):
        kind, message = FatalCallError, f"{said}; this machine's clock is off: set it (ntpdate, chrony)"
    elif code in _SIGNATURE:
        kind, message = FatalCallError, f"{said}; the secret key does not fit the access key"
    elif code in EXPIRED_CODES:
        kind, message = FatalCallError, f"{said}; the credentials have expired: log in again"
    elif code in _ADVICE:
        kind, message = FatalCallError, f"{said}; {_ADVICE[code]}"
    elif code == "InvalidParameterException" and _ABOUT_THE_ARN.search(message):
        kind, message = FatalCallError, f"{said}; {_ADVICE['ResourceNotFoundException']}"
    elif code in _IMAGE:
        kind = ImageError
    elif (
        status is None or status >= _SERVER_ERROR or code.isdigit() or code in {"InternalServerError", "RequestTimeout"}
    ):
        kind = TransientError  # a bare number is botocore's word for a body that was cut
    else:
        kind = ImageError  # an answer of this kind would be the same the next time
    return kind(message, code=code, status=status, request_id=request_id)


def blames_clock(code: str, message: str) -> bool:
    """Whether a refusal is about the time of the request: a signature's says which times it compared."""
    lowered = message.lower()
    return code in _CLOCK or (code in _SIGNATURE and ("expired" in lowered or "not yet current" in lowered))
