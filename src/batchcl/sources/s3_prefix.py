"""All objects below an S3 prefix, by several ListObjectsV2 requests at a time, in key order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from operator import lt
from typing import Final

import anyio

from batchcl.aws.listing import ListingPage, PageReader, open_pages
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import BatchclError, SourceError
from batchcl.images import ImageRef, Position
from batchcl.sources.base import SourceCheck
from batchcl.sources.repeats import NO_NAMES

__all__ = ["MAX_REQUESTS", "KeyRange", "KeyRanges", "S3PrefixSource", "read_in_order", "split_points"]


class S3PrefixSource:
    """Every object whose key starts with the prefix, in S3's own order.

    The prefix is a string, as S3 has it: `s3://b/2026` also lists `2026-old/x.jpg`; end it with `/` to mean a folder.
    Keys come exactly as they are: S3 is asked to URL-encode its answer, which is decoded once.

    A listing is no snapshot. An object that is there throughout, with the same key, comes exactly once; one that is
    written or deleted while the listing goes on may come or not, and never twice.

    A long prefix is listed by 16 requests at a time where the server is S3 itself, which lists in UTF-8 binary order;
    other servers don't promise an order, so their pages are read one after the other, and so are those
    of the transport `aioboto3`.

    Keys that start with one of `leave_out` don't belong to the source: they are the output root's.
    """

    exhaustive = True
    repeats = NO_NAMES

    def __init__(
        self,
        uri: str,
        aws: Aws,
        *,
        region: str,
        transport: Transport = Transport.WIRE,
        leave_out: tuple[str, ...] = (),
        is_explicit: bool = False,
    ) -> None:
        self.is_explicit = is_explicit
        self.description = uri
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._aws = aws
        self._region = region
        self._transport = transport
        self._leave_out = leave_out

    async def check(self) -> SourceCheck:
        """Names the bucket; whether it can be reached is checked for all buckets of a run together."""
        try:
            self._prefix.encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{self.description!r} is no UTF-8, as S3's keys are; check the prefix") from error
        folders = tuple(f"s3://{self._bucket}/{prefix}" for prefix in self._leave_out)
        return SourceCheck(buckets=frozenset({self._bucket}), left_out_folders=folders)

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """Whether they have the prefix, and are not left out."""
        return [
            image.bucket == self._bucket
            and image.key.startswith(self._prefix)
            and not image.key.startswith(self._leave_out)
            for image in images
        ]

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The objects in pages of at most a thousand; raises `RefusedError` or `SourceError` as the bucket has it."""
        opened = open_pages(
            self._aws,
            bucket=self._bucket,
            prefix=self._prefix,
            region=self._region,
            transport=self._transport,
            connections=MAX_REQUESTS,
        )
        async with opened as reader:
            async for page in read_in_order(reader, prefix=self._prefix, after=None if after is None else after.key):
                yield self._images(page)

    def _images(self, page: ListingPage) -> list[ImageRef]:
        bucket, leave_out = self._bucket, self._leave_out
        root = f"s3://{bucket}/"
        return [
            ImageRef(
                uri=root + key,
                bucket=bucket,
                key=key,
                etag=etag,
                size_bytes=size,
                last_modified=modified,
                any_name=key == self._prefix,  # the user named the object itself
            )
            for key, etag, size, modified in zip(page.keys, page.etags, page.sizes, page.modified, strict=True)
            if not key.startswith(leave_out)
        ]


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
) -> AsyncGenerator[ListingPage, None]:
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
    pages: list[ListingPage] = field(default_factory=list)
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

    def __init__(self, prefix: str, behind: ListingPage, *, max_pages: int) -> None:
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

    def take(self) -> list[ListingPage]:
        """The pages that come next, in order; none is empty."""
        taken: list[ListingPage] = []
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

    def add(self, part: KeyRange, page: ListingPage) -> None:
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


def _check(page: ListingPage, cursor: str | None, token: str | None, *, is_sorted: bool) -> None:
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
