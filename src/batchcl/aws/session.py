"""One AWS session for everything: profile, region, endpoints and credentials by the standard AWS settings.

Botocore resolves them (`AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_REKOGNITION`,
`AWS_ENDPOINT_URL_S3`, `AWS_CA_BUNDLE`, `HTTPS_PROXY`, the shared config files, SSO, instance roles); this module adds
only what differs between the callers: retries, timeouts, connection pools.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aioboto3
import boto3
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import get_session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from yarl import URL

from batchcl.aws.errors import REDIRECTS, RedirectedError, bucket_region
from batchcl.errors import CredentialsError, RefusedError

__all__ = ["Aws", "AwsSettings", "Connection", "DirectSession", "S3Access", "StaticCredentials"]

DEFAULT_REGION: Final = "us-east-1"
_BYSTANDER_TIMEOUT_S: Final = 5
_BLOCKING_CONNECTIONS: Final = 16
_LOWEST_ERROR: Final = 300
_CREDENTIALS_TTL: Final = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """A key pair that is given rather than looked up; its repr hides the secret."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How clients connect.

    Attributes:
        is_verified: certificates are checked; without, anybody may listen.
        ca_bundle: file or directory of certificates to trust; None for what the environment says.
        is_signed: requests of the SDK are signed, which needs credentials. Those of `http` always are.
        connect_timeout_s: for one connection of a client; None to wait for ever.
        read_timeout_s: for the next bytes of an answer to a client; None likewise.
        max_attempts: of a client that retries by itself.
    """

    is_verified: bool = True
    ca_bundle: str | None = None
    is_signed: bool = True
    connect_timeout_s: float | None = 5
    read_timeout_s: float | None = 30
    max_attempts: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSettings:
    """What may differ from the environment; None means as the environment has it.

    `rekognition_credentials` serve Rekognition only: the emulator has its own, S3 has the ordinary ones.
    """

    profile: str | None = None
    region: str | None = None
    rekognition_endpoint_url: str | None = None
    rekognition_credentials: StaticCredentials | None = None
    connection: Connection = Connection()


@dataclass(frozen=True, slots=True)
class S3Access:
    """What an S3 client other than boto's needs. `credential_provider` gives fresh credentials at each call."""

    region: str
    endpoint_url: str | None
    credential_provider: Callable[[], Any] = field(repr=False)

    def scan_options(self) -> dict[str, Any]:
        """Polars' `storage_options`. They hold secrets: never log them."""
        credentials = self.credential_provider()
        options: dict[str, Any] = {
            "aws_region": self.region,
            "aws_access_key_id": credentials["access_key_id"],
            "aws_secret_access_key": credentials["secret_access_key"],
        }
        if credentials.get("token"):
            options["aws_session_token"] = credentials["token"]
        if self.endpoint_url is not None:
            options |= {
                "aws_endpoint_url": self.endpoint_url,
                "aws_allow_http": str(self.endpoint_url.startswith("http://")).lower(),
                "aws_virtual_hosted_style_request": "false",
            }
        return options


class DirectSession(AIOHTTPSession):  # type: ignore[misc]  # it has no types
    """The SDK's HTTP session, which would follow redirects and send X-Amz-Security-Token to any host that they name.

    Those of S3 that name a bucket's region are left to botocore, which signs a new request for that region's endpoint.
    """

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))

    async def send(self, request: Any) -> Any:
        """The response to `request`; raises `RedirectedError` for a redirect that names no region of S3's."""
        response = await super().send(request)
        _refuse_redirect((response, None))
        return response


def _refuse_redirect(response: tuple[Any, Any] | None, **_: Any) -> None:
    """Raise `RedirectedError` for a redirect that names no region.

    As a handler of boto3's `needs-retry` event it is called before botocore's own, which would look the bucket up, be
    redirected again, and so on without end.
    """
    answer = None if response is None else response[0]
    if answer is not None and answer.status_code in REDIRECTS and "x-amz-bucket-region" not in answer.headers:
        where = URL(answer.url).origin()
        raise RedirectedError(where=where, status=answer.status_code, location=answer.headers.get("location"))


def _end_attempts(
    response: tuple[Any, Any] | None, caught_exception: Exception | None, operation: Any, **_: Any
) -> None:
    """Raise what one attempt came to, before the SDK's own handler of `needs-retry` makes another one.

    The attempt after a StartProjectVersion whose answer was lost is refused as the model is starting, which reads as if
    somebody else had started it.
    """
    if caught_exception is not None:
        raise caught_exception
    if response is not None and response[0].status_code >= _LOWEST_ERROR:
        raise ClientError(response[1], operation.name)


class Aws:
    """A source of clients. Cheap to make; connects to nothing until a client is opened."""

    def __init__(self, settings: AwsSettings | None = None) -> None:
        self.settings = settings or AwsSettings()
        region = self.settings.region or os.environ.get("AWS_REGION")  # which botocore leaves to each SDK
        self._arguments = {"profile_name": self.settings.profile, "region_name": region or None}
        self._core = get_session()
        try:
            self._session = aioboto3.Session(**self._arguments, botocore_session=self._core)
        except BotoCoreError as error:
            raise CredentialsError(
                f"the AWS settings can't be read: {error}; check --profile and AWS_PROFILE, or run `aws configure`"
            ) from error

    @classmethod
    def from_environment(cls, *, profile: str | None = None, region: str | None = None) -> Aws:
        """The session that the AWS CLI would use."""
        return cls(AwsSettings(profile=profile, region=region))

    def renewed(self) -> Aws:
        """A session that looks its credentials up anew."""
        return Aws(self.settings)

    @property
    def region(self) -> str:
        """The session's region, or us-east-1 where none is set."""
        return self._session.region_name or DEFAULT_REGION

    @property
    def names_region(self) -> bool:
        """Whether the AWS settings name a region."""
        return self._session.region_name is not None

    @property
    def ca_bundle(self) -> str | None:
        """File or directory of the certificates to trust; None for the usual ones."""
        given = self.settings.connection.ca_bundle
        configured = given or self._core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        return str(configured) if configured else None

    async def credentials(self, service: str) -> Any:
        """What gives the keys for `service`, by `get_frozen_credentials`; None where there are none.

        Raises what botocore's providers raise.
        """
        given = self.settings.rekognition_credentials
        if service == "rekognition" and given is not None:
            return AioCredentials(given.access_key, given.secret_key)
        return await self._session.get_credentials()

    async def check_credentials(self) -> None:
        """Raise `CredentialsError` where Rekognition has none to sign with. Asks nobody whether they are good."""
        if self.settings.rekognition_credentials is not None or not self.settings.connection.is_signed:
            return
        try:
            found = await self._session.get_credentials()
            frozen = None if found is None else await found.get_frozen_credentials()
        except BotoCoreError as error:
            raise CredentialsError(f"the AWS credentials can't be loaded: {error}; log in again") from error
        if frozen is None or not frozen.access_key:
            raise CredentialsError(
                "no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or run `aws configure`; `batchcl demo` shows batchcl without any"
            )

    @asynccontextmanager
    async def rekognition(
        self,
        *,
        region: str | None = None,
        retries: bool = True,
        once: Collection[str] = ("StartProjectVersion",),
        connections: int = 10,
    ) -> AsyncIterator[Any]:
        """A Rekognition client. `retries=False` for the scoring path, which owns them; `once`: what isn't retried."""
        config = self._config(retries=retries, max_pool_connections=connections)
        async with self._client("rekognition", region, config, **self._rekognition_place()) as client:
            for operation in once:
                client.meta.events.register_first(f"needs-retry.rekognition.{operation}", _end_attempts)
            yield client

    @asynccontextmanager
    async def scheduler(self, *, region: str | None = None) -> AsyncIterator[Any]:
        """An EventBridge Scheduler client with the SDK's standard retries."""
        async with self._client("scheduler", region, self._config(retries=True)) as client:
            yield client

    @asynccontextmanager
    async def s3(self, *, region: str | None = None, connections: int = 10) -> AsyncIterator[Any]:
        """An S3 client with the SDK's standard retries."""
        config = self._config(retries=True, max_pool_connections=connections)
        async with self._client("s3", region, config) as client:
            yield client

    @asynccontextmanager
    async def bystander(self, service: str, *, region: str | None = None) -> AsyncIterator[Any]:
        """A client of a service that a run can do without, such as `sts`: it answers quickly or is given up.

        Where Rekognition is the run's own emulator, that is asked instead, as it answers for these services too.
        """
        config = AioConfig(
            http_session_cls=DirectSession,
            retries={"total_max_attempts": 2, "mode": "standard"},
            connect_timeout=_BYSTANDER_TIMEOUT_S,
            read_timeout=2 * _BYSTANDER_TIMEOUT_S,
        )
        async with self._client(service, region, config, **self._rekognition_place()) as client:
            yield client

    def blocking_s3(self, *, region: str | None = None) -> Any:
        """A client of boto3's, for threads that read what can only be read piece after piece. Blocks."""
        options = self._options(retries=True, max_pool_connections=_BLOCKING_CONNECTIONS)
        session = boto3.Session(**self._arguments)
        client = session.client("s3", region_name=region or self.region, config=Config(**options), verify=self._verify)
        client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
        return client

    def _client(self, service: str, region: str | None, config: AioConfig, **more: Any) -> Any:
        """A client to be opened; what holds for all of them is said here."""
        return self._session.client(
            service, region_name=region or self.region, config=config, verify=self._verify, **more
        )

    def _rekognition_place(self) -> dict[str, str | None]:
        """Where Rekognition is and what signs for it, where the settings say so."""
        keys = self.settings.rekognition_credentials
        signs = {} if keys is None else {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
        return {"endpoint_url": self.settings.rekognition_endpoint_url, **signs}

    def _config(self, *, retries: bool, **more: Any) -> AioConfig:
        return AioConfig(http_session_cls=DirectSession, **self._options(retries=retries, **more))

    def _options(self, *, retries: bool, **more: Any) -> dict[str, Any]:
        """What a client's configuration is made of."""
        connection = self.settings.connection
        if not connection.is_signed:
            more["signature_version"] = UNSIGNED
        return {
            "retries": {"total_max_attempts": connection.max_attempts if retries else 1, "mode": "standard"},
            "connect_timeout": connection.connect_timeout_s,
            "read_timeout": connection.read_timeout_s,
            **more,
        }

    @property
    def _verify(self) -> bool | str | None:
        """As botocore takes it: False, the bundle, or None for the environment's.

        Raises `RefusedError` where there is no such bundle, which the SDK would tell without its name.
        """
        connection = self.settings.connection
        if not connection.is_verified:
            return False
        if self.ca_bundle is not None and not Path(self.ca_bundle).expanduser().exists():
            raise RefusedError(
                f"the CA certificates in {self.ca_bundle} can't be read: there is no such file; check AWS_CA_BUNDLE "
                "and ca_bundle in the AWS config"
            )
        return connection.ca_bundle

    def s3_access(self, bucket: str) -> S3Access:
        """How other S3 clients reach `bucket`. Blocks for one HeadBucket, which tells the bucket's region.

        Raises:
            CredentialsError: there are none.
        """
        session = boto3.Session(**self._arguments)
        credentials = session.get_credentials()
        if credentials is None:
            raise CredentialsError(
                f"no AWS credentials found to reach s3://{bucket}; set AWS_PROFILE or run `aws configure`"
            )

        def provide() -> dict[str, Any]:
            frozen = credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": dt.datetime.now(dt.UTC) + _CREDENTIALS_TTL,
            }

        with closing(session.client("s3", region_name=self.region)) as client:
            client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
            configured = client.meta.endpoint_url
            standard = configured.endswith((".amazonaws.com", ".amazonaws.com.cn"))
            return S3Access(_bucket_region(client, bucket) or self.region, None if standard else configured, provide)


def _bucket_region(client: Any, bucket: str) -> str | None:
    """The bucket's region; None where S3 doesn't say."""
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None  # the first real request says what is wrong, with its own words
    return bucket_region(answer)
