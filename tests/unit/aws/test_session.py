from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError

from batchcl.aws import session
from batchcl.aws.credentials import FixedCredentials
from batchcl.aws.session import Aws, AwsSettings, S3Access, StaticCredentials
from batchcl.errors import CredentialsError
from unit.emulator.harness import running_server

SECRET = "s3cr3t/Key+Value"


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which AWS is not configured at all."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-" + SECRET)


def test_a_start_is_sent_once_and_what_else_is_asked_for() -> None:
    """A second StartProjectVersion is refused as the first one has taken effect."""
    faults = {"faults": [{"kind": "internal", "operation": name} for name in ("StartProjectVersion", "TagResource")]}
    arn = "arn:aws:rekognition:us-east-1:123456789012:project/cats/version/v1/1700000000000"
    with running_server() as server:
        request = urllib.request.Request(
            f"{server.endpoint}/_emulator/faults", json.dumps(faults).encode(), method="PUT"
        )
        urllib.request.urlopen(request).close()

        async def main() -> None:
            keys = StaticCredentials("emulator", "emulator")
            aws = Aws(AwsSettings(rekognition_endpoint_url=server.endpoint, rekognition_credentials=keys))
            async with aws.rekognition() as client:
                with pytest.raises(ClientError, match="InternalServerError"):
                    await client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
            async with aws.rekognition(once=["TagResource"]) as client:
                with pytest.raises(ClientError, match="InternalServerError"):
                    await client.tag_resource(ResourceArn=arn, Tags={"a": "b"})

        anyio.run(main)
        with urllib.request.urlopen(f"{server.endpoint}/_emulator/faults") as response:
            assert [each["met"] for each in json.load(response)["faults"]] == [1, 1]


def meta(aws: Aws, service: str, **options: Any) -> Any:
    async def main() -> Any:
        async with getattr(aws, service)(**options) as client:
            return client.meta

    return anyio.run(main)


def test_no_repr_shows_a_secret() -> None:
    settings = AwsSettings(rekognition_credentials=StaticCredentials("AKID", SECRET))
    access = S3Access("eu-west-1", None, FixedCredentials("AKID", SECRET))
    for thing in (settings, settings.rekognition_credentials, Aws(settings), access):
        assert SECRET not in repr(thing)
    assert "AKID" in repr(settings)


def test_the_region_is_that_of_the_settings_then_the_environment_then_us_east_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Aws().region == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert Aws().region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert Aws().region == "eu-north-1", "as the AWS CLI has it, though botocore alone doesn't"
    assert Aws.from_environment(region="ap-south-1").region == "ap-south-1"


@pytest.mark.usefixtures("keys")
def test_endpoints_come_from_the_standard_settings_the_services_own_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meta(Aws(), "rekognition").endpoint_url == "https://rekognition.us-east-1.amazonaws.com"
    assert meta(Aws(), "rekognition", region="eu-west-1").endpoint_url == "https://rekognition.eu-west-1.amazonaws.com"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert meta(Aws(), "rekognition").endpoint_url == "http://127.0.0.1:1"
    assert meta(Aws(), "s3").endpoint_url == "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_REKOGNITION", "http://127.0.0.1:2")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    assert meta(Aws(), "rekognition").endpoint_url == "http://127.0.0.1:2"
    assert meta(Aws(), "s3").endpoint_url == "http://127.0.0.1:3"
    given = AwsSettings(rekognition_endpoint_url="http://127.0.0.1:4")
    assert meta(Aws(given), "rekognition").endpoint_url == "http://127.0.0.1:4"
    assert meta(Aws(given), "s3").endpoint_url == "http://127.0.0.1:3"


@pytest.mark.usefixtures("keys")
def test_only_the_scoring_path_turns_the_sdks_retries_off() -> None:
    scoring = meta(Aws(), "rekognition", retries=False, connections=77).config
    assert scoring.retries["total_max_attempts"] == 1
    assert scoring.max_pool_connections == 77
    assert meta(Aws(), "rekognition").config.retries["total_max_attempts"] == 6
    assert meta(Aws(), "s3").config.retries["total_max_attempts"] == 6


def test_an_unknown_profile_is_refused_with_its_name() -> None:
    with pytest.raises(CredentialsError, match=r"nosuch.*--profile"):
        Aws.from_environment(profile="nosuch")


def test_missing_credentials_are_found_before_anything_is_spent() -> None:
    with pytest.raises(CredentialsError, match=r"no AWS credentials found; set AWS_PROFILE .*`batchcl demo`"):
        anyio.run(Aws().check_credentials)


@pytest.mark.usefixtures("keys")
def test_keys_of_the_environment_are_credentials() -> None:
    anyio.run(Aws().check_credentials)


def test_given_keys_are_credentials_for_rekognition_alone() -> None:
    aws = Aws(AwsSettings(rekognition_credentials=StaticCredentials("AKID", SECRET)))
    anyio.run(aws.check_credentials)
    with pytest.raises(CredentialsError, match="no AWS credentials found"):
        aws.s3_access("b")


@pytest.mark.usefixtures("keys")
def test_other_s3_clients_get_region_endpoint_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_bucket_region", lambda _client, _bucket: "eu-west-3")
    standard = Aws().s3_access("b")
    assert (standard.region, standard.endpoint_url) == ("eu-west-3", None)
    assert standard.scan_options() == {
        "aws_region": "eu-west-3",
        "aws_access_key_id": "AKIDTEST",
        "aws_secret_access_key": SECRET,
        "aws_session_token": "token-" + SECRET,
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    monkeypatch.setattr(session, "_bucket_region", lambda _client, _bucket: None)
    local = Aws().s3_access("b")
    assert (local.region, local.endpoint_url) == ("us-east-1", "http://127.0.0.1:3")
    options = local.scan_options()
    assert options["aws_endpoint_url"] == "http://127.0.0.1:3"
    assert options["aws_allow_http"] == "true"
    assert options["aws_virtual_hosted_style_request"] == "false"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:3")
    assert Aws().s3_access("b").scan_options()["aws_allow_http"] == "false"
