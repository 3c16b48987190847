"""Lists a prefix by many requests at a time, in the order of a serial listing.

The keys ahead are split into ranges `low < key <= high`, each of which is listed by itself from `start-after` on. Where
to split is extrapolated: if a page moves on by so much, five pages move on by five times as much. Keys don't count so
evenly, but nothing except speed depends on the split points, as the ranges are disjoint and cover everything: a range
that turns out empty costs a request, and one that turns out long is split again.

Memory is bounded by pages. Where there is no room, the range farthest ahead is dropped, to be listed again later, in
favor of an earlier one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from operator import lt
from typing import Final

import anyio

from batchcl.aws.listing import PageReader
from batchcl.aws.listing_page import Page
from batchcl.errors import BatchclError, SourceError

__all__ = ["MAX_REQUESTS", "KeyRange", "KeyRanges", "read_in_order", "split_points"]

_SERIAL_PAGES: Final = 2
"""Listed one by one before any range: a prefix this small costs no request more than a serial listing."""
MAX_REQUESTS: Final = 16
_ROUND_PAGES: Final = 48
_MAX_PAGES: Final = 160
"""Kept ahead: at about 300 bytes an object, some 50 MB."""

_PAGES_APART: Final = 5
_SPLIT_POINTS: Final = 4
_SAMPLES: Final = 24
_SURROGATES: Final = range(0xD800, 0xE000)
_CHARACTERS: Final = 0x110000


async def read_in_order(
    reader: PageReader, *, prefix: str = "", after: str | None = None
) -> AsyncGenerator[Page, None]:
    """All pages behind the key `after`, none of them empty, in the order of a serial listing.

    Where the server doesn't list in a known order, that is what it is. Otherwise it becomes one of up to 16 requests at
    a time, in rounds that grow, so that a caller who wants only the first images doesn't wait for others. No request is
    in flight while the caller has a page: it may leave at any time, in any task.

    Raises:
        BatchclError: the first one that a request ended with.
    """
    cursor, token, count = after, None, 0
    while True:
        page = await reader.page(after=cursor, token=token)
        _check(page, cursor, token, is_sorted=page.is_sorted)
        if page.keys:
            yield page
            cursor = page.keys[-1]
        if page.is_last:
            return
        token = page.token
        count += 1
        if page.is_sorted and page.keys and count >= _SERIAL_PAGES:
            break
    ranges = KeyRanges(prefix, page, max_pages=_MAX_PAGES)
    wanted = 2 * _SERIAL_PAGES
    while not ranges.is_done:
        await _read_round(reader, ranges, wanted)
        for page in ranges.take():
            yield page
        wanted = min(2 * wanted, _ROUND_PAGES)


async def _read_round(reader: PageReader, ranges: KeyRanges, wanted: int) -> None:
    """Read until so many pages can be taken, or all there are."""
    errors: list[BatchclError] = []
    in_flight = 0

    def start_requests() -> None:
        nonlocal in_flight
        while in_flight < MAX_REQUESTS and ranges.ready_pages < wanted and (part := ranges.next_range()) is not None:
            in_flight += 1
            group.start_soon(read, part)

    async def read(part: KeyRange) -> None:
        nonlocal in_flight
        try:
            page = await reader.page(after=part.cursor, token=part.token)
            _check(page, part.cursor, part.token, is_sorted=True)
        except BatchclError as error:
            errors.append(error)
            group.cancel_scope.cancel()
            return
        ranges.add(part, page)
        in_flight -= 1
        start_requests()

    async with anyio.create_task_group() as group:
        start_requests()
    if errors:
        raise errors[0]


@dataclass(slots=True, eq=False)
class KeyRange:
    """The keys behind `low` up to and with `high`; None: to the end.

    Attributes:
        low: not part of it.
        high: part of it.
        cursor: its keys up to here have been read.
        token: where the server says that the listing continues behind the cursor; None: behind the cursor.
        pages: read, and not taken yet.
        newest: the keys of its last page, until it has been split by them.
        is_read: whether all of it has been.
        in_flight: whether a request for it is.
    """

    low: str
    high: str | None
    cursor: str
    token: str | None = None
    pages: list[Page] = field(default_factory=list)
    newest: Sequence[str] = ()
    is_read: bool = False
    in_flight: bool = False

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of it has been read or requested."""
        return self.cursor == self.low and self.token is None and not (self.in_flight or self.is_read)


class KeyRanges:
    """The state of one listing: says which range to read next, takes pages, and returns them in order. Does no I/O.

    Args:
        prefix: of all keys.
        behind: the page, not an empty one, behind which the listing continues.
        max_pages: to keep, apart from those of the first range and those in flight.
    """

    def __init__(self, prefix: str, behind: Page, *, max_pages: int) -> None:
        last = behind.keys[-1]
        self._prefix = prefix
        self._ranges = [KeyRange(last, None, last, behind.token, newest=behind.keys)]
        self._max_pages = max_pages
        self._kept_pages = 0

    @property
    def is_done(self) -> bool:
        """Whether everything has been read and taken."""
        return not self._ranges

    @property
    def ready_pages(self) -> int:
        """Pages that can be taken now."""
        count = 0
        for part in self._ranges:
            count += len(part.pages)
            if not part.is_read:
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
        self._kept_pages -= len(taken)
        return taken

    def next_range(self) -> KeyRange | None:
        """The earliest range to read a page of, marked as in flight; None until another page has been added."""
        for place, part in enumerate(self._ranges):  # a split inserts ranges behind this one, which come next
            if part.is_read:
                continue
            if not part.in_flight:
                if place and not self._make_room(place):
                    return None
                part.in_flight = True
                return part
            self._split(place)
        return None

    def add(self, part: KeyRange, page: Page) -> None:
        """Take the page behind the cursor of `part`. What lies behind its end goes to the ranges that follow."""
        part.in_flight = False
        place, rest = self._ranges.index(part), page
        while True:
            count = len(rest.keys) if part.high is None else bisect_right(rest.keys, part.high)
            own, rest = rest.cut(count)
            if own.keys:
                part.pages.append(own)
                part.cursor, part.newest = own.keys[-1], own.keys
                self._kept_pages += 1
            part.token = page.token
            part.is_read = page.is_last or bool(rest.keys)
            place += 1
            if not part.is_read or place == len(self._ranges) or not self._ranges[place].is_untouched:
                return
            part = self._ranges[place]

    def _split(self, place: int) -> None:
        """Split what lies ahead in a range that is in flight: once for each page of it."""
        part = self._ranges[place]
        names = split_points(part.newest, floor=len(self._prefix)) if part.newest else []
        part.newest = ()
        names = [name for name in names if part.high is None or name < part.high]
        if names:
            ends = [*names[1:], part.high]
            self._ranges[place + 1 : place + 1] = [
                KeyRange(low, high, low) for low, high in zip(names, ends, strict=True)
            ]
            part.high = names[0]

    def _make_room(self, place: int) -> bool:
        """Whether a page more can be kept for the range at `place`, if need be instead of later ones."""
        if self._kept_pages < self._max_pages:
            return True
        for later in reversed(self._ranges[place + 1 :]):
            if later.pages and not later.in_flight:
                self._kept_pages -= len(later.pages)
                later.pages.clear()
                later.cursor, later.token, later.newest, later.is_read = later.low, None, (), False
                return True
        return False


def split_points(keys: Sequence[str], *, floor: int) -> list[str]:
    """Rising names behind the last of `keys`, which are those of one page; there need not be such keys.

    The first and last key differ from some place on: there a page counts on by a distance, with carry to the left, but
    not into the first `floor` characters. The digits are the ASCII characters that vary from that place on.
    """
    first, last = keys[0], keys[-1]
    place = next((at for at, (left, right) in enumerate(zip(first, last, strict=False)) if left != right), None)
    if place is None:
        return []
    columns = zip(*(key[place:] for key in keys[:: max(1, len(keys) // _SAMPLES)]), strict=False)
    varying = set[str]().union(*(values for values in map(set, columns) if len(values) > 1))
    digits = "".join(sorted(filter(str.isascii, varying)))
    if first[place] in digits and last[place] in digits:
        distance = digits.index(last[place]) - digits.index(first[place])
    else:
        distance = ord(last[place]) - ord(first[place])
    found = [last]
    for number in range(1, _SPLIT_POINTS + 1):
        name = _count_on(last, place, number * _PAGES_APART * distance, digits, floor=floor)
        if name is not None and name > found[-1]:
            found.append(name)
    return found[1:]


def _count_on(key: str, place: int, distance: int, digits: str, *, floor: int) -> str | None:
    """`key` up to `place`, so far on, with carry; None where that is behind all keys with the same first `floor`."""
    counted = ""
    for here in range(place, floor - 1, -1):
        value = digits.find(key[here])
        if value >= 0:
            distance, rest = divmod(value + distance, len(digits))
            counted = digits[rest] + counted
            if not distance:
                return key[:here] + counted
        elif here == place:
            code = ord(key[here]) + distance
            code = _SURROGATES.stop if code in _SURROGATES else code
            return key[:here] + chr(code) if code < _CHARACTERS else None
        else:
            counted = key[here] + counted
    return None


def _check(page: Page, cursor: str | None, token: str | None, *, is_sorted: bool) -> None:
    """Raise `SourceError` for a page that is out of order, where it has to be sorted, or doesn't lead on."""
    keys = page.keys
    in_order = not keys or ((cursor is None or cursor < keys[0]) and all(map(lt, keys, keys[1:])))
    if is_sorted and not in_order:
        raise SourceError(
            f"the server, which says that it is S3, lists {keys[0]!r} and what follows out of order; list it with "
            "--transport aioboto3, which reads one page after the other"
        )
    leads_on = page.token != token if page.token is not None else bool(keys) and keys[-1] != cursor
    if not page.is_last and not leads_on:
        raise SourceError("the server lists the same page again and again: it has no end; check the endpoint")
