"""The AWS session: opens clients by the standard AWS settings.

Botocore resolves profile, region, endpoints and credentials (`AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
`AWS_ENDPOINT_URL_REKOGNITION`, `AWS_ENDPOINT_URL_S3`, `AWS_CA_BUNDLE`, `HTTPS_PROXY`, the shared config files, SSO,
instance roles). This module adds what differs between clients: retries, timeouts, connection pools.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

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
    signing_keys,
)
from batchcl.aws.errors import REDIRECTS, RedirectedError, error_code, error_message, is_keys_error
from batchcl.errors import CredentialsError, ErrorCode, RefusedError

__all__ = ["Aws", "AwsSettings", "Connection", "DirectSession", "StaticCredentials"]

DEFAULT_REGION: Final = "us-east-1"
_BRIEF: Final = {
    "retries": {"total_max_attempts": 2, "mode": "standard"},
    "connect_timeout": 5,
    "read_timeout": 10,
}
_BLOCKING_CONNECTIONS: Final = 16
_LOWEST_ERROR: Final = 300
_RENEW_MAX_S: Final = 5.0
_SERVICES: Final = ("cloudwatch", "rekognition", "s3", "scheduler", "service-quotas", "sts")
"""The services of asynchronous clients."""


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """An explicit key pair. The repr hides the secret."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Connection settings of clients.

    Attributes:
        is_verified: verify certificates; otherwise connections can be intercepted.
        ca_bundle: file or directory of certificates to trust; None for the environment's.
        is_signed: sign the SDK's requests, which needs credentials. Those of `aws.http` are always signed.
        connect_timeout_s: for one connection; None for no timeout.
        read_timeout_s: for the next bytes of a response; None for no timeout.
        max_attempts: of clients with retries.
    """

    is_verified: bool = True
    ca_bundle: str | None = None
    is_signed: bool = True
    connect_timeout_s: float | None = 5
    read_timeout_s: float | None = 30
    max_attempts: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSettings:
    """Settings that override the environment; None uses the environment's.

    `rekognition_credentials` are for Rekognition only, where it is the emulator; S3 uses the environment's. With
    `is_emulator`, models cost nothing: a run starts them without `--start-model`, and without lease or scheduled stop.
    """

    profile: str | None = None
    region: str | None = None
    rekognition_endpoint_url: str | None = None
    rekognition_credentials: StaticCredentials | None = None
    is_emulator: bool = False
    connection: Connection = Connection()


class DirectSession(AIOHTTPSession):  # type: ignore[misc]  # it has no types
    """The SDK's HTTP session without redirects, which would send X-Amz-Security-Token to any host that they name.

    Redirects of S3 to a bucket's region are left to botocore, which signs a new request for that region's endpoint.
    """

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))

    async def send(self, request: Any) -> Any:
        """The response to `request`; raises `RedirectedError` for a redirect without a bucket's region."""
        response = await super().send(request)
        _refuse_redirect((response, None))
        return response


def _refuse_redirect(response: tuple[Any, Any] | None, **_: Any) -> None:
    """Raise `RedirectedError` for a redirect without a bucket's region.

    It is also a handler of boto3's `needs-retry` event, called before botocore's own handler, which would look up the
    bucket, be redirected again, and never end.
    """
    http = None if response is None else response[0]
    if http is not None and http.status_code in REDIRECTS and "x-amz-bucket-region" not in http.headers:
        where = URL(http.url).origin()
        raise RedirectedError(where=where, status=http.status_code, location=http.headers.get("location"))


def _end_attempts(
    response: tuple[Any, Any] | None, caught_exception: Exception | None, operation: Any, **_: Any
) -> None:
    """Raise the error of an attempt before the SDK's handler of `needs-retry` retries it.

    A retry after a StartProjectVersion whose response was lost is refused because the model is starting, as if another
    process had started it. An attempt that is refused for its keys had no effect and is retried.
    """
    if caught_exception is not None:
        raise caught_exception
    if response is not None and response[0].status_code >= _LOWEST_ERROR and _keys_error(response) is None:
        raise ClientError(response[1], operation.name)


def _keys_error(response: tuple[Any, Any]) -> str | None:
    """The service's error if it refuses the keys of a request; else None."""
    error = ClientError(response[1], "")
    code, message = error_code(error), error_message(error)
    return f"{code}: {message}" if response[0].status_code >= _LOWEST_ERROR and is_keys_error(code, message) else None


class _SharedSession(AioSession):  # type: ignore[misc]  # it has no types
    """An SDK session whose clients use a credential cache."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__()
        self._cache = cache

    async def get_credentials(self) -> SharedCredentials:
        return SharedCredentials(self._cache)


class _BlockingSession(Session):  # type: ignore[misc]  # it has no types
    """A boto3 session whose clients use a credential cache."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__()
        self._cache = cache

    def get_credentials(self) -> BlockingCredentials:
        return BlockingCredentials(self._cache)


class Aws:
    """Opens clients. Creating it is fast and sends no request.

    Attributes:
        settings: what overrides the environment.
        credentials: the credential cache that all clients share.
    """

    def __init__(self, settings: AwsSettings | None = None) -> None:
        self.settings = settings or AwsSettings()
        region = self.settings.region or os.environ.get("AWS_REGION")  # botocore itself ignores it
        self._arguments = {"profile_name": self.settings.profile, "region_name": region or None}
        self.credentials = CredentialCache(self._open_session)
        self._core = _SharedSession(self.credentials)
        explicit = self.settings.rekognition_credentials
        self._rekognition_keys = (
            FixedCredentials(explicit.access_key, explicit.secret_key) if explicit else self.credentials
        )
        try:
            self._session = aioboto3.Session(**self._arguments, botocore_session=self._core)
        except (BotoCoreError, OSError) as error:
            raise CredentialsError(
                f"the AWS settings can't be read: {error}; check --profile and AWS_PROFILE, or run `aws configure`",
                code=ErrorCode.INVALID_AWS_SETTINGS,
            ) from error
        # else botocore looks for the models of all 400 services before it loads the first one, which takes 30 ms
        self._core.get_component("data_loader").list_available_services = lambda _: _SERVICES

    def _open_session(self) -> AioSession:
        """An SDK session that loads credentials, for the cache."""
        session = AioSession()
        for name, value in zip(("profile", "region"), self._arguments.values(), strict=True):
            if value is not None:
                session.set_config_variable(name, value)
        return session

    @classmethod
    def from_environment(cls, *, profile: str | None = None, region: str | None = None) -> Aws:
        """The session that the AWS CLI uses with the same environment and flags."""
        return cls(AwsSettings(profile=profile, region=region))

    @property
    def region(self) -> str:
        """The session's region; us-east-1 by default."""
        return self._session.region_name or DEFAULT_REGION

    @property
    def has_region(self) -> bool:
        """Whether the AWS settings have a region."""
        return self._session.region_name is not None

    @property
    def ca_bundle(self) -> str | None:
        """File or directory of the certificates to trust; None for the default ones."""
        configured = (
            self.settings.connection.ca_bundle
            or self._core.get_config_variable("ca_bundle")
            or os.environ.get("REQUESTS_CA_BUNDLE")
        )
        return str(configured) if configured else None

    def credentials_of(self, service: str) -> CredentialCache:
        """The credentials for `service`."""
        return self._rekognition_keys if service == "rekognition" else self.credentials

    async def check_credentials(self) -> None:
        """Raise `CredentialsError` if there are none for Rekognition. Does not check them with AWS."""
        if self.settings.connection.is_signed:
            await self.credentials_of("rekognition").current()

    @asynccontextmanager
    async def rekognition(
        self,
        *,
        region: str | None = None,
        retries: bool = True,
        once: Collection[str] = ("StartProjectVersion",),
        connections: int = 10,
        renews: bool = True,
    ) -> AsyncIterator[Any]:
        """Open a Rekognition client.

        Args:
            region: default: the session's.
            retries: the SDK's standard retries; off for the scoring path, which has its own.
            once: operations that are not retried.
            connections: maximum.
            renews: reload keys that the service refuses; off for regions that may be disabled, which refuse all keys.
        """
        config = self._config(retries=retries, max_pool_connections=connections)
        overrides = self._rekognition_overrides()
        async with self._client(
            "rekognition", region, config, waits=retries, renews=renews, overrides=overrides
        ) as client:
            for operation in once:
                client.meta.events.register_first(f"needs-retry.rekognition.{operation}", _end_attempts)
            yield client

    @asynccontextmanager
    async def scheduler(self, *, region: str | None = None) -> AsyncIterator[Any]:
        """Open an EventBridge Scheduler client with the SDK's standard retries."""
        async with self._client("scheduler", region, self._config(retries=True)) as client:
            yield client

    @asynccontextmanager
    async def s3(
        self, *, region: str | None = None, connections: int = 10, is_brief: bool = False
    ) -> AsyncIterator[Any]:
        """Open an S3 client with the SDK's standard retries; `is_brief` limits a request to half a minute."""
        config = self._brief_config() if is_brief else self._config(retries=True, max_pool_connections=connections)
        async with self._client("s3", region, config, waits=not is_brief) as client:
            yield client

    @asynccontextmanager
    async def auxiliary_client(
        self, service: str, *, region: str | None = None, renews: bool = True
    ) -> AsyncIterator[Any]:
        """Open a client of an optional service, such as `sts`, with short timeouts; for `renews` see `rekognition`.

        If Rekognition is the emulator, the client uses it too, because it implements these services.
        """
        overrides = self._rekognition_overrides()
        async with self._client(service, region, self._brief_config(), renews=renews, overrides=overrides) as client:
            yield client

    def blocking_s3(self, *, region: str | None = None) -> Any:
        """A boto3 client, for threads that read files sequentially. Blocks."""
        options = self._options(retries=True, max_pool_connections=_BLOCKING_CONNECTIONS)
        return self._blocking("s3", region, config=Config(**options), verify=self._verify)

    def blocking_sns(self, *, region: str) -> Any:
        """A boto3 client with short timeouts, for a thread of its own. Blocks."""
        options = self._options(retries=True) | _BRIEF
        return self._blocking("sns", region, config=Config(**options), verify=self._verify)

    def _blocking(self, service: str, region: str | None, **more: Any) -> Any:
        session = boto3.Session(**self._arguments, botocore_session=_BlockingSession(self.credentials))
        with self._settings_of(service, None):
            client = session.client(service, region_name=region or self.region, **more)
            _check_url(client.meta.endpoint_url)
        client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
        return client

    @asynccontextmanager
    async def _client(
        self,
        service: str,
        region: str | None,
        config: AioConfig,
        *,
        waits: bool = True,
        renews: bool = True,
        overrides: Mapping[str, str | None] | None = None,
    ) -> AsyncIterator[Any]:
        """Open a client.

        Args:
            service: its name.
            region: default: the session's.
            config: retries, timeouts and connections.
            waits: while credentials fail temporarily.
            renews: reload keys that the service refuses.
            overrides: endpoint and explicit keys.
        """
        more = dict(overrides or {})
        opened = self._session.client(
            service, region_name=region or self.region, config=config, verify=self._verify, **more
        )
        async with AsyncExitStack() as stack:
            with self._settings_of(service, more.get("endpoint_url")):
                client = await stack.enter_async_context(opened)
                _check_url(client.meta.endpoint_url)
            if renews and self.settings.connection.is_signed and "aws_access_key_id" not in more:
                renew = partial(_renew_keys, self.credentials, service, waits=waits)
                client.meta.events.register_first(f"needs-retry.{service}", renew)
            yield client

    @contextmanager
    def _settings_of(self, service: str, endpoint_url: str | None) -> Iterator[None]:
        """Raise `RefusedError` for settings that botocore can't use, with the setting's name."""
        try:
            yield
        except (BotoCoreError, ValueError) as error:
            setting = "the endpoint" if endpoint_url else self._endpoint_setting(service)
            if setting is None or isinstance(error, BotoCoreError):
                message = f"the AWS settings for {service} can't be used: {error}; check the region and the AWS config"
            else:
                message = f"{setting} is not a URL: {error}; write it like https://host or http://127.0.0.1:8333"
            raise RefusedError(message, code=ErrorCode.INVALID_AWS_SETTINGS) from error

    def _endpoint_setting(self, service: str) -> str | None:
        """The setting with the endpoint of `service`, in botocore's order of precedence; None if there is none."""
        name = service.replace("-", "_")
        for variable in (f"AWS_ENDPOINT_URL_{name.upper()}", "AWS_ENDPOINT_URL"):
            if os.environ.get(variable):
                return variable
        profile = self._core.get_scoped_config()
        section = profile.get("services")
        services = self._core.full_config.get("services", {}).get(section, {})
        if isinstance(services.get(name), dict) and "endpoint_url" in services[name]:
            return f"endpoint_url of {name} in [services {section}] of the AWS config"
        named = self._core.get_config_variable("profile") or "default"
        return f"endpoint_url of profile {named} in the AWS config" if "endpoint_url" in profile else None

    def _rekognition_overrides(self) -> dict[str, str | None]:
        """Rekognition's endpoint and keys, if the settings have any."""
        keys = self.settings.rekognition_credentials
        pair = {} if keys is None else {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
        return {"endpoint_url": self.settings.rekognition_endpoint_url, **pair}

    def _config(self, *, retries: bool, **more: Any) -> AioConfig:
        return AioConfig(http_session_cls=DirectSession, **self._options(retries=retries, **more))

    def _brief_config(self) -> AioConfig:
        """Short timeouts and two attempts."""
        return AioConfig(http_session_cls=DirectSession, **(self._options(retries=True) | _BRIEF))

    def _options(self, *, retries: bool, **more: Any) -> dict[str, Any]:
        """The arguments of a client's configuration."""
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
        """Botocore's `verify`: False, the bundle, or None for the environment's.

        Raises `RefusedError` if the bundle does not exist, because the SDK's error lacks its path.
        """
        connection = self.settings.connection
        if not connection.is_verified:
            return False
        if self.ca_bundle is not None and not Path(self.ca_bundle).expanduser().exists():
            raise RefusedError(
                f"the CA certificates in {self.ca_bundle} can't be read: there is no such file; check AWS_CA_BUNDLE "
                "and ca_bundle in the AWS config",
                code=ErrorCode.INVALID_AWS_SETTINGS,
            )
        return connection.ca_bundle


def _check_url(endpoint_url: str) -> None:
    """Raise `ValueError` for a URL that botocore accepts although it is not usable."""
    parts = urlsplit(endpoint_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError(f"Invalid endpoint: {endpoint_url}")


async def _renew_keys(
    cache: CredentialCache, service: str, *, response: tuple[Any, Any] | None, attempts: int, waits: bool, **_: Any
) -> float | None:
    """Retry with other keys if a service refuses the keys of a request: a handler of `needs-retry`.

    Returns the pause before the retry, or None for no retry. The first retry follows at once. If the service has
    accepted keys before and the client `waits`, more follow for five minutes.
    """
    message = None if response is None else _keys_error(response)
    if message is None:
        if response is not None and response[0].status_code < _LOWEST_ERROR:
            cache.accepted(service)
        return None
    if attempts > 1:
        error = cache.refused(service, message)
        if error is None or not waits:
            return None
        if not error.may_pass:
            raise error
    renew = partial(cache.renew, signing_keys.get())
    await (cache.retry_while_failing(renew) if waits else renew())
    return min(_RENEW_MAX_S, attempts - 1.0)
