from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchcl.aws.errors import classify, read_error
from batchcl.errors import (
    CallError,
    FatalCallError,
    ImageError,
    ModelNotReadyError,
    RejectedError,
    ThrottledError,
    TransientError,
)

TABLE: list[tuple[str, str, int | None, type[CallError]]] = [
    ("ProvisionedThroughputExceededException", "Provisioned Rate exceeded", 400, ThrottledError),
    ("ProvisionedThroughputExceededException", "S3 download limit exceeded", 400, ThrottledError),
    ("ThrottlingException", "Slow down; sudden increase in rate of requests", 400, ThrottledError),
    ("ThrottlingException", "Service Unavailable", 500, TransientError),
    ("InternalServerError", "Internal server error", 500, TransientError),
    ("503", "Service Unavailable", 503, TransientError),
    ("Unknown", "", 502, TransientError),
    ("Unknown", "", None, TransientError),
    ("RequestTimeout", "too slow", 400, TransientError),
    ("RequestTimeTooSkewed", "The difference is too large", 403, FatalCallError),
    ("SignatureDoesNotMatch", "Signature expired: 20261121T000000Z is now earlier than", 403, FatalCallError),
    ("InvalidSignatureException", "Signature not yet current: 2026", 400, FatalCallError),
    ("InvalidSignatureException", "The request signature we calculated does not match", 400, FatalCallError),
    ("ExpiredTokenException", "The security token included in the request is expired", 400, FatalCallError),
    ("LimitExceededException", "limit", 400, ModelNotReadyError),
    ("ImageTooLargeException", "Image dimensions: 63x64", 400, ImageError),
    ("InvalidImageFormatException", "Request has invalid image format", 400, ImageError),
    ("InvalidS3ObjectException", "Unable to get object metadata from S3", 400, RejectedError),
    ("InvalidParameterException", "Request has invalid parameters", 400, RejectedError),
    ("InvalidParameterException", "arn:aws:s3:::pics/projectVersionArn.jpg is not valid", 400, RejectedError),
    ("AccessDeniedException", "not authorized", 400, RejectedError),
    ("ResourceNotFoundException", "no such model", 400, RejectedError),
    ("UnrecognizedClientException", "the security token is invalid", 400, FatalCallError),
    ("ResourceNotReadyException", "not RUNNING", 400, ModelNotReadyError),
    ("SomethingNewException", "who knows", 400, RejectedError),
]


@pytest.mark.parametrize(("code", "message", "status", "kind"), TABLE)
@pytest.mark.parametrize("prefix", ["", "com.amazonaws.rekognition#", "a#b#"])
def test_each_row_of_the_table_has_its_class(
    code: str, message: str, status: int | None, kind: type[CallError], prefix: str
) -> None:
    error = classify(prefix + code, message, status=status, request_id="r-1")
    assert type(error) is kind
    assert (error.code, error.status, error.request_id) == (code, status, "r-1")
    assert str(error).startswith(message)


def test_only_slow_down_is_a_sudden_increase() -> None:
    ramp = classify("ThrottlingException", "Slow down", status=400)
    rate = classify("ProvisionedThroughputExceededException", "Rate exceeded", status=400)
    assert isinstance(ramp, ThrottledError)
    assert isinstance(rate, ThrottledError)
    assert (ramp.sudden, rate.sudden) == (True, False)


def test_the_s3_download_limit_is_not_the_models() -> None:
    told = {}
    for message in ("Provisioned Rate exceeded", "S3 download limit exceeded"):
        error = classify("ProvisionedThroughputExceededException", message, status=400)
        assert isinstance(error, ThrottledError)
        told[message] = error.downloads
    assert told == {"Provisioned Rate exceeded": False, "S3 download limit exceeded": True}


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        ("RequestTimeTooSkewed", "skew", "clock is off"),
        ("SignatureDoesNotMatch", "Signature expired: x", "clock is off"),
        ("SignatureDoesNotMatch", "no match", "secret key does not match"),
        ("ExpiredTokenException", "expired", "log in again"),
        ("AccessDeniedException", "no", "allow rekognition:DetectCustomLabels"),
        ("ResourceNotFoundException", "no", "batchcl model list"),
        ("UnrecognizedClientException", "no", "check the profile"),
    ],
)
def test_what_is_fatal_says_what_to_do(code: str, message: str, advice: str) -> None:
    assert advice in str(classify(code, message, status=400))


@pytest.mark.parametrize("code", ["ExpiredTokenException", "ExpiredToken", "RequestExpired"])
def test_expired_credentials_are_fatal_by_every_name(code: str) -> None:
    assert isinstance(classify(code, "", status=400), FatalCallError)


@example("AccessDeniedException", ".", 400)
@given(
    st.one_of(st.sampled_from([row[0] for row in TABLE]), st.text()),
    st.text(),
    st.one_of(st.none(), st.integers(min_value=0, max_value=999)),
)
def test_any_error_gets_a_class_and_keeps_its_message(code: str, message: str, status: int | None) -> None:
    error = classify(code, message, status=status)
    assert type(error) in {
        FatalCallError,
        ImageError,
        ModelNotReadyError,
        RejectedError,
        ThrottledError,
        TransientError,
    }
    assert message.rstrip(".") in str(error)  # advice may follow the service's message
    assert "#" not in error.code


def test_an_error_without_a_message_has_advice() -> None:
    for message in ("", "."):
        assert str(classify("AccessDeniedException", message, status=400)).startswith("allow ")


def test_a_truncated_error_body_is_transient():
    assert isinstance(classify("400", "Bad Request", status=400), TransientError)


MOVED = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message><Region>eu-west-1</Region></Error>"


@pytest.mark.parametrize(
    ("headers", "body", "region"),
    [
        ({}, MOVED, "eu-west-1"),
        ({"x-amz-bucket-region": "eu-west-3"}, MOVED, "eu-west-3"),
        ({"x-amz-bucket-region": "eu-west-3"}, b"", "eu-west-3"),
        ({}, b"<html><Region>mars</Region></html>", None),
        ({}, b'{"__type": "ThrottlingException"}', None),
    ],
)
def test_the_bucket_region_in_a_response_is_read(headers: dict[str, str], body: bytes, region: str | None) -> None:
    assert read_error(400, headers, body).region == region


def test_a_users_key_in_a_message_does_not_change_the_class() -> None:
    """Any key in a message fails only its own image."""
    for key in ("arn:aws:rekognition", "versionArn", "signature expired", "slow down", "s3"):
        error = classify(
            "InvalidParameterException", f"1 validation error detected: Value '{key}' at 'name'", status=400
        )
        assert type(error) is RejectedError
        assert not error.is_general
        wrong_key = classify("SignatureDoesNotMatch", f"no match for {key}", status=403)
        assert "secret key does not match" in str(wrong_key)
        throttled = classify("ProvisionedThroughputExceededException", f"no room for {key}", status=400)
        sudden = classify("ThrottlingException", f"no room for {key}", status=400)
        assert isinstance(throttled, ThrottledError)
        assert isinstance(sudden, ThrottledError)
        assert (throttled.downloads, sudden.sudden) == (False, False)
