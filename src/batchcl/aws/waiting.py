"""Waiting until something in AWS has changed its status.

Botocore's waiters give up after a fixed number of looks and don't notice other ends than the one they wait for, so
there is one of our own: patient while the service doesn't answer, and over as soon as the wait is in vain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol, TypeVar

import anyio

from batchcl.errors import RefusedError, StoppedError, UnreachableError

__all__ = ["GONE", "LONG_PAUSES_S", "Waited", "wait_until"]

GONE: Final = "GONE"
"""The status of what isn't there any more."""

LONG_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Between two looks at something that takes hours; the last one repeats."""

_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_SILENCE_S: Final = 300.0
"""A wait outlives so long a time without an answer."""


class Waited(Protocol):
    """What can be waited for."""

    @property
    def name(self) -> str:
        """As a person calls it."""
        ...

    @property
    def status(self) -> str:
        """The service's own word."""
        ...

    @property
    def message(self) -> str:
        """The service's reason for it; may be empty."""
        ...


_T = TypeVar("_T", bound=Waited)


async def wait_until(
    look: Callable[[], Awaitable[_T]],
    *,
    until: Collection[str],
    passing: Collection[str],
    timeout_s: float,
    on_state: Callable[[_T], None] = lambda _: None,
    refusal: type[RefusedError] = RefusedError,
    pauses_s: Sequence[float] | None = None,
) -> _T:
    """Look until the status is one of `until`, and return what was seen then.

    Args:
        look: describes the thing as it is now.
        until: the statuses to wait for.
        passing: statuses on the way to them; any other ends the wait.
        timeout_s: how long at most.
        on_state: told of each change of status, the first one included.
        refusal: the class of the error for another end.
        pauses_s: between two looks; the last one repeats. Left out: from half a second to fifteen.

    Raises:
        RefusedError: it took another way, with the service's reason.
        StoppedError: it took longer than `timeout_s`.
        UnreachableError: the service has not answered for five minutes.
    """
    pauses_s = _PAUSES_S if pauses_s is None else pauses_s
    deadline = anyio.current_time() + timeout_s
    seen: str | None = None
    looks = 0
    heard_at = anyio.current_time()
    while True:
        await anyio.sleep(pauses_s[min(looks, len(pauses_s)) - 1] if looks else 0)
        looks += 1
        try:
            found = await look()
        except UnreachableError:
            if anyio.current_time() - heard_at > _SILENCE_S:
                raise
            continue
        heard_at = anyio.current_time()
        if found.status != seen:
            seen = found.status
            on_state(found)
        if found.status in until:
            return found
        if found.status not in passing:
            reason = f": {found.message}" if found.message else ""
            wanted = " or ".join(sorted(until))
            raise refusal(f"{found.name} is {found.status} and will not become {wanted}{reason}")
        if anyio.current_time() >= deadline:
            raise StoppedError(f"{found.name} was still {found.status} after {timeout_s / 60:.0f} minutes")
