"""What the control plane's errors mean, as ours: one sentence with what was being done and what to do about it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError, SSLError

from batchcl.aws.answers import NO_CREDENTIALS, error_code, error_words
from batchcl.errors import BatchclError, CredentialsError, RefusedError, UnreachableError, UsageError

__all__ = ["code_of", "explained"]

_CREDENTIAL_CODES: Final = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "ExpiredTokenException",
        "InvalidSignatureException",
    }
)
_BUSY_CODES: Final = frozenset({"ThrottlingException", "ProvisionedThroughputExceededException"})
_TAKEN_CODES: Final = frozenset({"ResourceInUseException", "ResourceAlreadyExistsException"})
_SERVER_ERROR: Final = 500

_ADVICE: Final = {
    "InvalidS3ObjectException": (
        "the object must exist, its bucket lie in the project's region, and its bucket policy let Custom Labels read it"
    ),
    "LimitExceededException": "free something, or ask for a higher limit in Service Quotas",
    "ServiceQuotaExceededException": "free something, or ask for a higher limit in Service Quotas",
    "MalformedPolicyDocumentException": "write it as the developer guide's page on copying models shows",
    "InvalidPolicyRevisionIdException": "see the newest revision with `batchcl project policy list`",
    "ResourceNotReadyException": "wait until it is, and try again",
}


@contextmanager
def explained(doing: str, *, refusal: type[RefusedError] = RefusedError, in_use: str | None = None) -> Iterator[None]:
    """Turn the SDK's errors inside the block into ours.

    Args:
        doing: what the block does to what, such as "creating the project cats".
        refusal: the class of an error for which there is no better one; `ModelError` where a model is to blame.
        in_use: what to do where the service says ResourceInUseException or ResourceAlreadyExistsException, which mean
            something else for each action.

    Raises:
        CredentialsError: there are no credentials, or AWS refuses them or the action.
        UnreachableError: the service doesn't answer, or is too busy to, or somebody else answers.
        UsageError: an argument breaks the service's own rules, so that nothing was sent.
        RefusedError: the service refuses, with its own words.
    """
    try:
        yield
    except NoCredentialsError as error:
        raise CredentialsError(f"{doing} failed: {NO_CREDENTIALS}") from error
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
        raise UnreachableError(
            f"{doing} failed: the answer has another shape than the API's; check the endpoint and the proxy"
        ) from error


def code_of(error: BaseException | None) -> str:
    """The service's own word for the refusal that `error` was made of; empty where it has none."""
    cause = error.__cause__ if error is not None else None
    return error_code(cause) if isinstance(cause, ClientError) else ""


def _was_parsing(error: Exception) -> bool:
    """Whether botocore was reading an answer: it does so without looking whether the JSON is what it expects."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").endswith("botocore.parsers") for frame, _ in frames)


def _from_client_error(doing: str, error: ClientError, refusal: type[RefusedError], in_use: str | None) -> BatchclError:
    code = error_code(error)
    what = f"{doing} failed: {code}: {error_words(error)}"
    said = what.rstrip(".")
    if code == "AccessDeniedException":
        return CredentialsError(f"{said}; allow the action in this identity's IAM policy", is_access_denied=True)
    if code in _CREDENTIAL_CODES:
        return CredentialsError(f"{said}; check the profile and its keys, or log in again")
    if code in _BUSY_CODES or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= _SERVER_ERROR:
        return UnreachableError(f"{said}; try again later")
    advice = in_use if code in _TAKEN_CODES else _ADVICE.get(code)
    if code.isdigit():  # the API's codes are words
        advice = "it isn't AWS that answers; check the endpoint and the proxy"
    return refusal(what if advice is None else f"{said}; {advice}")
