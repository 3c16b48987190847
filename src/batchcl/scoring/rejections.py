"""Decides whether rejected calls (`RejectedError`) concern one image or all, and reports failed calls to the pacer.

AccessDenied, for example, may concern one object, or every object after a permission was revoked. So an image with a
rejected call has no outcome until a call that was sent later is accepted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from batchcl.errors import CallError, HostError, ImageError, RejectedError, ThrottledError
from batchcl.pacing.pacer import Pacer
from batchcl.scoring.queue import WorkItem

__all__ = ["MAX_IN_A_ROW", "Rejection", "Rejections", "report_to_pacer", "was_sent"]


def was_sent(error: CallError) -> bool:
    """Whether a call was sent; none is for an image whose bytes can't be read."""
    return not (isinstance(error, HostError) or (isinstance(error, ImageError) and error.status is None))


def report_to_pacer(pacer: Pacer, error: CallError, *, sent_at: float) -> None:
    """Report to `pacer` that the call that began at `sent_at` failed with `error`.

    The slot of an image that can't be read is given back, so that the service receives as many calls as it accepts.
    It is not given back if reading is retried: otherwise more and more images would wait for their next attempt.
    """
    match error:
        case ThrottledError():
            pacer.throttled(sent_at=sent_at, by_model=not (error.sudden or error.downloads))
        case HostError():
            pacer.unsent(sent_at=sent_at, give_back=False)
        case ImageError(status=None):
            pacer.unsent(sent_at=sent_at, give_back=True)
        case ImageError():
            pacer.succeeded(sent_at=sent_at)


MAX_IN_A_ROW: Final = 20
"""After this many rejected calls in a row, the engine checks whether the run can continue."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image without an outcome, and the error of its call."""

    item: WorkItem
    error: RejectedError


class Rejections:
    """Holds the rejections of one engine's calls until a later call is accepted.

    Calls are numbered in the order in which they were sent. At most 20 rejections per call in flight are held.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._pending: set[int] = set()
        self._held: dict[int, Rejection] = {}
        self._accepted = -1

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> list[Rejection]:
        """The held rejections; their images have no outcome yet."""
        return list(self._held.values())

    def sent(self) -> int:
        """Record a call that is sent, and return its number."""
        number = next(self._numbers)
        self._pending.add(number)
        return number

    def ended(self, number: int) -> None:
        """Record that the call has ended, with any result."""
        self._pending.discard(number)

    def accepted(self, number: int) -> list[Rejection]:
        """Record that the service has read the call's image; release the rejections of calls sent before it."""
        self._accepted = max(self._accepted, number)
        return self._released(number) if self._held else []

    def rejected(self, number: int, rejection: Rejection) -> bool:
        """Hold `rejection`; return False if a later call was accepted: the rejection then concerns this image only."""
        if number < self._accepted:
            return False
        self._held[number] = rejection
        return True

    def in_a_row(self) -> list[Rejection]:
        """Return the first 20 or more consecutive rejections; empty if there are none."""
        row: list[Rejection] = []
        for number in sorted(self._pending.union(self._held)):
            if number in self._held:
                row.append(self._held[number])
            elif len(row) >= MAX_IN_A_ROW:
                break
            else:
                row = []
        return row if len(row) >= MAX_IN_A_ROW else []

    def release_all(self) -> list[Rejection]:
        """Return all held rejections, and hold none."""
        held, self._held = self._held, {}
        return list(held.values())

    def _released(self, number: int) -> list[Rejection]:
        return [self._held.pop(each) for each in sorted(self._held) if each < number]
