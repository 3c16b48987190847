"""Rejected calls whose reason may be the image's own or concern every image: which of the two, later calls show.

A rejection is held until a call that was sent after it is accepted: then the reason was the image's own. When 20 calls
that were sent one after the other are all rejected, the reason is presumed to concern the images that follow, too.
The order in which calls were sent counts, since rejections often come back sooner than labels do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from batchcl.errors import RejectedError
from batchcl.scoring.queue import WorkItem

__all__ = ["MOST_IN_A_ROW", "Rejection", "Rejections"]

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
