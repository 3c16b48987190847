"""The keys that requests are signed with, kept fresh for hours on end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.session import Aws
from batchcl.aws.sigv4 import Keys
from batchcl.errors import FatalCallError

__all__ = ["KeyRing"]

_LOOK_AGAIN_S: Final = 5.0
"""How long keys are taken as they are before their provider is asked whether it has newer ones.

Botocore's providers fetch new keys 15 minutes before the old ones expire, so seconds make no difference to that."""

_LOOK_UP_S: Final = 60.0
"""No provider takes longer; a role, SSO or a process of the user's own may ask a service."""


class KeyRing:
    """The session's keys for one service. Safe for many concurrent callers.

    Args:
        aws: where the keys come from.
        service: `rekognition` or `s3`.
        monotonic: seconds on a clock that only goes on.
    """

    def __init__(self, aws: Aws, service: str, *, monotonic: Callable[[], float]) -> None:
        self._aws = aws
        self._service = service
        self._monotonic = monotonic
        self._provider: Any = None
        self._keys: Keys | None = None
        self._look_again_at = 0.0
        self._lock = anyio.Lock()

    async def current(self) -> Keys:
        """The keys to sign with now. While somebody fetches newer ones, the others go on with those that there are.

        Raises:
            FatalCallError: there are none, or none could be fetched.
        """
        keys, now = self._keys, self._monotonic()
        if keys is not None and now < self._look_again_at:
            return keys
        if keys is None:
            async with self._lock:
                return self._keys or await self._look_up()
        self._look_again_at = now + _LOOK_AGAIN_S
        try:
            return await self._ask()
        except FatalCallError:
            return keys  # until the service refuses them: what gives new ones may be back by then

    async def renew(self, refused: Keys) -> Keys:
        """Other keys than those that the service has just refused as expired; looked up once for all callers.

        Raises:
            FatalCallError: none could be fetched.
        """
        async with self._lock:
            if self._keys is refused:
                self._aws = self._aws.renewed()
                self._keys = None  # even equal ones are new: nobody else looks these up again
                return await self._look_up()
            return self._keys or await self._look_up()

    async def _look_up(self) -> Keys:
        with _told(), anyio.fail_after(_LOOK_UP_S):
            self._provider = await self._aws.credentials(self._service)
        if self._provider is None:
            raise FatalCallError(
                "no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "
                "`aws configure`",
                code="Credentials",
            )
        self._look_again_at = self._monotonic() + _LOOK_AGAIN_S
        return await self._ask()

    async def _ask(self) -> Keys:
        with _told(), anyio.fail_after(_LOOK_UP_S):
            frozen = await self._provider.get_frozen_credentials()
        fresh = Keys(frozen.access_key, frozen.secret_key, frozen.token or None)
        if not all(map(_sendable, (fresh.access_key, fresh.token or "-"))):
            raise FatalCallError(
                "the AWS access key or session token holds a blank, a line break or no ASCII, so it can't be sent; "
                "check how it was set",
                code="Credentials",
            )
        if self._keys is None or fresh != self._keys:
            self._keys = fresh
        return self._keys


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a provider of credentials raises into one sentence."""
    try:
        yield
    except (BotoCoreError, ClientError, RuntimeError, OSError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise FatalCallError(f"the AWS credentials can't be loaded: {why}; log in again", code="Credentials") from error


def _sendable(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
