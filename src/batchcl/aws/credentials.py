"""The keys that requests are signed with: one cache for all clients of a session, fresh for hours on end.

Botocore's providers find them. Those raise anything (a JSONDecodeError for a credential_process that prints a sentence,
an EOFError for an MFA prompt without a terminal), which becomes a `CredentialsError` here and nowhere else.
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
from batchcl.errors import CallError, CredentialsError, CredentialsFailingError, FatalCallError

__all__ = [
    "PATIENCE_S",
    "BlockingCredentials",
    "CredentialCache",
    "FixedCredentials",
    "SharedCredentials",
    "call_error",
    "signed_with",
]

PATIENCE_S: Final = 300.0
"""Credentials that were valid once may fail for this long before it ends a run."""

_LOOK_AGAIN_S: Final = 5.0
"""How long keys are taken as they are before their provider is asked whether it has newer ones.

Botocore's providers fetch new keys 15 minutes before the old ones expire, so seconds make no difference to that."""

_LOOK_UP_S: Final = 60.0
"""No provider takes longer; a role, SSO or a process of the user's own may ask a service."""

_RETRY_S: Final = 1.0
"""The least time between two look-ups of credentials that fail, however many callers wait for them."""

_PAUSE_MAX_S: Final = 5.0
_LONGEST_REASON: Final = 300
_PROVIDER: Final = ""
"""Where `_failing_since` notes that the provider fails; services have their names."""

_PROVIDERS: Final = {
    "env": ("the environment variables", "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN anew"),
    "custom-process": ("credential_process", "run that command by hand and correct it"),
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
"""Botocore's name of a provider → ours, and what to do where it fails."""

_WITHOUT_PROFILE: Final = frozenset({"env", "container-role", "iam-role"})
"""Providers for which the profile means nothing."""

_ANY_PROVIDER: Final = ("the AWS config and credentials files", "check the profile in ~/.aws/config and credentials")

_NAMED_SECRET: Final = re.compile(r"""(?i)((?:secret|token|passw|key)[\w-]*["']?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|\S+)""")
_SECRET: Final = re.compile(r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+/=-]{16,}")

T = TypeVar("T")

signed_with: Final[ContextVar[Keys]] = ContextVar("signed_with")
"""The keys of the last request that a client of aioboto3 has signed in this task."""

logging.getLogger("aiobotocore").addHandler(logging.NullHandler())  # or its tracebacks go to stderr; botocore has one


def _now() -> float:
    """The running loop's clock, or the one that loops have by default."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


class CredentialCache:
    """The keys of one session. Safe for many concurrent callers, also in threads by `current_now`.

    Keys are looked up anew when a config file changes, or a service refuses them. Once they were valid, a failure may
    pass for five minutes: `CredentialsError.may_pass` tells.

    Args:
        open_session: returns a new session of the SDK, which reads the environment and the config files anew.

    Attributes:
        method: botocore's name of the provider that found the keys.
        profile: that they belong to.
        on_wait: receives the reason when a caller begins to wait for credentials.
    """

    def __init__(self, open_session: Callable[[], AioSession]) -> None:
        self._open_session = open_session
        self.method = ""
        self.profile = ""
        self.on_wait: Callable[[str], None] = lambda _: None
        self._found: Any = None
        self._keys: Keys | None = None
        self._look_again_at = 0.0
        self._files: list[tuple[int, int, int]] = []
        self._file_names: list[str] = []
        self._lock = anyio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_lock = threading.Lock()
        self._was_valid = False
        self._accepted: set[str] = set()
        self._failing_since: dict[str, float] = {}
        self._failure = ""
        self._retry_at = 0.0
        self._waiting = 0

    async def current(self) -> Keys:
        """The keys to sign with now. While newer ones can't be had, those that there are.

        Raises:
            CredentialsError: there are none.
        """
        keys, now = self._keys, _now()
        if keys is not None and now < self._look_again_at:
            return keys
        self._loop = asyncio.get_running_loop()
        if keys is None:
            async with self._lock:
                return self._keys or await self._load()
        self._look_again_at = now + _LOOK_AGAIN_S
        try:
            if self._files == self._seen_files():
                return self._taken(await self._ask())
            async with self._lock:
                return await self._load()
        except CredentialsError:
            return keys  # until a service refuses them: what gives new ones may be back by then

    def current_now(self) -> Keys:
        """`current` for synchronous callers, in any thread."""
        keys = self._keys
        if keys is not None and _now() < self._look_again_at:
            return keys
        with self._thread_lock:  # outside of which a loop may be that of another caller below, and end too soon
            loop = self._loop
            try:
                is_here = asyncio.get_running_loop() is loop
            except RuntimeError:
                is_here = False
            if loop is None or not loop.is_running() or is_here:
                with ThreadPoolExecutor(1) as thread:  # as this thread may have a loop that runs
                    return thread.submit(anyio.run, self.current).result()
        return asyncio.run_coroutine_threadsafe(self.current(), loop).result()

    async def renew(self, refused: Keys) -> Keys:
        """Other keys than those that a service has just refused; looked up once for all callers.

        Raises:
            CredentialsError: none could be found.
        """
        async with self._lock:
            if self._keys is not None and self._keys is not refused:
                return self._keys
            self._keys = None  # even equal ones are new: nobody else looks these up again
            return await self._load()

    def accepted(self, service: str) -> None:
        """A service has answered a request that was signed with these keys."""
        if service not in self._accepted or service in self._failing_since:
            self._accepted.add(service)
            self._failing_since.pop(service, None)

    def refused(self, service: str, said: str) -> CredentialsError | None:
        """The error for keys that a service refuses again after a `renew`; None where it never accepted any."""
        if service not in self._accepted:
            return None
        return self._failed(
            service, f"{service} refuses the AWS credentials: {said.rstrip('.')}; check the profile, or log in again"
        )

    async def patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """What `act` returns; again every few seconds while it raises a `CredentialsError` that may pass."""
        pause_s = 0.0
        while True:
            try:
                return await act()
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
        """`current`, after a wait where that may help."""
        keys = self._keys
        return keys if keys is not None and _now() < self._look_again_at else await self.patiently(self.current)

    async def _load(self) -> Keys:
        """Look the keys up by a new session. Those that there are stay where that fails."""
        if self._keys is None and self._failure and _now() < self._retry_at:
            raise self._failed(_PROVIDER, self._failure)
        try:
            keys = await self._look_up()
        except CredentialsError as error:
            if self._keys is not None:
                raise
            self._failure, self._retry_at = str(error), _now() + _RETRY_S
            raise self._failed(_PROVIDER, self._failure) from None
        self._look_again_at = _now() + _LOOK_AGAIN_S
        self._was_valid = True
        self._failure = ""
        self._failing_since.pop(_PROVIDER, None)
        return keys

    async def _look_up(self) -> Keys:
        with _explained(self.profile, ""):
            session = self._open_session()
            self.profile = str(session.get_config_variable("profile") or "default")
            self._file_names = [session.get_config_variable(name) for name in ("config_file", "credentials_file")]
            seen = self._seen_files()
            providers = session.get_component("credential_provider").providers
        for provider in providers:
            if hasattr(provider, "_prompter"):  # botocore's own waits for a terminal, and blocks everything else
                provider._prompter = partial(_ask_for_code, may_ask=not self._was_valid)  # noqa: SLF001
            with _explained(self.profile, provider.METHOD), anyio.fail_after(_LOOK_UP_S):
                found = await provider.load()
                frozen = None if found is None else await found.get_frozen_credentials()
            if frozen is not None and frozen.access_key:
                keys = self._taken(frozen)
                self._found, self._files, self.method = found, seen, provider.METHOD
                return keys
        raise CredentialsError(NO_CREDENTIALS)

    async def _ask(self) -> Any:
        with _explained(self.profile, self.method), anyio.fail_after(_LOOK_UP_S):
            return await self._found.get_frozen_credentials()

    def _taken(self, frozen: Any) -> Keys:
        fresh = Keys(frozen.access_key, frozen.secret_key, frozen.token or None)
        if not all(map(_sendable, (fresh.access_key, fresh.token or "-"))):
            raise CredentialsError(
                "the AWS access key or session token holds a blank, a line break or no ASCII, so it can't be sent; "
                "check how it was set"
            )
        if self._keys is None or fresh != self._keys:
            self._keys = fresh
        return self._keys

    def _failed(self, where: str, sentence: str) -> CredentialsError:
        """The error for what fails in `where`, which may pass for five minutes where it was well before."""
        now = _now()
        lasted_s = now - self._failing_since.setdefault(where, now)
        if not self._was_valid or lasted_s < PATIENCE_S:
            return CredentialsError(sentence, may_pass=self._was_valid)
        return CredentialsError(
            f"no valid AWS credentials for {lasted_s / 60:.0f} minutes: {sentence}", has_lasted=True
        )

    def _seen_files(self) -> list[tuple[int, int, int]]:
        """What tells whether the config files have changed."""
        return [_seen(name) for name in self._file_names]


class FixedCredentials(CredentialCache):
    """Keys that are given and stay what they are."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        super().__init__(AioSession)
        self._fixed = self._keys = Keys(access_key, secret_key)
        self._look_again_at = math.inf
        self.method = "explicit"

    async def renew(self, refused: Keys) -> Keys:
        """The same ones."""
        return self._fixed

    def refused(self, service: str, said: str) -> CredentialsError | None:
        """Nothing to add."""
        return None


class SharedCredentials(AioCredentials):  # type: ignore[misc]  # it has no types
    """A cache as aioboto3's clients take it: each request is signed with the keys of its time."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__("", "", method="batchcl")
        self._cache = cache

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys, after a wait where that may help; `signed_with` holds them. Raises `CredentialsError`."""
        keys = await self._cache.wait()
        signed_with.set(keys)
        return _frozen(keys)


class BlockingCredentials(Credentials):  # type: ignore[misc]  # it has no types
    """A cache as boto3's clients take it."""

    def __init__(self, cache: CredentialCache) -> None:
        super().__init__("", "", method="batchcl")
        self._cache = cache

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys. Raises `CredentialsError`."""
        return _frozen(self._cache.current_now())


def call_error(error: CredentialsError) -> CallError:
    """`error` as what one call came back with."""
    kind = CredentialsFailingError if error.may_pass else FatalCallError
    return kind(str(error), code="Credentials")


def _frozen(keys: Keys) -> ReadOnlyCredentials:
    return ReadOnlyCredentials(keys.access_key, keys.secret_key, keys.token)


def _seen(name: str) -> tuple[int, int, int]:
    try:
        found = os.stat(os.path.expanduser(name))
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def _ask_for_code(prompt: str, *, may_ask: bool) -> str:
    if not may_ask:
        raise EOFError("the session that an MFA code began has expired")
    if sys.stdin is None or not sys.stdin.isatty():
        raise EOFError("it needs an MFA code, and stdin is not a terminal")
    return getpass.getpass(prompt)


@contextmanager
def _explained(profile: str, method: str) -> Iterator[None]:
    """Turn whatever a provider raises into one sentence, without what it printed and without its cause."""
    try:
        yield
    except CredentialsError:
        raise
    except Exception as error:  # noqa: BLE001 - providers raise anything
        by, advice = _PROVIDERS.get(method, _ANY_PROVIDER)
        whose = "" if method in _WITHOUT_PROFILE or not profile else f" of profile {profile}"
        if isinstance(error, EOFError):
            advice = "use a profile without mfa_serial, or temporary keys from `aws sts get-session-token`"
        if method == "sso" and whose:
            advice = advice.replace("sso login", f"sso login --profile {profile}")
        raise CredentialsError(
            f"loading the AWS credentials{whose} with {by} failed: {_reported(error, method)}; {advice}"
        ) from None


def _reported(error: Exception, method: str) -> str:
    """What a provider's error says, in one line and without secrets."""
    match error:
        case EOFError():
            said = str(error) or "it asks for input, and there is none"
        case TimeoutError():
            said = f"no answer within {_LOOK_UP_S:.0f} s"
        case json.JSONDecodeError() | UnicodeError():
            said = "its output is not JSON" if method == "custom-process" else "its response is not JSON"
        case ValueError() if type(error).__module__.startswith("dateutil"):
            said = "its Expiration is not a time"
        case ClientError():
            said = f"{error_code(error)}: {error_message(error)}"
        case CredentialRetrievalError():  # with what a credential_process wrote to its stderr
            said = _without_secrets(str(error.kwargs.get("error_msg", error)))
        case BotoCoreError() | RuntimeError():
            said = str(error)
        case OSError():
            said = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        case KeyError() if method == "sso":
            said = "the saved login can't be read"
        case KeyError():
            said = f"{error} is missing"
        case ValueError():  # such as a quotation without its end
            said = _without_secrets(str(error))
        case _:
            said = f"its output is not as expected ({type(error).__name__})"
    return " ".join(said.split())[:_LONGEST_REASON].rstrip(". ") or type(error).__name__


def _without_secrets(text: str) -> str:
    return _SECRET.sub("***", _NAMED_SECRET.sub(r"\1***", text))


def _sendable(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
