"""Which parts of a long listing to read next, so that many requests at a time read it in order and without gaps.

The keys ahead are cut into ranges, each of which is read by itself. Where to cut is guessed (`batchcl.sources.cuts`);
nothing but speed depends on the guesses, as ranges are disjoint by key and together cover everything.

Memory is bounded by pages. Where there is no room, the range that lies farthest ahead is forgotten, to be read again
later, for the sake of one that is wanted earlier. So a listing takes at most about twice the requests of a serial one,
and a page more for each range.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import lt
from typing import Final

from batchcl.aws.listing_page import Page
from batchcl.errors import SourceError
from batchcl.sources.cuts import Scale

__all__ = ["KeyRange", "KeyRanges"]

_BEFORE_CUTS: Final = 2
"""Pages that are read one by one: a prefix this small never costs a request more than a serial listing."""
_CUTS_AT_ONCE: Final = 4
_LONG_PAGES: Final = 8
"""A range that no guess has cut for so many pages is cut closer."""


@dataclass(slots=True, eq=False)
class KeyRange:
    """The keys behind `low` up to and with `high`; None: from the beginning, to the end.

    Attributes:
        low: not part of it.
        high: part of it.
        cursor: what was read reaches to here.
        token: the server's own word for where to go on; else the cursor is.
        pages: read, and not taken yet.
        is_read: whether all of it is.
        is_busy: whether a request for it is under way.
        newest: the keys of its last page, until they have served to cut it.
        pages_since_cut: how long it is so far, behind where it was cut last.
    """

    low: str | None
    high: str | None
    cursor: str | None
    token: str | None = None
    pages: list[Page] = field(default_factory=list)
    is_read: bool = False
    is_busy: bool = False
    newest: Sequence[str] = ()
    pages_since_cut: int = 0

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of it was ever read, or all of that was forgotten."""
        return self.cursor == self.low and self.token is None and not (self.is_busy or self.is_read)

    def forget(self) -> None:
        """Read it anew some other time."""
        self.cursor, self.token, self.is_read = self.low, None, False
        self.pages.clear()
        self.newest, self.pages_since_cut = (), 0


class KeyRanges:
    """The state of one listing: says what to read, takes what was read, gives pages in order. Awaits nothing.

    Args:
        prefix: that all keys have.
        after: the listing begins behind this key.
        room_pages: to keep at most, but for those of the first range and those under way.

    Attributes:
        forgotten_pages: read and dropped so far, because there was no room.
    """

    def __init__(self, prefix: str = "", *, after: str | None = None, room_pages: int = 96) -> None:
        self._ranges = [KeyRange(low=after, high=None, cursor=after)]
        self._scale = Scale(prefix)
        self._room = room_pages
        self._kept = 0
        self._arrived = 0
        self._is_sorted = False
        self.forgotten_pages = 0

    @property
    def is_over(self) -> bool:
        """Whether everything was read and taken."""
        return not self._ranges

    @property
    def ready_pages(self) -> int:
        """Pages that can be taken now."""
        count = 0
        for each in self._ranges:
            count += len(each.pages)
            if not each.is_read:
                break
        return count

    def take(self) -> list[Page]:
        """The pages that come next, in order; none is empty."""
        taken: list[Page] = []
        while self._ranges:
            first = self._ranges[0]
            taken += first.pages
            first.pages.clear()
            if not first.is_read:
                break
            del self._ranges[0]
        self._kept -= len(taken)
        return taken

    def next_range(self) -> KeyRange | None:
        """The range to read a page of now, marked busy; None where nothing is to be read until a page has arrived.

        What is wanted earliest comes first.
        """
        place = 0
        while place < len(self._ranges):
            each = self._ranges[place]
            if not each.is_read:
                if not each.is_busy:
                    if place and not self._make_room(place):
                        return None
                    each.is_busy = True
                    return each
                self._cut(place)
            place += 1
        return None

    def arrived(self, part: KeyRange, page: Page) -> None:
        """Take a page that was read for `part`, behind its token or cursor.

        Raises:
            SourceError: the page is out of order, of a server that lists in order, or doesn't lead on.
        """
        if page.is_sorted:
            _check_order(part.cursor, page.keys)
        if not page.is_last and not _leads_on(part, page):
            raise SourceError("the server lists the same page again and again: it has no end; check the endpoint")
        part.is_busy = False
        self._arrived += 1
        self._is_sorted = page.is_sorted
        self._put(part, page)

    def _put(self, part: KeyRange, page: Page) -> None:
        """Add to `part` what is its own of `page`, and give what lies behind to the ranges that follow."""
        own, behind = page, None
        if part.high is not None and (page.is_last or (page.keys and page.keys[-1] > part.high)):
            own, behind = page.cut(bisect_right(page.keys, part.high))
        if own.keys:
            part.pages.append(own)
            part.newest = own.keys
            part.cursor = own.keys[-1]
            self._kept += 1
        part.pages_since_cut += 1
        part.token = page.token
        part.is_read = page.is_last or behind is not None
        if behind is not None:
            if behind.keys:
                self._scale.learn(part.pages_since_cut, last=part.cursor or "", first_behind=behind.keys[0])
            self._hand_on(part, behind)

    def _hand_on(self, part: KeyRange, behind: Page) -> None:
        following = self._ranges[self._ranges.index(part) + 1]
        if following.is_untouched:
            self._put(following, behind)

    def _cut(self, place: int) -> None:
        """Cut what lies ahead in a range that is being read: once for each page of it."""
        part = self._ranges[place]
        if not (part.newest and self._is_sorted and self._arrived >= _BEFORE_CUTS):
            return
        names = [
            name
            for name in self._scale.cuts(part.newest, at_most=_CUTS_AT_ONCE)
            if part.high is None or name < part.high
        ]
        part.newest = ()
        if names:
            bounds = zip(names, [*names[1:], part.high], strict=True)
            self._ranges[place + 1 : place + 1] = [KeyRange(low=low, high=high, cursor=low) for low, high in bounds]
            part.high, part.pages_since_cut = names[0], 0
        elif part.pages_since_cut >= _LONG_PAGES:
            self._scale.lower()

    def _make_room(self, place: int) -> bool:
        """Whether a page more can be kept for the range at `place`, if need be at the expense of later ones."""
        if self._kept < self._room:
            return True
        for later in reversed(self._ranges[place + 1 :]):
            if later.pages and not later.is_busy:
                self._kept -= len(later.pages)
                self.forgotten_pages += len(later.pages)
                later.forget()
                return True
        return False


def _leads_on(part: KeyRange, page: Page) -> bool:
    if page.token is not None:
        return page.token != part.token
    return bool(page.keys) and (part.cursor is None or page.keys[-1] != part.cursor)


def _check_order(cursor: str | None, keys: Sequence[str]) -> None:
    if keys and ((cursor is not None and keys[0] <= cursor) or not all(map(lt, keys, keys[1:]))):
        raise SourceError(
            f"the server, which says that it is S3, lists {keys[0]!r} and what follows out of order; list it with "
            "--transport aioboto3, which reads one page after the other"
        )
