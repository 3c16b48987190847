"""One AWS session for everything: profile, region, endpoints and credentials by the standard AWS settings.

Botocore resolves them (`AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_REKOGNITION`,
`AWS_ENDPOINT_URL_S3`, `AWS_CA_BUNDLE`, `HTTPS_PROXY`, the shared config files, SSO, instance roles); this module adds
only what differs between the callers: retries, timeouts, connection pools.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import aioboto3
import boto3
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session
from yarl import URL

from batchcl.aws.credentials import (
    BlockingCredentials,
    CredentialCache,
    FixedCredentials,
    SharedCredentials,
    signed_with,
)
from batchcl.aws.errors import REDIRECTS, RedirectedError, bucket_region, error_code, error_message, is_keys_error
from batchcl.aws.sigv4 import Keys
from batchcl.errors import CredentialsError, RefusedError

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["Aws", "AwsSettings", "Connection", "DirectSession", "S3Access", "StaticCredentials"]

DEFAULT_REGION: Final = "us-east-1"
_BYSTANDER_TIMEOUT_S: Final = 5
_BLOCKING_CONNECTIONS: Final = 16
_LOWEST_ERROR: Final = 300
_RENEW_MAX_S: Final = 5.0


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
    """What an S3 client other than boto's needs."""

    region: str
    endpoint_url: str | None
    credentials: CredentialCache = field(repr=False)

    async def provide(self) -> S3Credential:
        """The keys, as obstore takes them from a `credential_provider` of its asynchronous functions."""
        return _provided(await self.credentials.current())

    def provide_now(self) -> S3Credential:
        """The keys, for obstore's blocking functions."""
        return _provided(self.credentials.current_now())

    def scan_options(self) -> dict[str, Any]:
        """Polars' `storage_options`. They hold secrets: never log them. Raises `CredentialsError`."""
        keys = self.credentials.current_now()
        options: dict[str, Any] = {
            "aws_region": self.region,
            "aws_access_key_id": keys.access_key,
            "aws_secret_access_key": keys.secret_key,
        }
        if keys.token:
            options["aws_session_token"] = keys.token
        if self.endpoint_url is not None:
            options |= {
                "aws_endpoint_url": self.endpoint_url,
                "aws_allow_http": str(self.endpoint_url.startswith("http://")).lower(),
                "aws_virtual_hosted_style_request": "false",
            }
        return options


def _provided(keys: Keys) -> S3Credential:
    return {
        "access_key_id": keys.access_key,
        "secret_access_key": keys.secret_key,
        "token": keys.token,
        "expires_at": dt.datetime.now(dt.UTC),  # so that it asks again for each request, which costs microseconds
    }


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
    somebody else had started it. One that is refused for its keys took no effect.
    """
    if caught_exception is not None:
        raise caught_exception
    if response is not None and response[0].status_code >= _LOWEST_ERROR and _keys_error(response) is None:
        raise ClientError(response[1], operation.name)


def _keys_error(response: tuple[Any, Any]) -> str | None:
    """What a service says when it refuses the keys of a request; None where it doesn't."""
    refusal = ClientError(response[1], "")
    code, said = error_code(refusal), error_message(refusal)
    return f"{code}: {said}" if response[0].status_code >= _LOWEST_ERROR and is_keys_error(code, said) else None


class _SharedSession(AioSession):  # type: ignore[misc]  # it has no types
    """The SDK's session, whose clients sign with the keys of a cache."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__()
        self._cache = cache

    async def get_credentials(self) -> SharedCredentials:
        return SharedCredentials(self._cache)


class _BlockingSession(Session):  # type: ignore[misc]  # it has no types
    """Likewise for boto3."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__()
        self._cache = cache

    def get_credentials(self) -> BlockingCredentials:
        return BlockingCredentials(self._cache)


class Aws:
    """A source of clients. Cheap to make; connects to nothing until a client is opened."""

    def __init__(self, settings: AwsSettings | None = None) -> None:
        self.settings = settings or AwsSettings()
        region = self.settings.region or os.environ.get("AWS_REGION")  # which botocore leaves to each SDK
        self._arguments = {"profile_name": self.settings.profile, "region_name": region or None}
        self.credentials = CredentialCache(self._open_session)
        self._core = _SharedSession(self.credentials)
        given = self.settings.rekognition_credentials
        self._rekognition_keys = FixedCredentials(given.access_key, given.secret_key) if given else self.credentials
        try:
            self._session = aioboto3.Session(**self._arguments, botocore_session=self._core)
        except (BotoCoreError, OSError) as error:
            raise CredentialsError(
                f"the AWS settings can't be read: {error}; check --profile and AWS_PROFILE, or run `aws configure`"
            ) from error

    def _open_session(self) -> AioSession:
        """A session of the SDK that finds credentials by itself, for the cache."""
        session = AioSession()
        for name, value in zip(("profile", "region"), self._arguments.values(), strict=True):
            if value is not None:
                session.set_config_variable(name, value)
        return session

    @classmethod
    def from_environment(cls, *, profile: str | None = None, region: str | None = None) -> Aws:
        """The session that the AWS CLI would use."""
        return cls(AwsSettings(profile=profile, region=region))

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

    def keys_of(self, service: str) -> CredentialCache:
        """What signs requests to `service`."""
        return self._rekognition_keys if service == "rekognition" else self.credentials

    async def check_credentials(self) -> None:
        """Raise `CredentialsError` where Rekognition has none to sign with. Asks nobody whether they are good."""
        if self.settings.connection.is_signed:
            await self.keys_of("rekognition").current()

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
        place = self._rekognition_place()
        async with self._client("rekognition", region, config, is_patient=retries, place=place) as client:
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
        async with self._client(service, region, config, place=self._rekognition_place()) as client:
            yield client

    def blocking_s3(self, *, region: str | None = None) -> Any:
        """A client of boto3's, for threads that read what can only be read piece after piece. Blocks."""
        options = self._options(retries=True, max_pool_connections=_BLOCKING_CONNECTIONS)
        return self._blocking("s3", region, config=Config(**options), verify=self._verify)

    def _blocking(self, service: str, region: str | None, **more: Any) -> Any:
        session = boto3.Session(**self._arguments, botocore_session=_BlockingSession(self.credentials))
        client = session.client(service, region_name=region or self.region, **more)
        client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
        return client

    @asynccontextmanager
    async def _client(
        self,
        service: str,
        region: str | None,
        config: AioConfig,
        *,
        is_patient: bool = True,
        place: Mapping[str, str | None] | None = None,
    ) -> AsyncIterator[Any]:
        """An open client; what holds for all of them is said here."""
        more = dict(place or {})
        opened = self._session.client(
            service, region_name=region or self.region, config=config, verify=self._verify, **more
        )
        async with opened as client:
            if self.settings.connection.is_signed and "aws_access_key_id" not in more:
                renew = partial(_renew_keys, self.credentials, service, is_patient=is_patient)
                client.meta.events.register_first(f"needs-retry.{service}", renew)
            yield client

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
        self.credentials.current_now()
        with closing(self._blocking("s3", None)) as client:
            configured = client.meta.endpoint_url
            standard = configured.endswith((".amazonaws.com", ".amazonaws.com.cn"))
            region = _bucket_region(client, bucket) or self.region
        return S3Access(region, None if standard else configured, self.credentials)


async def _renew_keys(
    cache: CredentialCache, service: str, *, response: tuple[Any, Any] | None, attempts: int, is_patient: bool, **_: Any
) -> float | None:
    """Have an attempt that is refused for its keys followed by one with others: a handler of `needs-retry`.

    It returns the pause before the next attempt; None where this handler asks for none. The first one follows at once.
    Later ones, where the service has accepted such keys before, follow for five minutes, unless the caller has no
    patience.
    """
    said = None if response is None else _keys_error(response)
    if said is None:
        if response is not None and response[0].status_code < _LOWEST_ERROR:
            cache.accepted(service)
        return None
    if attempts > 1:
        error = cache.refused(service, said)
        if error is None or not is_patient:
            return None
        if not error.may_pass:
            raise error
    renew = partial(cache.renew, signed_with.get())
    await (cache.patiently(renew) if is_patient else renew())
    return min(_RENEW_MAX_S, attempts - 1.0)


def _bucket_region(client: Any, bucket: str) -> str | None:
    """The bucket's region; None where S3 doesn't say."""
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None  # the first real request says what is wrong, with its own words
    return bucket_region(answer)
