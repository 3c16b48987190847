"""What the errors of AWS mean: those of a service, of the SDK and of the connection, as batchcl's own.

`classify` and its neighbours serve the scoring path, where each error becomes a `CallError` that says what the run
does next. `translate_errors` serves everything else, where an error ends the command with one sentence.

Source of the codes: the error list of DetectCustomLabels in the API reference, and the developer guide's page on error
handling. Codes decide; texts that can contain a user's key or path never do.
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
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError, SSLError

from batchcl.errors import (
    BatchclError,
    CallError,
    CredentialsError,
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
    "connection_error",
    "error_code",
    "error_message",
    "is_clock_error",
    "is_keys_error",
    "is_shortage",
    "malformed_response",
    "read_error",
    "redirect_error",
    "shortage",
    "translate_errors",
    "was_too_late",
]

NO_CREDENTIALS: Final = (
    "no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`; "
    "`batchcl demo` shows batchcl without any"
)
"""What is to be done where no provider finds any."""

INVALID_S3_OBJECT: Final = "InvalidS3ObjectException"
"""Missing key, wrong region and no permission look the same to the caller."""

S3_DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden"})
"""S3's codes for a missing permission. A response to HEAD has no body, so the status stands for the code there."""

_EXPIRED: Final = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired"})

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Statuses of responses that send a request elsewhere, which would need another signature."""

_MALFORMED: Final = "MalformedAnswer"
"""The code of a response that is not the API's: it was cut on its way, or another program sent it."""

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
"""What the messages of throttled calls begin with; what comes later in a message may be a user's key."""

_VERDICTS: Final = frozenset({"ImageTooLargeException", "InvalidImageFormatException"})
"""Codes for which the service has read the picture."""

_GENERAL: Final = frozenset({"AccessDeniedException", "ResourceNotFoundException"})
"""Codes that name a permission or the model: all calls have these in common, but not always the objects that they
name."""

_CALL_ADVICE: Final = {
    "AccessDeniedException": "allow rekognition:DetectCustomLabels on this model and s3:GetObject on its images",
    "ResourceNotFoundException": "check the model's ARN with `batchcl model list`",
    "UnrecognizedClientException": "these credentials are unknown to AWS: check the profile and its keys",
    "InvalidClientTokenId": "these credentials are unknown to AWS: check the profile and its keys",
    "MissingAuthenticationTokenException": "the request was not signed: check the profile",
    **dict.fromkeys(_CLOCK, "this machine's clock is off: set it (ntpdate, chrony)"),
    **dict.fromkeys(_SIGNATURE, "the secret key does not fit the access key"),
    **dict.fromkeys(_EXPIRED, "the credentials have expired: log in again"),
}
"""What to do about the codes that end a run, or may."""

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
        "the object must exist, its bucket lie in the project's region, and its bucket policy let Custom Labels read it"
    ),
    "LimitExceededException": "free something, or ask for a higher limit in Service Quotas",
    "ServiceQuotaExceededException": "free something, or ask for a higher limit in Service Quotas",
    "MalformedPolicyDocumentException": "write it as the developer guide's page on copying models shows",
    "InvalidPolicyRevisionIdException": "see the newest revision with `batchcl project policy list`",
    "ResourceNotReadyException": "wait until it is, and try again",
}


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """What an error response says.

    Attributes:
        code: without its namespace; the HTTP status where the response names none.
        message: the service's own words.
        region: that S3 says the bucket is in.
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
    """A code without `namespace#` before it and `:http://…` behind it."""
    return code.partition(":")[0].rpartition("#")[2]


def _first(fields: Mapping[str, Any], *names: str) -> str:
    found = next((fields[name] for name in names if fields.get(name)), "")
    return found if isinstance(found, str) else ""


def _json_fields(body: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _xml_fields(body: bytes) -> Mapping[str, Any]:
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat expands no external entities
    except ET.ParseError:
        return {}
    if root.tag.rpartition("}")[2] != "Error":
        return {}
    return {child.tag.rpartition("}")[2]: child.text or "" for child in root}


def error_code(error: ClientError) -> str:
    """The service's code; empty where it gave none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_message(error: ClientError) -> str:
    """The service's own words, on one line and cut after 500 characters; empty where it gave none."""
    message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def bucket_region(response: Mapping[str, Any]) -> str | None:
    """The region that S3 names in a response about a bucket, errors included; None where it names none."""
    named = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    region = named or response.get("Error", {}).get("Region")
    return str(region) if region else None


# --- one call of the scoring path -----------------------------------------------------------------------------------


def classify(code: str, message: str, *, status: int | None, request_id: str = "") -> CallError:
    """The `CallError` subclass for an error response of DetectCustomLabels.

    Args:
        code: its error code; a `namespace#` prefix is ignored.
        message: its own words.
        status: HTTP status, which tells the two forms of ThrottlingException apart.
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
    kind: type[CallError] = ImageError if code in _VERDICTS else RejectedError
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
        kind = TransientError  # a bare number stands for a body that was cut
    return kind(message, code=code, status=status, request_id=request_id)


def is_clock_error(code: str, message: str) -> bool:
    """Whether the service refuses a request for its time; where the code is a signature's, its message says so."""
    about_time = message.lower().startswith(("signature expired", "signature not yet current"))
    return code in _CLOCK or (code in _SIGNATURE and about_time)


def is_keys_error(code: str, message: str) -> bool:
    """Whether a service refuses the keys, which may have expired or been rotated: worth a look-up of newer ones."""
    return code in _REFUSED_KEYS and not is_clock_error(code, message)


def connection_error(error: Exception, *, where: str) -> CallError:
    """The error for a call to `where` that got no response, for what aiohttp or a socket raised.

    Fatal are a certificate that isn't trusted, a failed TLS negotiation, and a proxy that wants credentials; all else
    is transient. `code` is `Tls`, `Proxy`, `Timeout`, `Unreachable`, `ConnectionLost`, `MalformedAnswer`, or the
    error's name.
    """
    return shortage(error) if is_shortage(error) else _lost(error, where)


def _lost(error: Exception, where: str) -> CallError:
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
    """Whether `error`, or what caused it, is this machine's lack of file descriptors, buffers or memory."""
    while error is not None:
        inner = getattr(error, "os_error", None) or error
        if isinstance(inner, MemoryError) or getattr(inner, "errno", None) in _SHORTAGES:
            return True
        error = error.__cause__ or error.__context__
    return False


def shortage(error: Exception) -> ShortageError:
    """The error for a call that this machine had no resources for."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ShortageError(f"this machine has no resources for another call: {reason}", code="Shortage")


def malformed_response() -> TransientError:
    """A response that is not the API's."""
    return TransientError("malformed response", code=_MALFORMED)


class RedirectedError(BotoCoreError):  # type: ignore[misc]  # botocore has no types
    """A response that sends a request elsewhere. Nothing is sent there: a redirect can name any host."""

    fmt = "{where} answered {status} and redirects to {location}"


def redirect_error(error: RedirectedError) -> FatalCallError:
    """The error for a call that is redirected."""
    status = error.kwargs["status"]
    advice = "check the region, the AWS_ENDPOINT_URL settings and the proxy"
    return FatalCallError(f"{error}; {advice}", code=str(status), status=status)


def _proxy_error(status: int, where: str) -> CallError:
    if status == _PROXY_AUTHENTICATION:
        return FatalCallError(
            f"the proxy wants other credentials before it lets {where} through; check HTTPS_PROXY and HTTP_PROXY",
            code="Proxy",
            status=status,
        )
    return TransientError(f"the proxy doesn't let {where} through: it answered {status}", code="Proxy", status=status)


def _was_aborted(error: Exception) -> bool:
    """Whether connecting ended because the other side went away, rather than for what it said or as it isn't there."""
    return isinstance(getattr(error, "os_error", None), _ABORTED)


# --- everything else ------------------------------------------------------------------------------------------------


@contextmanager
def translate_errors(
    doing: str, *, refusal: type[RefusedError] = RefusedError, in_use: str | None = None
) -> Iterator[None]:
    """Turn the SDK's errors inside the block into batchcl's.

    Args:
        doing: what the block does to what, such as "creating the project cats".
        refusal: the class of an error for which there is no better one; `ModelError` where a model is to blame.
        in_use: what to do where the service says ResourceInUseException or ResourceAlreadyExistsException, which mean
            something else for each action.

    Raises:
        CredentialsError: there are no credentials, or AWS refuses them or the action.
        UnreachableError: the service doesn't answer, or is too busy to, or another program answers.
        UsageError: an argument breaks the service's own rules, so that nothing was sent.
        RefusedError: the service refuses, with its own words.
    """
    try:
        yield
    except ClientError as error:
        raise _from_client_error(doing, error, refusal, in_use) from error
    except ParamValidationError as error:
        why = str(error).partition("\n")[2].replace("\n", "; ") or str(error)
        raise UsageError(f"{doing} failed: {why}") from error
    except SSLError as error:
        raise UnreachableError(f"{doing} failed: {error}; set AWS_CA_BUNDLE to your CA's file") from error
    except BotoCoreError as error:
        raise UnreachableError(f"{doing} failed: {error}; check the region, the endpoint and the network") from error
    except Exception as error:
        if not _was_parsing(error):
            raise
        raise UnreachableError(f"{doing} failed: {malformed_response()}; check the endpoint and the proxy") from error


def cause_code(error: BaseException | None) -> str:
    """The service's code for the refusal that `error` was made of; empty where it has none."""
    cause = error.__cause__ if error is not None else None
    return error_code(cause) if isinstance(cause, ClientError) else ""


def cause_status(error: BaseException | None) -> int:
    """The HTTP status of the refusal that `error` was made of; 0 where there was no answer."""
    cause = error.__cause__ if error is not None else None
    response = cause.response if isinstance(cause, ClientError) else {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def was_too_late(error: BaseException) -> bool:
    """Whether a request was refused for its time, as it is when its process was suspended: it took no effect."""
    cause = error.__cause__
    return isinstance(cause, ClientError) and is_clock_error(error_code(cause), error_message(cause))


def _was_parsing(error: Exception) -> bool:
    """Whether botocore was reading a response: it does so without looking whether the JSON is what it expects."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").endswith("botocore.parsers") for frame, _ in frames)


def _from_client_error(doing: str, error: ClientError, refusal: type[RefusedError], in_use: str | None) -> BatchclError:
    code = error_code(error)
    what = f"{doing} failed: {code}: {error_message(error)}"
    sentence = what.rstrip(".")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "AccessDeniedException":
        return CredentialsError(f"{sentence}; allow the action in this identity's IAM policy", is_access_denied=True)
    if code in _BAD_CREDENTIALS:
        return CredentialsError(f"{sentence}; check the profile and its keys, or log in again")
    if code in {_THROTTLING, _THROUGHPUT} or status >= _SERVER_ERROR:
        return UnreachableError(f"{sentence}; try again later")
    advice = in_use if code in _TAKEN else _ADVICE.get(code)
    if code.isdigit():  # the API's codes are words
        advice = "it isn't AWS that answers; check the endpoint and the proxy"
    return refusal(what if advice is None else f"{sentence}; {advice}")
