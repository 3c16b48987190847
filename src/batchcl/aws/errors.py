"""Translates errors of AWS services, the SDK and connections into batchcl's errors.

On the scoring path, `classify` and `connection_error` return a `CallError` whose class decides what the run does next.
Everywhere else, `translate_errors` raises an error that ends the command with one sentence.

Source of the codes: the error list of DetectCustomLabels in the API reference, and the developer guide's page on error
handling. Classification uses codes, never a message that can contain a user's key or path.
"""

from __future__ import annotations

import errno
import ssl
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError, ProxyConnectionError, SSLError

from batchcl.errors import (
    BatchclError,
    CallError,
    CredentialsError,
    ErrorCode,
    FatalCallError,
    ImageError,
    ModelNotReadyError,
    RefusedError,
    RejectedError,
    ShortageError,
    ThrottledError,
    TransientError,
    UnreachableError,
    UsageError,
)

__all__ = [
    "INVALID_S3_OBJECT",
    "NO_CREDENTIALS",
    "REDIRECTS",
    "S3_DENIED",
    "ErrorResponse",
    "RedirectedError",
    "bucket_region",
    "cause_code",
    "cause_status",
    "classify",
    "code_of",
    "connection_error",
    "error_code",
    "error_code_for",
    "error_message",
    "is_clock_error",
    "is_keys_error",
    "is_shortage",
    "malformed_response",
    "read_error",
    "redirect_error",
    "shortage",
    "translate_errors",
    "was_refused_for_clock",
]

NO_CREDENTIALS: Final = (
    "no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`; "
    "`batchcl demo` shows batchcl without any"
)
"""The message if no provider has credentials."""

INVALID_S3_OBJECT: Final = "InvalidS3ObjectException"
"""Rekognition's code for a missing key, a wrong region and a missing permission alike."""

S3_DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden"})
"""S3's codes for a missing permission. A response to HEAD has no body, so its status is the code."""

_EXPIRED: Final = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired"})

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Statuses of redirects, which are never followed: another host needs another signature."""

_MALFORMED: Final = "MalformedAnswer"
"""The code of a response that is truncated or does not come from the service."""

_SERVER_ERROR: Final = 500
_PROXY_AUTHENTICATION: Final = 407
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_LONGEST_MESSAGE: Final = 500

_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "RequestTimeTooSkewedException", "RequestInTheFuture"})
_SIGNATURE: Final = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature"})
_REFUSED_KEYS: Final = (
    _EXPIRED
    | _SIGNATURE
    | {"UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "InvalidToken"}
)
_THROUGHPUT: Final = "ProvisionedThroughputExceededException"
_THROTTLING: Final = "ThrottlingException"
_ABOUT_S3: Final = "s3 download limit"
_ABOUT_THE_RAMP: Final = "slow down"
"""The beginnings of two messages of throttled calls; the rest of a message may contain a user's key."""

_IMAGE_CODES: Final = frozenset({"ImageTooLargeException", "InvalidImageFormatException"})
"""Codes that the service returns after reading the image."""

_GENERAL: Final = frozenset({"AccessDeniedException", "ResourceNotFoundException"})
"""Codes for a permission or the model, which all calls share. AccessDenied may still concern a single object."""

_CALL_ADVICE: Final = {
    "AccessDeniedException": "allow rekognition:DetectCustomLabels on this model and s3:GetObject on its images",
    "ResourceNotFoundException": "check the model's ARN with `batchcl model list`",
    "UnrecognizedClientException": "these credentials are unknown to AWS: check the profile and its keys",
    "InvalidClientTokenId": "these credentials are unknown to AWS: check the profile and its keys",
    "MissingAuthenticationTokenException": "the request was not signed: check the profile",
    **dict.fromkeys(_CLOCK, "this machine's clock is off: set it (ntpdate, chrony)"),
    **dict.fromkeys(_SIGNATURE, "the secret key does not match the access key"),
    **dict.fromkeys(_EXPIRED, "the credentials have expired: log in again"),
}
"""Advice for the codes that can end a run."""

_ABORTED: Final = (
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
    ConnectionResetError,
    ConnectionAbortedError,
)

_BAD_CREDENTIALS: Final = frozenset(
    {"UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException", "InvalidSignatureException"}
)
_TAKEN: Final = frozenset({"ResourceInUseException", "ResourceAlreadyExistsException"})
_ADVICE: Final = {
    INVALID_S3_OBJECT: (
        "check that the object exists, its bucket is in the project's region, and the bucket policy lets Custom Labels "
        "read it"
    ),
    "LimitExceededException": "delete or stop something, or request a higher limit in Service Quotas",
    "ServiceQuotaExceededException": "delete or stop something, or request a higher limit in Service Quotas",
    "MalformedPolicyDocumentException": "write it as the developer guide's page on copying models shows",
    "InvalidPolicyRevisionIdException": "see the newest revision with `batchcl project policy list`",
    "ResourceNotReadyException": "wait until it is ready, and try again",
}

_ERROR_CODES: Final[Mapping[str, ErrorCode]] = {
    "Credentials": ErrorCode.INVALID_AWS_SETTINGS,  # without a `CredentialsError` as its cause
    "Tls": ErrorCode.TLS,
    "Proxy": ErrorCode.PROXY,
    "ResourceNotFoundException": ErrorCode.NO_SUCH_RESOURCE,
    **dict.fromkeys(S3_DENIED | {"AccessDeniedException"}, ErrorCode.ACCESS_DENIED),
    **dict.fromkeys(_REFUSED_KEYS | {"MissingAuthenticationTokenException"}, ErrorCode.INVALID_CREDENTIALS),
    **dict.fromkeys(_CLOCK, ErrorCode.CLOCK_WRONG),
    **dict.fromkeys(_TAKEN | {"ResourceNotReadyException"}, ErrorCode.RESOURCE_IN_USE),
    **dict.fromkeys(("LimitExceededException", "ServiceQuotaExceededException"), ErrorCode.QUOTA_REACHED),
}
"""batchcl's codes for those of services and of calls."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The content of an error response.

    Attributes:
        code: without a namespace; the HTTP status if the response has no code.
        message: of the service.
        region: the bucket's, if S3 states it.
    """

    code: str
    message: str
    region: str | None = None


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> ErrorResponse:
    """The error in a response with `status` 300 or above: JSON of Rekognition or XML of S3. Raises nothing."""
    fields = _xml_fields(body) if body.lstrip()[:1] == b"<" else _json_fields(body)
    code = _first(fields, "__type", "Code", "code") or headers.get("x-amzn-ErrorType", "")
    return ErrorResponse(
        _plain(code) or str(status),
        _first(fields, "Message", "message", "errorMessage"),
        headers.get("x-amz-bucket-region") or _first(fields, "Region") or None,
    )


def _plain(code: str) -> str:
    """A code without a `namespace#` prefix and a `:http://…` suffix."""
    return code.partition(":")[0].rpartition("#")[2]


def _first(fields: Mapping[str, Any], *names: str) -> str:
    value = next((fields[name] for name in names if fields.get(name)), "")
    return value if isinstance(value, str) else ""


def _json_fields(body: bytes) -> Mapping[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _xml_fields(body: bytes) -> Mapping[str, Any]:
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat expands no external entities
    except ET.ParseError:
        return {}
    if root.tag.rpartition("}")[2] != "Error":
        return {}
    return {child.tag.rpartition("}")[2]: child.text or "" for child in root}


def error_code(error: ClientError) -> str:
    """The service's error code; empty if there is none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_message(error: ClientError) -> str:
    """The service's message, on one line and at most 500 characters; empty if there is none."""
    message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def bucket_region(response: Mapping[str, Any]) -> str | None:
    """The bucket's region in a response or error of S3; None if it does not state it."""
    header = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    region = header or response.get("Error", {}).get("Region")
    return str(region) if region else None


# --- one call of the scoring path -----------------------------------------------------------------------------------


def classify(code: str, message: str, *, status: int | None, request_id: str = "") -> CallError:
    """The `CallError` for an error response of DetectCustomLabels.

    Args:
        code: the error code; a `namespace#` prefix is ignored.
        message: the service's message.
        status: the HTTP status; a ThrottlingException with a 5xx status is a server error.
        request_id: of the call, for support cases.
    """
    code = code.rpartition("#")[2]
    is_server_error = status is None or status >= _SERVER_ERROR
    if code == _THROUGHPUT or (code == _THROTTLING and not is_server_error):
        return ThrottledError(
            message,
            code=code,
            status=status,
            request_id=request_id,
            sudden=code == _THROTTLING and message.lower().startswith(_ABOUT_THE_RAMP),
            downloads=code == _THROUGHPUT and message.lower().startswith(_ABOUT_S3),
        )
    kind: type[CallError] = ImageError if code in _IMAGE_CODES else RejectedError
    advice = _CALL_ADVICE["RequestTimeTooSkewed"] if is_clock_error(code, message) else _CALL_ADVICE.get(code)
    if advice is not None:
        message = f"{sentence}; {advice}" if (sentence := message.rstrip(".")) else advice
    if code in _GENERAL:
        return RejectedError(message, code=code, status=status, request_id=request_id, is_general=True)
    if advice is not None:
        kind = FatalCallError
    elif code in {"ResourceNotReadyException", "LimitExceededException"}:
        kind = ModelNotReadyError
    elif is_server_error or code.isdigit() or code in {"InternalServerError", "RequestTimeout"}:
        kind = TransientError  # without a code the body was truncated
    return kind(message, code=code, status=status, request_id=request_id)


def is_clock_error(code: str, message: str) -> bool:
    """Whether the service refuses a request for its time; a signature error is one if its message says so."""
    about_time = message.lower().startswith(("signature expired", "signature not yet current"))
    return code in _CLOCK or (code in _SIGNATURE and about_time)


def is_keys_error(code: str, message: str) -> bool:
    """Whether a service refuses the keys, which may have expired or been rotated; reloading them may help."""
    return code in _REFUSED_KEYS and not is_clock_error(code, message)


def connection_error(error: Exception, *, where: str) -> CallError:
    """The `CallError` for an exception of aiohttp or a socket: a call to the URL `where` without a response.

    An untrusted certificate, a failed TLS negotiation and a proxy that requires credentials are fatal; everything else
    is transient. `code` is `Tls`, `Proxy`, `Timeout`, `Unreachable`, `ConnectionLost`, `MalformedAnswer`, `Shortage` or
    the exception's name.
    """
    return shortage(error) if is_shortage(error) else _classify_exception(error, where)


def _classify_exception(error: Exception, where: str) -> CallError:
    reason = " ".join(str(error).split()) or type(error).__name__
    match error:
        case RedirectedError():
            return redirect_error(error)
        case aiohttp.ClientHttpProxyError():
            return _proxy_error(error.status, where)
        case aiohttp.ClientSSLError() | ssl.SSLCertVerificationError() if not _was_aborted(error):
            return FatalCallError(
                f"the TLS connection to {where} failed: {reason}; set AWS_CA_BUNDLE to your CA's file", code="Tls"
            )
        case TimeoutError():
            return TransientError(f"no response in time from {where}", code="Timeout")
        case aiohttp.ClientConnectorError() if not _was_aborted(error):
            return TransientError(f"{where} can't be reached: {reason}", code="Unreachable")
        case aiohttp.ClientResponseError():
            return TransientError(f"the response of {where} is not valid HTTP: {reason}", code=_MALFORMED)
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return TransientError(f"the connection to {where} was lost: {reason}", code="ConnectionLost")
        case _:
            return TransientError(f"the call to {where} failed: {reason}", code=type(error).__name__)


def is_shortage(error: BaseException | None) -> bool:
    """Whether `error`, or its cause, is a lack of file descriptors, buffers or memory on this machine."""
    while error is not None:
        inner = getattr(error, "os_error", None) or error
        if isinstance(inner, MemoryError) or getattr(inner, "errno", None) in _SHORTAGES:
            return True
        error = error.__cause__ or error.__context__
    return False


def shortage(error: Exception) -> ShortageError:
    """The error for a call for which this machine lacks resources."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ShortageError(f"this machine has no resources for another call: {reason}", code="Shortage")


def malformed_response() -> TransientError:
    """The error for a response that does not match the API."""
    return TransientError("malformed response", code=_MALFORMED)


class RedirectedError(BotoCoreError):  # type: ignore[misc]  # botocore has no types
    """A redirect. It is not followed, because it can name any host."""

    fmt = "{where} responded with {status} and redirects to {location}"


def redirect_error(error: RedirectedError) -> FatalCallError:
    """The error for a call whose response is a redirect."""
    status = error.kwargs["status"]
    advice = "check the region, the AWS_ENDPOINT_URL settings and the proxy"
    return FatalCallError(f"{error}; {advice}", code=str(status), status=status)


def _proxy_error(status: int, where: str) -> CallError:
    if status == _PROXY_AUTHENTICATION:
        return FatalCallError(
            f"the proxy requires other credentials for {where}; check HTTPS_PROXY and HTTP_PROXY",
            code="Proxy",
            status=status,
        )
    return TransientError(
        f"the proxy did not connect to {where}: it responded with {status}", code="Proxy", status=status
    )


def _was_aborted(error: Exception) -> bool:
    """Whether the other side closed the connection while it was being set up."""
    return isinstance(getattr(error, "os_error", None), _ABORTED)


# --- everything else ------------------------------------------------------------------------------------------------


@contextmanager
def translate_errors(
    doing: str, *, refusal: type[RefusedError] = RefusedError, in_use: str | None = None
) -> Iterator[None]:
    """Translate the SDK's errors in the block.

    Args:
        doing: the action and its object, such as "creating the project cats".
        refusal: the class of other errors; `ModelError` for actions on a model.
        in_use: advice for ResourceInUseException and ResourceAlreadyExistsException, whose meaning depends on the
            action.

    Raises:
        CredentialsError: there are no credentials, or AWS refuses them or the action.
        UnreachableError: the service does not respond, is overloaded, or the response is not the service's.
        UsageError: an argument breaks the service's rules; nothing was sent.
        RefusedError: the service refuses, with its message.
    """
    try:
        yield
    except ClientError as error:
        raise _from_client_error(doing, error, refusal, in_use) from error
    except ParamValidationError as error:
        reason = str(error).partition("\n")[2].replace("\n", "; ") or str(error)
        raise UsageError(f"{doing} failed: {reason}") from error
    except SSLError as error:
        raise UnreachableError(
            f"{doing} failed: {error}; set AWS_CA_BUNDLE to your CA's file", code=ErrorCode.TLS
        ) from error
    except ProxyConnectionError as error:
        raise UnreachableError(
            f"{doing} failed: {error}; check HTTPS_PROXY and HTTP_PROXY", code=ErrorCode.PROXY
        ) from error
    except BotoCoreError as error:
        raise UnreachableError(f"{doing} failed: {error}; check the region, the endpoint and the network") from error
    except Exception as error:
        if not _was_parsing(error):
            raise
        raise UnreachableError(f"{doing} failed: {malformed_response()}; check the endpoint and the proxy") from error


def code_of(error: BatchclError) -> str:
    """The code of the error that ends a command because of `error`, which may be one of a call."""
    if not isinstance(error, CallError):
        return error.code
    if isinstance(error.__cause__, RefusedError):
        return error.__cause__.code
    if isinstance(error, TransientError) or error.code.isdigit():
        return _ERROR_CODES.get(error.code, ErrorCode.SERVICE_UNREACHABLE)
    return _ERROR_CODES.get(error.code, ErrorCode.CALLS_REJECTED)


def error_code_for(code: str, *, default: ErrorCode = ErrorCode.REQUEST_REFUSED) -> ErrorCode:
    """The code for a service's error code; a status, in place of a code, is not the service's response."""
    return _ERROR_CODES.get(code, ErrorCode.SERVICE_UNREACHABLE if code.isdigit() else default)


def cause_code(error: BaseException | None) -> str:
    """The service's code in the cause of `error`; empty if there is none."""
    cause = error.__cause__ if error is not None else None
    return error_code(cause) if isinstance(cause, ClientError) else ""


def cause_status(error: BaseException | None) -> int:
    """The HTTP status in the cause of `error`; 0 without a response."""
    cause = error.__cause__ if error is not None else None
    response = cause.response if isinstance(cause, ClientError) else {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def was_refused_for_clock(error: BaseException) -> bool:
    """Whether a request was refused for its time, such as after the process was suspended; it had no effect."""
    cause = error.__cause__
    return isinstance(cause, ClientError) and is_clock_error(error_code(cause), error_message(cause))


def _was_parsing(error: Exception) -> bool:
    """Whether botocore's parser raised `error`: it does not check the JSON's structure."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").endswith("botocore.parsers") for frame, _ in frames)


def _from_client_error(doing: str, error: ClientError, refusal: type[RefusedError], in_use: str | None) -> BatchclError:
    code = error_code(error)
    message = f"{doing} failed: {code}: {error_message(error)}"
    sentence = message.rstrip(".")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "AccessDeniedException":
        return CredentialsError(f"{sentence}; allow the action in this identity's IAM policy", is_access_denied=True)
    if code in _BAD_CREDENTIALS:
        return CredentialsError(
            f"{sentence}; check the profile and its keys, or log in again", code=ErrorCode.INVALID_CREDENTIALS
        )
    if code in {_THROTTLING, _THROUGHPUT} or status >= _SERVER_ERROR:
        return UnreachableError(f"{sentence}; try again later")
    advice = in_use if code in _TAKEN else _ADVICE.get(code)
    if code.isdigit():  # a status: the response has no code of the API
        advice = "the response is not from AWS; check the endpoint and the proxy"
    return refusal(message if advice is None else f"{sentence}; {advice}", code=error_code_for(code))
