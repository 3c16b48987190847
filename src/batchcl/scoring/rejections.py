"""Rejected calls: what the pacer learns from them, and whether their reason concerns one image or all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from batchcl.errors import CallError, HostError, ImageError, RejectedError, ThrottledError
from batchcl.pacing.pacer import Pacer
from batchcl.scoring.queue import WorkItem

__all__ = ["MOST_IN_A_ROW", "Rejection", "Rejections", "report_to_pacer", "was_sent"]


def was_sent(error: CallError) -> bool:
    """Whether the service was asked at all; it isn't for an image whose bytes can't be had."""
    return not (isinstance(error, HostError) or (isinstance(error, ImageError) and error.status is None))


def report_to_pacer(pacer: Pacer, error: CallError, *, sent_at: float) -> None:
    """Report to `pacer` that the call that began at `sent_at` ended in `error`.

    The turn of an image that can't be read is given back, so that the service gets as many calls as it takes. It is
    not where reading may succeed later: what waits for its next attempt must not become more and more.
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


MOST_IN_A_ROW: Final = 20
"""Rejections of calls that were sent one after the other, after which the run doesn't go on as before."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image without an outcome yet, and what its call came back with."""

    item: WorkItem
    error: RejectedError


class Rejections:
    """The rejections that are held, among the calls of one engine.

    At most 20 are held for each call in flight, as every row of them is shorter than 20.
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
        """The rejections whose images have no outcome yet."""
        return list(self._held.values())

    def sent(self) -> int:
        """A call goes out; return its number."""
        number = next(self._numbers)
        self._pending.add(number)
        return number

    def ended(self, number: int) -> None:
        """The call has ended, whatever with."""
        self._pending.discard(number)

    def accepted(self, number: int) -> list[Rejection]:
        """The service has read the call's image: what was rejected before it was sent is no longer held."""
        self._accepted = max(self._accepted, number)
        return self._released(number) if self._held else []

    def rejected(self, number: int, rejection: Rejection) -> bool:
        """Hold `rejection`; False where a later call was accepted already, so that the image's own outcome is due."""
        if number < self._accepted:
            return False
        self._held[number] = rejection
        return True

    def in_a_row(self) -> list[Rejection]:
        """The first 20 or more rejections without another call in between; empty while there are none."""
        row: list[Rejection] = []
        for number in sorted(self._pending.union(self._held)):
            if number in self._held:
                row.append(self._held[number])
            elif len(row) >= MOST_IN_A_ROW:
                break
            else:
                row = []
        return row if len(row) >= MOST_IN_A_ROW else []

    def release_all(self) -> list[Rejection]:
        """What is held, which is no longer held then."""
        held, self._held = self._held, {}
        return list(held.values())

    def _released(self, number: int) -> list[Rejection]:
        return [self._held.pop(each) for each in sorted(self._held) if each < number]
