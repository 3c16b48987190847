"""Waits until a resource in AWS has a given status.

Botocore's waiters stop after a fixed number of polls and don't detect other final statuses. This one tolerates a
service that does not respond for a while, and fails as soon as the status can't be reached any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol, TypeVar

import anyio

from batchcl.errors import ErrorCode, RefusedError, StoppedError, UnreachableError

__all__ = ["GONE", "LONG_PAUSES_S", "Resource", "wait_until"]

GONE: Final = "GONE"
"""The status of a resource that was deleted."""

LONG_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses between polls for operations of hours; the last one repeats."""

_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_MAX_UNREACHABLE_S: Final = 300.0
"""How long the service may not respond before the wait fails."""


class Resource(Protocol):
    """A resource with a status."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def status(self) -> str:
        """As the service reports it."""
        ...

    @property
    def message(self) -> str:
        """The service's reason for the status; may be empty."""
        ...


_T = TypeVar("_T", bound=Resource)


async def wait_until(
    describe: Callable[[], Awaitable[_T]],
    *,
    until: Collection[str],
    passing: Collection[str],
    timeout_s: float,
    on_state: Callable[[_T], None] = lambda _: None,
    refusal: type[RefusedError] = RefusedError,
    pauses_s: Sequence[float] | None = None,
) -> _T:
    """Poll until the resource has a status in `until`, and return it.

    Args:
        describe: returns the current resource.
        until: the statuses to wait for.
        passing: statuses before that; any other one fails the wait.
        timeout_s: maximum time.
        on_state: receives the resource at each change of status, including the first one.
        refusal: the class of the error for any other status.
        pauses_s: between two polls; the last one repeats. Default: from half a second to fifteen.

    Raises:
        RefusedError: it got another status; with the service's reason.
        StoppedError: it took longer than `timeout_s`.
        UnreachableError: the service has not responded for five minutes.
    """
    pauses_s = _PAUSES_S if pauses_s is None else pauses_s
    deadline = anyio.current_time() + timeout_s
    last_status: str | None = None
    polls = 0
    responded_at = anyio.current_time()
    while True:
        await anyio.sleep(pauses_s[min(polls, len(pauses_s)) - 1] if polls else 0)
        polls += 1
        try:
            resource = await describe()
        except UnreachableError:
            if anyio.current_time() - responded_at > _MAX_UNREACHABLE_S:
                raise
            continue
        responded_at = anyio.current_time()
        if resource.status != last_status:
            last_status = resource.status
            on_state(resource)
        if resource.status in until:
            return resource
        if resource.status not in passing:
            reason = f": {resource.message}" if resource.message else ""
            wanted = " or ".join(sorted(until))
            raise refusal(
                f"{resource.name} is {resource.status} and will not become {wanted}{reason}",
                code=ErrorCode.RESOURCE_FAILED,
            )
        if anyio.current_time() >= deadline:
            raise StoppedError(
                f"{resource.name} was still {resource.status} after {timeout_s / 60:.0f} minutes",
                code=ErrorCode.TIMED_OUT,
            )
