"""A credential cache that all clients of a session share, with refresh and retries.

Botocore's providers load the credentials. They raise any exception (a JSONDecodeError for a malformed output of
credential_process, an EOFError for an MFA prompt without a terminal); this module turns all of them into
`CredentialsError`.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar

import anyio
from aiobotocore.credentials import AioCredentials
from aiobotocore.session import AioSession
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from batchcl.aws.errors import NO_CREDENTIALS, error_code, error_message
from batchcl.aws.sigv4 import Keys
from batchcl.errors import CallError, CredentialsError, CredentialsFailingError, ErrorCode, FatalCallError

__all__ = [
    "MAX_FAILING_S",
    "BlockingCredentials",
    "CredentialCache",
    "FixedCredentials",
    "SharedCredentials",
    "call_error",
    "signing_keys",
]

MAX_FAILING_S: Final = 300.0
"""How long credentials that were valid may fail before the run ends."""

_REFRESH_S: Final = 5.0
"""How long cached keys are used before the provider is queried for newer ones.

Botocore's providers refresh keys 15 minutes before they expire, so a few seconds make no difference."""

_LOAD_TIMEOUT_S: Final = 60.0
"""For one provider; a role, SSO or a credential_process may call a service."""

_RETRY_S: Final = 1.0
"""Minimum time between two attempts to load credentials that fail, however many tasks wait for them."""

_PAUSE_MAX_S: Final = 5.0
_LONGEST_REASON: Final = 300
_PROVIDER: Final = ""
"""The key of the provider in `_failing_since`; the other keys are names of services."""

_PROVIDERS: Final = {
    "env": ("the environment variables", "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN again"),
    "custom-process": ("credential_process", "run that command in a shell and correct it"),
    "assume-role": ("role_arn", "check role_arn and its source, and that the role's trust policy allows them"),
    "assume-role-with-web-identity": (
        "the web identity",
        "check web_identity_token_file or AWS_WEB_IDENTITY_TOKEN_FILE, and the role's trust policy",
    ),
    "sso": ("SSO", "log in again with `aws sso login`, and check that the profile's role may be used"),
    "container-role": (
        "the container's role",
        "check AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ),
    "iam-role": ("the instance's role", "check the role of this instance"),
}
"""Botocore's name of a provider → its name in messages, and advice if it fails."""

_WITHOUT_PROFILE: Final = frozenset({"env", "container-role", "iam-role"})
"""Providers that don't use the profile."""

_ANY_PROVIDER: Final = ("the AWS config and credentials files", "check the profile in ~/.aws/config and credentials")

_NAMED_SECRET: Final = re.compile(r"""(?i)((?:secret|token|passw|key)[\w-]*["']?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|\S+)""")
_SECRET: Final = re.compile(r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+/=-]{16,}")

T = TypeVar("T")

signing_keys: Final[ContextVar[Keys]] = ContextVar("signing_keys")
"""The keys that an aioboto3 client used for the last request in this task."""

# without a handler, logging would write aiobotocore's tracebacks to stderr
logging.getLogger("aiobotocore").addHandler(logging.NullHandler())


def _now() -> float:
    """The running event loop's clock, or the default one without a loop."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


class CredentialCache:
    """The credentials of one session. Safe for concurrent use, and in threads by `current_blocking`.

    They are reloaded when a config file changes, or a service refuses them. Once they were valid, a failure is treated
    as temporary for five minutes (`CredentialsError.may_pass`).

    Args:
        open_session: returns a new SDK session, which reads the environment and the config files again.

    Attributes:
        method: botocore's name of the provider.
        profile: the profile's name.
        on_wait: receives the reason when a task starts to wait for credentials.
    """

    def __init__(self, open_session: Callable[[], AioSession]) -> None:
        self._open_session = open_session
        self.method = ""
        self.profile = ""
        self.on_wait: Callable[[str], None] = lambda _: None
        self._credentials: Any = None
        self._keys: Keys | None = None
        self._refresh_at = 0.0
        self._file_stamps: list[tuple[int, int, int]] = []
        self._file_names: list[str] = []
        self._lock = anyio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_lock = threading.Lock()
        self._was_valid = False
        self._accepted: set[str] = set()
        self._failing_since: dict[str, float] = {}
        self._failure: tuple[str, str] | None = None
        self._retry_at = 0.0
        self._waiting = 0

    async def current(self) -> Keys:
        """The current keys; if refreshing them fails, the cached ones.

        Raises:
            CredentialsError: there are none.
        """
        keys, now = self._keys, _now()
        if keys is not None and now < self._refresh_at:
            return keys
        self._loop = asyncio.get_running_loop()
        if keys is None:
            async with self._lock:
                return self._keys or await self._load()
        self._refresh_at = now + _REFRESH_S
        try:
            if self._file_stamps == self._current_stamps():
                return self._stored(await self._refreshed())
            async with self._lock:
                return await self._load()
        except CredentialsError:
            return keys  # they may still be valid, and the provider may recover before they expire

    def current_blocking(self) -> Keys:
        """`current` for synchronous callers, in any thread."""
        keys = self._keys
        if keys is not None and _now() < self._refresh_at:
            return keys
        with self._thread_lock:  # without it, `loop` may be another caller's below, which ends before it answers
            loop = self._loop
            try:
                is_loop_thread = asyncio.get_running_loop() is loop
            except RuntimeError:
                is_loop_thread = False
            if loop is None or not loop.is_running() or is_loop_thread:
                with ThreadPoolExecutor(1) as thread:  # this thread may have a running loop
                    return thread.submit(anyio.run, self.current).result()
        return asyncio.run_coroutine_threadsafe(self.current(), loop).result()

    async def renew(self, refused: Keys) -> Keys:
        """Replace keys that a service has refused; concurrent callers share one reload.

        Raises:
            CredentialsError: no provider has any.
        """
        async with self._lock:
            if self._keys is not None and self._keys is not refused:
                return self._keys
            self._keys = None  # so that even equal keys become a new object, and other callers don't reload them
            return await self._load()

    def accepted(self, service: str) -> None:
        """Report that a service has accepted a request signed with these keys."""
        if service not in self._accepted or service in self._failing_since:
            self._accepted.add(service)
            self._failing_since.pop(service, None)

    def refused(self, service: str, message: str) -> CredentialsError | None:
        """The error for keys that a service refuses again after `renew`; None if it never accepted any."""
        if service not in self._accepted:
            return None
        return self._failed(
            service,
            f"{service} refuses the AWS credentials: {message.rstrip('.')}; check the profile, or log in again",
            ErrorCode.INVALID_CREDENTIALS,
        )

    async def retry_while_failing(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, retried every few seconds while it raises a temporary `CredentialsError`."""
        pause_s = 0.0
        while True:
            try:
                return await work()
            except CredentialsError as error:
                if not error.may_pass:
                    raise
                if not self._waiting:
                    self.on_wait(str(error))
            pause_s = min(_PAUSE_MAX_S, pause_s + _RETRY_S)
            self._waiting += 1
            try:
                await anyio.sleep(pause_s)
            finally:
                self._waiting -= 1

    async def wait(self) -> Keys:
        """`current`, but wait while credentials fail temporarily."""
        keys = self._keys
        return keys if keys is not None and _now() < self._refresh_at else await self.retry_while_failing(self.current)

    async def _load(self) -> Keys:
        """Load keys with a new session. Cached keys stay if that fails."""
        if self._keys is None and self._failure is not None and _now() < self._retry_at:
            raise self._failed(_PROVIDER, *self._failure)
        try:
            keys = await self._load_from_providers()
        except CredentialsError as error:
            if self._keys is not None:
                raise
            self._failure, self._retry_at = (str(error), error.code), _now() + _RETRY_S
            raise self._failed(_PROVIDER, *self._failure) from None
        self._refresh_at = _now() + _REFRESH_S
        self._was_valid = True
        self._failure = None
        self._failing_since.pop(_PROVIDER, None)
        return keys

    async def _load_from_providers(self) -> Keys:
        with _provider_errors(self.profile, ""):
            session = self._open_session()
            self.profile = str(session.get_config_variable("profile") or "default")
            self._file_names = [session.get_config_variable(name) for name in ("config_file", "credentials_file")]
            stamps = self._current_stamps()
            providers = session.get_component("credential_provider").providers
        for provider in providers:
            if hasattr(provider, "_prompter"):  # botocore's prompter blocks the event loop
                provider._prompter = partial(_prompt_mfa_code, may_prompt=not self._was_valid)  # noqa: SLF001 - botocore's only way
            with _provider_errors(self.profile, provider.METHOD), anyio.fail_after(_LOAD_TIMEOUT_S):
                credentials = await provider.load()
                frozen = None if credentials is None else await credentials.get_frozen_credentials()
            if frozen is not None and frozen.access_key:
                keys = self._stored(frozen)
                self._credentials, self._file_stamps, self.method = credentials, stamps, provider.METHOD
                return keys
        raise CredentialsError(NO_CREDENTIALS)

    async def _refreshed(self) -> Any:
        with _provider_errors(self.profile, self.method), anyio.fail_after(_LOAD_TIMEOUT_S):
            return await self._credentials.get_frozen_credentials()

    def _stored(self, frozen: Any) -> Keys:
        fresh = Keys(frozen.access_key, frozen.secret_key, frozen.token or None)
        if not all(map(_is_header_value, (fresh.access_key, fresh.token or "-"))):
            raise CredentialsError(
                "the AWS access key or session token contains a space, a line break or a non-ASCII character, so it "
                "can't be sent; set it again"
            )
        if self._keys is None or fresh != self._keys:
            self._keys = fresh
        return self._keys

    def _failed(self, where: str, message: str, code: str) -> CredentialsError:
        """The error for a failure of the provider or a service; temporary for five minutes after valid credentials."""
        now = _now()
        failing_s = now - self._failing_since.setdefault(where, now)
        if not self._was_valid or failing_s < MAX_FAILING_S:
            return CredentialsError(message, code=code, may_pass=self._was_valid)
        return CredentialsError(
            f"no valid AWS credentials for {failing_s / 60:.0f} minutes: {message}",
            has_lasted=True,
            code=ErrorCode.CREDENTIALS_EXPIRED,
        )

    def _current_stamps(self) -> list[tuple[int, int, int]]:
        """Modification time, size and inode of the config files, which show whether they have changed."""
        return [_file_stamp(name) for name in self._file_names]


class FixedCredentials(CredentialCache):
    """Explicit keys that never change."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        super().__init__(AioSession)
        self._fixed = self._keys = Keys(access_key, secret_key)
        self._refresh_at = math.inf
        self.method = "explicit"

    async def renew(self, refused: Keys) -> Keys:
        """The same keys."""
        return self._fixed

    def refused(self, service: str, message: str) -> CredentialsError | None:
        """None: the service's own error is reported."""
        return None


class SharedCredentials(AioCredentials):  # type: ignore[misc]  # it has no types
    """A credential cache for aioboto3's clients; each request is signed with the current keys."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__("", "", method="batchcl")
        self._cache = cache

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys, after waiting while they fail temporarily. Sets `signing_keys`. Raises `CredentialsError`."""
        keys = await self._cache.wait()
        signing_keys.set(keys)
        return _frozen(keys)


class BlockingCredentials(Credentials):  # type: ignore[misc]  # it has no types
    """A credential cache for boto3's clients."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__("", "", method="batchcl")
        self._cache = cache

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys. Raises `CredentialsError`."""
        return _frozen(self._cache.current_blocking())


def call_error(error: CredentialsError) -> CallError:
    """The error of a call that can't be signed."""
    kind = CredentialsFailingError if error.may_pass else FatalCallError
    failed = kind(str(error), code="Credentials")
    failed.__cause__ = error
    return failed


def _frozen(keys: Keys) -> ReadOnlyCredentials:
    return ReadOnlyCredentials(keys.access_key, keys.secret_key, keys.token)


def _file_stamp(name: str) -> tuple[int, int, int]:
    try:
        status = os.stat(os.path.expanduser(name))
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino


def _prompt_mfa_code(prompt: str, *, may_prompt: bool) -> str:
    if not may_prompt:
        raise EOFError("the MFA session has expired")
    if sys.stdin is None or not sys.stdin.isatty():
        raise EOFError("it needs an MFA code, but stdin is not a terminal")
    return getpass.getpass(prompt)


@contextmanager
def _provider_errors(profile: str, method: str) -> Iterator[None]:
    """Turn any exception of a provider into a `CredentialsError` without its output and its cause."""
    try:
        yield
    except CredentialsError:
        raise
    except Exception as error:  # noqa: BLE001 - providers raise anything
        provider, advice = _PROVIDERS.get(method, _ANY_PROVIDER)
        of_profile = "" if method in _WITHOUT_PROFILE or not profile else f" of profile {profile}"
        if isinstance(error, EOFError):
            advice = "use a profile without mfa_serial, or temporary keys from `aws sts get-session-token`"
        if method == "sso" and of_profile:
            advice = advice.replace("sso login", f"sso login --profile {profile}")
        raise CredentialsError(
            f"loading the AWS credentials{of_profile} with {provider} failed: {_reason(error, method)}; {advice}"
        ) from None


def _reason(error: Exception, method: str) -> str:
    """The reason for a provider's error, on one line and without secrets."""
    match error:
        case EOFError():
            reason = str(error) or "it asks for input, and there is none"
        case TimeoutError():
            reason = f"no response within {_LOAD_TIMEOUT_S:.0f} s"
        case json.JSONDecodeError() | UnicodeError():
            reason = "its output is not JSON" if method == "custom-process" else "its response is not JSON"
        case ValueError() if type(error).__module__.startswith("dateutil"):
            reason = "its Expiration is not a time"
        case ClientError():
            reason = f"{error_code(error)}: {error_message(error)}"
        case CredentialRetrievalError():  # contains stderr of a credential_process
            reason = _without_secrets(str(error.kwargs.get("error_msg", error)))
        case BotoCoreError() | RuntimeError():
            reason = str(error)
        case OSError():
            reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        case KeyError() if method == "sso":
            reason = "the saved login can't be read"
        case KeyError():
            reason = f"{error} is missing"
        case ValueError():  # such as an unclosed quotation mark
            reason = _without_secrets(str(error))
        case _:
            reason = f"its output is malformed ({type(error).__name__})"
    return " ".join(reason.split())[:_LONGEST_REASON].rstrip(". ") or type(error).__name__


def _without_secrets(text: str) -> str:
    return _SECRET.sub("***", _NAMED_SECRET.sub(r"\1***", text))


def _is_header_value(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
