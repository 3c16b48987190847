"""Where requests to a service go, and by which way: as botocore has it, by its own rules.

The rules (regions, partitions, FIPS, dual-stack, `AWS_ENDPOINT_URL…`, services sections of a profile, virtual-host or
path style) are not written anew here: botocore prepares one request, and what it would have sent is read off.
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
from batchcl.errors import RefusedError

__all__ = ["Endpoint", "find_endpoint", "tls_context"]

_SCOPE: Final = re.compile(r"Credential=[^,]*/\d{8}/([^/,]+)/([^/,]+)/aws4_request")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The root of a service's, or of a bucket's, URLs.

    Attributes:
        url: scheme and host, without a slash at its end.
        root: path below which the service's, or the bucket's, paths lie; encoded, without a slash at its end.
        host: as the Host header has it.
        region: of the signature's scope.
        signing_name: the service in the signature's scope.
        proxy: to connect through, without its user and password.
        proxy_headers: for the proxy alone: its credentials, where it has a user.
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
        """Whether requests are encrypted, through a tunnel where there is a proxy."""
        return self.url.startswith("https:")


async def find_endpoint(aws: Aws, service: str, *, region: str, bucket: str | None = None) -> Endpoint:
    """The endpoint of `service`, or of a bucket of S3. Connects to nothing but where the credentials come from.

    Raises:
        CredentialsError: there are none.
        RefusedError: botocore knows no endpoint for it, or the proxy's address is none.
    """
    try:
        prepared, authorization = await _prepared(aws, service, region, bucket)
        url = URL(prepared, encoded=True)
    except (BotoCoreError, ValueError) as error:
        raise RefusedError(
            f"finding the endpoint of {service} failed: {error}; check the AWS_ENDPOINT_URL settings, the profile and "
            "the region"
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
    """The certificates that `AWS_CA_BUNDLE`, the config file's `ca_bundle` or botocore's own list trust.

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
        why = error.strerror or str(error)
        raise RefusedError(
            f"the CA certificates in {path} can't be read: {why}; check AWS_CA_BUNDLE and ca_bundle in the AWS config"
        ) from error


def _proxy_for(origin: str) -> tuple[URL | None, dict[str, str]]:
    """The proxy of the environment, as botocore finds it, and its credentials: apart, as errors name the proxy."""
    found = ProxyConfiguration(get_environ_proxies(origin)).proxy_url_for(origin)
    if not found:
        return None, {}
    try:
        proxy = URL(found)
    except ValueError:
        proxy = URL()
    if not proxy.host or not proxy.port or proxy.path not in {"", "/"}:
        raise RefusedError(
            "HTTPS_PROXY or HTTP_PROXY is not the address of a proxy; write it like http://host:3128"
        ) from None
    if proxy.user is None:
        return proxy, {}
    credentials = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return proxy.with_user(None), {"Proxy-Authorization": f"Basic {credentials}"}


class _ReadOff(Exception):  # noqa: N818 - not an error: it ends a request that was only to be prepared
    def __init__(self, url: str, authorization: str) -> None:
        super().__init__(url)
        self.url = url
        self.authorization = authorization


async def _prepared(aws: Aws, service: str, region: str, bucket: str | None) -> tuple[str, str]:
    """URL and Authorization header of a request that botocore prepares and that never leaves."""
    opened: AbstractAsyncContextManager[Any]
    opened = aws.rekognition(region=region, retries=False) if service == "rekognition" else aws.s3(region=region)
    async with opened as client:

        def read_off(request: Any, **_: Any) -> None:
            authorization = request.headers.get("Authorization", b"")
            text = authorization.decode() if isinstance(authorization, bytes) else str(authorization)
            raise _ReadOff(str(request.url), text)

        client.meta.events.register_first(f"before-send.{service}.*", read_off)
        try:
            if service == "rekognition":
                await client.describe_projects()
            elif bucket is None:
                await client.list_buckets()
            else:
                await client.list_objects_v2(Bucket=bucket)
        except _ReadOff as found:
            return found.url, found.authorization
    raise AssertionError("botocore sent a request without its before-send event")
