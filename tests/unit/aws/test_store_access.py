"""obstore uses botocore's endpoints."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from batchcl.aws import store_access
from batchcl.aws.session import Aws
from batchcl.aws.store_access import find_store_access, find_store_access_blocking
from batchcl.errors import CredentialsError, RefusedError

LOCAL = "http://127.0.0.1:3"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")


@pytest.mark.parametrize(
    ("region", "variables", "url"),
    [
        ("eu-west-3", {}, "https://tables.s3.eu-west-3.amazonaws.com"),
        ("cn-north-1", {}, "https://tables.s3.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", {}, "https://tables.s3.us-gov-west-1.amazonaws.com"),
        ("us-east-2", {"AWS_USE_FIPS_ENDPOINT": "true"}, "https://tables.s3-fips.us-east-2.amazonaws.com"),
        ("us-east-2", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "https://tables.s3.dualstack.us-east-2.amazonaws.com"),
        ("eu-west-3", {"AWS_ENDPOINT_URL_S3": LOCAL}, f"{LOCAL}/tables"),
        ("eu-west-3", {"AWS_ENDPOINT_URL_S3": f"{LOCAL}/s3/"}, f"{LOCAL}/s3/tables"),
        (
            "eu-west-3",
            {"AWS_ENDPOINT_URL": LOCAL, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "https://tables.s3.eu-west-3.amazonaws.com",
        ),
    ],
)
def test_a_bucket_has_the_same_endpoint_as_with_botocore(
    region: str, variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    async def found(_aws: Aws, _bucket: str) -> str:
        return region

    monkeypatch.setattr(store_access, "_bucket_region", found)
    access = find_store_access_blocking(Aws(), "tables")
    assert (access.region, access.url) == (region, url)
    config = access.store_config()
    assert config["aws_endpoint_url_s3"] == url
    assert config["virtual_hosted_style_request"] == "true"
    assert access.allows_http == url.startswith("http:")


def test_an_unknown_bucket_region_is_the_sessions(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")  # no server responds there
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert find_store_access_blocking(Aws(), "tables").region == "ap-south-1"


def test_without_credentials_no_bucket_is_queried(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CredentialsError):
        anyio.run(find_store_access, Aws(), "tables")


def test_a_malformed_endpoint_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1:8333")
    with pytest.raises(RefusedError, match="AWS_ENDPOINT_URL_S3 is not a URL"):
        find_store_access_blocking(Aws(), "tables")


def test_waiting_for_a_silent_endpoint_can_be_cancelled(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{listening.getsockname()[1]}")

        async def main() -> None:
            with anyio.fail_after(15):  # the client itself would wait for twenty seconds
                async with anyio.create_task_group() as group:
                    group.start_soon(find_store_access, Aws(), "tables")
                    accepted, _ = await anyio.to_thread.run_sync(listening.accept)
                    group.cancel_scope.cancel()
            accepted.close()

        anyio.run(main)
