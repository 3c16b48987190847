"""One AWS session for everything: profile, region, endpoints and credentials by the standard AWS settings.

Botocore resolves them (`AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_REKOGNITION`,
`AWS_ENDPOINT_URL_S3`, `AWS_CA_BUNDLE`, `HTTPS_PROXY`, the shared config files, SSO, instance roles); this module adds
only what differs between the callers: retries, timeouts, connection pools.
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
    signed_with,
)
from batchcl.aws.errors import REDIRECTS, RedirectedError, error_code, error_message, is_keys_error
from batchcl.errors import CredentialsError, RefusedError

__all__ = ["Aws", "AwsSettings", "Connection", "DirectSession", "StaticCredentials"]

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
    async def s3(
        self, *, region: str | None = None, connections: int = 10, is_brief: bool = False
    ) -> AsyncIterator[Any]:
        """An S3 client with the SDK's standard retries; `is_brief`: it gives up within half a minute."""
        config = self._brief_config() if is_brief else self._config(retries=True, max_pool_connections=connections)
        async with self._client("s3", region, config, is_patient=not is_brief) as client:
            yield client

    @asynccontextmanager
    async def bystander(self, service: str, *, region: str | None = None) -> AsyncIterator[Any]:
        """A client of a service that a run can do without, such as `sts`: it answers quickly or is given up.

        Where Rekognition is the run's own emulator, that is asked instead, as it answers for these services too.
        """
        place = self._rekognition_place()
        async with self._client(service, region, self._brief_config(), place=place) as client:
            yield client

    def blocking_s3(self, *, region: str | None = None) -> Any:
        """A client of boto3's, for threads that read what can only be read piece after piece. Blocks."""
        options = self._options(retries=True, max_pool_connections=_BLOCKING_CONNECTIONS)
        return self._blocking("s3", region, config=Config(**options), verify=self._verify)

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
        is_patient: bool = True,
        place: Mapping[str, str | None] | None = None,
    ) -> AsyncIterator[Any]:
        """An open client; what holds for all of them is said here."""
        more = dict(place or {})
        opened = self._session.client(
            service, region_name=region or self.region, config=config, verify=self._verify, **more
        )
        async with AsyncExitStack() as stack:
            with self._settings_of(service, more.get("endpoint_url")):
                client = await stack.enter_async_context(opened)
                _check_url(client.meta.endpoint_url)
            if self.settings.connection.is_signed and "aws_access_key_id" not in more:
                renew = partial(_renew_keys, self.credentials, service, is_patient=is_patient)
                client.meta.events.register_first(f"needs-retry.{service}", renew)
            yield client

    @contextmanager
    def _settings_of(self, service: str, endpoint_url: str | None) -> Iterator[None]:
        """Raise `RefusedError` for settings that botocore can't use, with the name of the one at fault."""
        try:
            yield
        except (BotoCoreError, ValueError) as error:
            source = "the endpoint that was given" if endpoint_url else self._endpoint_setting(service)
            if source is None or isinstance(error, BotoCoreError):
                why = f"the AWS settings for {service} can't be used: {error}; check the region and the AWS config"
            else:
                why = f"{source} is not a URL: {error}; write it like https://host or http://127.0.0.1:8333"
            raise RefusedError(why) from error

    def _endpoint_setting(self, service: str) -> str | None:
        """Where the endpoint of `service` is set, in the order in which botocore looks; None where it isn't."""
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

    def _rekognition_place(self) -> dict[str, str | None]:
        """Where Rekognition is and what signs for it, where the settings say so."""
        keys = self.settings.rekognition_credentials
        signs = {} if keys is None else {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
        return {"endpoint_url": self.settings.rekognition_endpoint_url, **signs}

    def _config(self, *, retries: bool, **more: Any) -> AioConfig:
        return AioConfig(http_session_cls=DirectSession, **self._options(retries=retries, **more))

    def _brief_config(self) -> AioConfig:
        """Of a client that answers quickly or is given up."""
        options = self._options(retries=True) | {
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            "connect_timeout": _BYSTANDER_TIMEOUT_S,
            "read_timeout": 2 * _BYSTANDER_TIMEOUT_S,
        }
        return AioConfig(http_session_cls=DirectSession, **options)

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


def _check_url(endpoint_url: str) -> None:
    """Raise `ValueError` for a URL that botocore takes, but that nothing can be sent to."""
    parts = urlsplit(endpoint_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError(f"Invalid endpoint: {endpoint_url}")


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
