"""The error responses of the service."""

from __future__ import annotations

from batchcl.errors import BatchclError

__all__ = [
    "ApiError",
    "access_denied",
    "in_use",
    "invalid_parameter",
    "invalid_s3_object",
    "not_found",
    "over_limit",
    "over_quota",
]


class ApiError(BatchclError):
    """An error response: `code` is the name of the exception in the Rekognition API, `status` the HTTP status."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def invalid_s3_object() -> ApiError:
    """A missing key, a missing bucket and a missing permission can't be distinguished by the caller."""
    return ApiError(
        "InvalidS3ObjectException",
        "Unable to get object metadata from S3. Check object key, region and/or access permissions.",
    )


def invalid_parameter(message: str = "Request has invalid parameters") -> ApiError:
    """A parameter violates a constraint."""
    return ApiError("InvalidParameterException", message)


def not_found(what: str) -> ApiError:
    """The resource doesn't exist in the caller's account and region."""
    return ApiError("ResourceNotFoundException", f"The resource {what} was not found.")


def in_use(message: str) -> ApiError:
    """The resource is in a state that doesn't allow the operation."""
    return ApiError("ResourceInUseException", message)


def access_denied(operation: str, arn: str) -> ApiError:
    """The resource belongs to another account."""
    return ApiError(
        "AccessDeniedException",
        f"User is not authorized to perform: rekognition:{operation} on resource: {arn}",
    )


def over_limit(message: str) -> ApiError:
    """Too many at the same time; a call can succeed when one of them has ended."""
    return ApiError("LimitExceededException", message)


def over_quota(message: str) -> ApiError:
    """Too many in total."""
    return ApiError("ServiceQuotaExceededException", message)
