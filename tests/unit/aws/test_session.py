from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError

from batchcl.aws.credentials import FixedCredentials
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.aws.store_access import StoreAccess, find_store_access_blocking
from batchcl.errors import CredentialsError, RefusedError
from unit.emulator.harness import running_server

SECRET = "s3cr3t/Key+Value"


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS settings."""
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


def test_start_is_sent_once_and_other_operations_are_retried() -> None:
    """A second StartProjectVersion is refused, because the first one had an effect."""
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


def test_no_repr_contains_a_secret() -> None:
    settings = AwsSettings(rekognition_credentials=StaticCredentials("AKID", SECRET))
    access = StoreAccess("eu-west-1", "https://b.s3.eu-west-1.amazonaws.com", FixedCredentials("AKID", SECRET))
    for thing in (settings, settings.rekognition_credentials, Aws(settings), access):
        assert SECRET not in repr(thing)
    assert "AKID" in repr(settings)


def test_the_region_has_the_documented_precedence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Aws().region == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert Aws().region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert Aws().region == "eu-north-1", "as the AWS CLI has it, though botocore alone doesn't"
    assert Aws.from_environment(region="ap-south-1").region == "ap-south-1"


@pytest.mark.usefixtures("keys")
def test_a_services_own_endpoint_setting_has_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_missing_credentials_are_found_by_the_check() -> None:
    with pytest.raises(CredentialsError, match=r"no AWS credentials found; set AWS_PROFILE .*`batchcl demo`"):
        anyio.run(Aws().check_credentials)


@pytest.mark.usefixtures("keys")
def test_keys_of_the_environment_are_credentials() -> None:
    anyio.run(Aws().check_credentials)


def test_explicit_keys_are_checked_for_rekognition_only() -> None:
    aws = Aws(AwsSettings(rekognition_credentials=StaticCredentials("AKID", SECRET)))
    anyio.run(aws.check_credentials)
    with pytest.raises(CredentialsError, match="no AWS credentials found"):
        find_store_access_blocking(aws, "b")


CONFIG = """[profile of-services]
services = local
[profile of-itself]
endpoint_url = tables:9000
[services local]
s3 =
  endpoint_url = 127.0.0.1:8333
"""


BOTH = ("s3", "blocking_s3", "rekognition")
S3 = ("s3", "blocking_s3")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("services", "variable", "value", "named"),
    [
        (BOTH, "AWS_ENDPOINT_URL", "foo", "AWS_ENDPOINT_URL is not a URL: .*foo"),
        (BOTH, "AWS_ENDPOINT_URL", "ftp://host", "AWS_ENDPOINT_URL is not a URL: .*ftp://host"),
        (BOTH, "AWS_ENDPOINT_URL", "http://host:99999", "AWS_ENDPOINT_URL is not a URL: Port out of range"),
        (S3, "AWS_ENDPOINT_URL_S3", "127.0.0.1:8333", r"AWS_ENDPOINT_URL_S3 is not a URL: .*127\.0\.0\.1:8333"),
        (("rekognition",), "AWS_ENDPOINT_URL_REKOGNITION", "a:1", "AWS_ENDPOINT_URL_REKOGNITION is not a URL"),
        (S3, "AWS_PROFILE", "of-services", r"endpoint_url of s3 in \[services local\] of the AWS config is not a URL"),
        (BOTH, "AWS_PROFILE", "of-itself", "endpoint_url of profile of-itself in the AWS config is not a URL"),
        (BOTH, "AWS_REGION", "foo bar", "foo bar.*check the region"),
    ],
)
def test_a_malformed_endpoint_is_refused_with_its_setting(
    services: tuple[str, ...], variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(CONFIG)
    monkeypatch.setenv(variable, value)
    for service in services:
        with pytest.raises(RefusedError, match=named):
            Aws().blocking_s3() if service == "blocking_s3" else meta(Aws(), service)


def test_a_malformed_explicit_endpoint_is_refused() -> None:
    aws = Aws(
        AwsSettings(rekognition_endpoint_url="foo", rekognition_credentials=StaticCredentials("emulator", "emulator"))
    )
    with pytest.raises(RefusedError, match="the endpoint is not a URL"):
        meta(aws, "rekognition")


@pytest.mark.usefixtures("keys")
def test_ignored_endpoints_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "foo")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert meta(Aws(), "s3").endpoint_url == "https://s3.amazonaws.com"
