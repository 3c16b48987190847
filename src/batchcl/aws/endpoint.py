"""Finds the endpoint, certificates and proxy for a service or bucket, by botocore's own rules.

The rules (regions, partitions, FIPS, dual-stack, `AWS_ENDPOINT_URL…`, services sections of a profile, virtual-host or
path style) are not reimplemented: botocore prepares one request, and its URL and signature are read before it is sent.
"""

from __future__ import annotations

import base64
import re
import ssl
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError
from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies
from yarl import URL

from batchcl.aws.session import Aws
from batchcl.errors import ErrorCode, RefusedError

__all__ = ["Endpoint", "find_endpoint", "tls_context"]

_SCOPE: Final = re.compile(r"Credential=[^,]*/\d{8}/([^/,]+)/([^/,]+)/aws4_request")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The endpoint of a service or a bucket.

    Attributes:
        url: scheme and host, without a trailing slash.
        root: path prefix of all requests; encoded, without a trailing slash.
        host: value of the Host header.
        region: in the signature's scope.
        signing_name: the service in the signature's scope.
        proxy: to connect through, without user and password; None for a direct connection.
        proxy_headers: the proxy's credentials, which only the proxy receives.
    """

    url: str
    root: str
    host: str
    region: str
    signing_name: str
    proxy: URL | None
    proxy_headers: dict[str, str] = field(repr=False)

    @property
    def uses_tls(self) -> bool:
        """Whether requests use TLS; a proxy is then used as a tunnel."""
        return self.url.startswith("https:")


async def find_endpoint(aws: Aws, service: str, *, region: str, bucket: str | None = None) -> Endpoint:
    """The endpoint of `service`, or of an S3 bucket. Sends no request, except for loading credentials.

    Raises:
        CredentialsError: there are none.
        RefusedError: botocore finds no endpoint, or the proxy's address is invalid.
    """
    try:
        prepared_url, authorization = await _prepared(aws, service, region, bucket)
        url = URL(prepared_url, encoded=True)
    except (BotoCoreError, ValueError) as error:
        raise RefusedError(
            f"finding the endpoint of {service} failed: {error}; check the AWS_ENDPOINT_URL settings, the profile and "
            "the region",
            code=ErrorCode.INVALID_AWS_SETTINGS,
        ) from error
    scope = _SCOPE.search(authorization)
    origin = f"{url.scheme}://{url.host_port_subcomponent}"
    proxy, proxy_headers = _proxy_for(origin)
    return Endpoint(
        url=origin,
        root=url.raw_path.rstrip("/"),
        host=url.host_port_subcomponent or "",
        region=scope[1] if scope else region,
        signing_name=scope[2] if scope else service,
        proxy=proxy,
        proxy_headers=proxy_headers,
    )


def tls_context(aws: Aws) -> ssl.SSLContext:
    """A TLS context that trusts `AWS_CA_BUNDLE`, the config file's `ca_bundle`, or botocore's certificates.

    Raises:
        RefusedError: the bundle can't be read.
    """
    if not aws.settings.connection.is_verified:
        unchecked = ssl.create_default_context()
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        return unchecked
    bundle = aws.ca_bundle
    path = Path(str(get_cert_path(True))) if bundle is None else Path(bundle).expanduser()  # noqa: FBT003 - botocore's
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=str(path))
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise RefusedError(
            f"the CA certificates in {path} can't be read: {reason}; check AWS_CA_BUNDLE and ca_bundle in the AWS "
            "config",
            code=ErrorCode.INVALID_AWS_SETTINGS,
        ) from error


def _proxy_for(origin: str) -> tuple[URL | None, dict[str, str]]:
    """The environment's proxy, by botocore's rules, and its credentials: separate, because errors name the proxy."""
    address = ProxyConfiguration(get_environ_proxies(origin)).proxy_url_for(origin)
    if not address:
        return None, {}
    try:
        proxy = URL(address)
    except ValueError:
        proxy = URL()
    if not proxy.host or not proxy.port or proxy.path not in {"", "/"}:
        raise RefusedError(
            "HTTPS_PROXY or HTTP_PROXY is not the address of a proxy; write it like http://host:3128",
            code=ErrorCode.INVALID_AWS_SETTINGS,
        ) from None
    if proxy.user is None:
        return proxy, {}
    credentials = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return proxy.with_user(None), {"Proxy-Authorization": f"Basic {credentials}"}


class _PreparedRequest(Exception):  # noqa: N818 - not an error: it ends the request before it is sent
    def __init__(self, url: str, authorization: str) -> None:
        super().__init__(url)
        self.url = url
        self.authorization = authorization


async def _prepared(aws: Aws, service: str, region: str, bucket: str | None) -> tuple[str, str]:
    """URL and Authorization header of a request that botocore prepares; it is not sent."""
    opened: AbstractAsyncContextManager[Any]
    opened = aws.rekognition(region=region, retries=False) if service == "rekognition" else aws.s3(region=region)
    async with opened as client:

        def stop(request: Any, **_: Any) -> None:
            authorization = request.headers.get("Authorization", b"")
            text = authorization.decode() if isinstance(authorization, bytes) else str(authorization)
            raise _PreparedRequest(str(request.url), text)

        client.meta.events.register_first(f"before-send.{service}.*", stop)
        try:
            if service == "rekognition":
                await client.describe_projects()
            elif bucket is None:
                await client.list_buckets()
            else:
                await client.list_objects_v2(Bucket=bucket)
        except _PreparedRequest as prepared:
            return prepared.url, prepared.authorization
    raise AssertionError("botocore sent a request without its before-send event")
