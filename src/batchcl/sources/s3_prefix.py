"""All objects below an S3 prefix, in key order, by several concurrent ListObjectsV2 requests.

Concurrent requests list ranges of keys. The boundaries of ranges are guessed from the keys of earlier pages; a range
with too many keys is split again, and an empty range costs one request.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from operator import lt
from typing import Final

import anyio

from batchcl.aws.listing import ListingPage, PageReader, open_page_reader
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import BatchclError, ErrorCode, SourceError
from batchcl.images import ImageRef, Position
from batchcl.sources.base import SourceCheck
from batchcl.sources.deduplication import NO_NAMES

__all__ = ["MAX_REQUESTS", "KeyRange", "KeyRanges", "S3PrefixSource", "read_in_order", "split_points"]


MAX_REQUESTS: Final = 16
"""Maximum number of concurrent requests."""

_SERIAL_PAGES: Final = 2
"""Pages that are read one at a time first, so that a small prefix costs no more requests than a serial listing."""

_ROUND_PAGES: Final = 48
_MAX_PAGES: Final = 160
"""Maximum number of pages in memory: about 50 MB, at 300 bytes per object."""

_PAGES_APART: Final = 5
_SPLIT_POINTS: Final = 4
_SAMPLED_KEYS: Final = 24
_SURROGATES: Final = range(0xD800, 0xE000)
_CODE_POINTS: Final = 0x110000


class S3PrefixSource:
    """Every object whose key starts with the prefix, in S3's order.

    The prefix is a string, as in S3: `s3://b/2026` includes `2026-old/x.jpg`; end it with `/` for a folder. Keys are
    exact: S3 URL-encodes its response on request, and it is decoded once.

    A listing is not a snapshot. An object that exists throughout the listing is yielded exactly once; one that is
    written or deleted meanwhile is yielded once or not at all.

    A long prefix is listed by up to 16 concurrent requests if the server is S3 itself, which lists in UTF-8 binary
    order. Other servers don't guarantee an order, so their pages are read one at a time, as with the transport
    `aioboto3`.

    Keys that start with one of `leave_out` are excluded, because they belong to the output root.
    """

    exhaustive = True
    repeats = NO_NAMES

    def __init__(
        self,
        uri: str,
        aws: Aws,
        *,
        region: str,
        transport: Transport = Transport.AIOHTTP,
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
        """See `Source`; access to the buckets of a run is checked elsewhere."""
        try:
            self._prefix.encode()
        except UnicodeEncodeError as error:
            raise SourceError(
                f"{self.description!r} is not UTF-8, which S3 keys are; check the prefix",
                code=ErrorCode.UNSUPPORTED_SOURCE,
            ) from error
        folders = tuple(f"s3://{self._bucket}/{prefix}" for prefix in self._leave_out)
        return SourceCheck(buckets=frozenset({self._bucket}), excluded_folders=folders)

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """See `Source`."""
        return [
            image.bucket == self._bucket
            and image.key.startswith(self._prefix)
            and not image.key.startswith(self._leave_out)
            for image in images
        ]

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The objects in pages of at most a thousand. Raises `RefusedError` or `SourceError`."""
        opened = open_page_reader(
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
                any_extension=key == self._prefix,  # the user named the object itself
            )
            for key, etag, size, modified in zip(page.keys, page.etags, page.sizes, page.modified, strict=True)
            if not key.startswith(leave_out)
        ]


async def read_in_order(
    reader: PageReader, *, prefix: str = "", after: str | None = None
) -> AsyncGenerator[ListingPage, None]:
    """All non-empty pages after the key `after`, in the order of a serial listing.

    If the server doesn't list in a known order, pages are read one at a time. Otherwise up to 16 requests run
    concurrently, in rounds of growing size, so that a caller who needs only the first images doesn't wait for others.
    No request is in flight while a page is yielded: the generator may be closed at any time, in any task.

    Raises:
        BatchclError: the first error of a request.
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
    round_pages = 2 * _SERIAL_PAGES
    while not ranges.is_done:
        await _read_round(reader, ranges, round_pages)
        for page in ranges.take():
            yield page
        round_pages = min(2 * round_pages, _ROUND_PAGES)


async def _read_round(reader: PageReader, ranges: KeyRanges, count: int) -> None:
    """Read until `count` pages are ready, or all."""
    errors: list[BatchclError] = []
    in_flight = 0

    def start_requests() -> None:
        nonlocal in_flight
        while in_flight < MAX_REQUESTS and ranges.ready_pages < count and (part := ranges.next_range()) is not None:
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


def _check(page: ListingPage, cursor: str | None, token: str | None, *, is_sorted: bool) -> None:
    """Raise `SourceError` for a page that is not sorted although `is_sorted`, or that makes no progress."""
    keys = page.keys
    in_order = not keys or ((cursor is None or cursor < keys[0]) and all(map(lt, keys, keys[1:])))
    if is_sorted and not in_order:
        raise SourceError(
            f"the server, which identifies itself as S3, lists {keys[0]!r} and the keys after it out of order; use "
            "--transport aioboto3, which reads one page at a time",
            code=ErrorCode.BROKEN_LISTING,
        )
    advances = page.token != token if page.token is not None else bool(keys) and keys[-1] != cursor
    if not page.is_last and not advances:
        raise SourceError(
            "the server returns the same page of the listing repeatedly; check the endpoint",
            code=ErrorCode.BROKEN_LISTING,
        )


@dataclass(slots=True, eq=False)
class KeyRange:
    """The keys after `low` up to and including `high`.

    Attributes:
        low: exclusive lower bound.
        high: inclusive upper bound; None: no bound.
        cursor: its keys up to here have been read.
        token: the server's continuation token for the keys after the cursor; None: continue after the cursor itself.
        pages: pages that were read and not taken yet.
        newest: the keys of its last page, until it was split by them.
        is_read: whether all of its keys have been read.
        in_flight: whether a request for it is in flight.
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
    """The state of one listing: chooses the next range to read, accepts pages, and returns them in order. No I/O.

    Args:
        prefix: the prefix of all keys.
        last_page: the non-empty page after which the listing continues.
        max_pages: maximum number of pages in memory, not counting those of the first range and those in flight.
    """

    def __init__(self, prefix: str, last_page: ListingPage, *, max_pages: int) -> None:
        last = last_page.keys[-1]
        self._prefix = prefix
        self._ranges = [KeyRange(last, None, last, last_page.token, newest=last_page.keys)]
        self._max_pages = max_pages
        self._kept_pages = 0

    @property
    def is_done(self) -> bool:
        """Whether everything has been read and taken."""
        return not self._ranges

    @property
    def ready_pages(self) -> int:
        """Number of pages that `take` would return."""
        count = 0
        for part in self._ranges:
            count += len(part.pages)
            if not part.is_read:
                break
        return count

    def take(self) -> list[ListingPage]:
        """Remove and return the next pages in order; none is empty."""
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
        """The first range of which a page can be requested, marked as in flight; None if there is none at present."""
        for at, part in enumerate(self._ranges):  # `_split` inserts ranges after this one, which are visited next
            if part.is_read:
                continue
            if not part.in_flight:
                if at and not self._free_page(at):
                    return None
                part.in_flight = True
                return part
            self._split(at)
        return None

    def add(self, part: KeyRange, page: ListingPage) -> None:
        """Accept the page after the cursor of `part`. Keys beyond its upper bound are added to the following ranges."""
        part.in_flight = False
        at, rest = self._ranges.index(part), page
        while True:
            count = len(rest.keys) if part.high is None else bisect_right(rest.keys, part.high)
            own, rest = rest.cut(count)
            if own.keys:
                part.pages.append(own)
                part.cursor, part.newest = own.keys[-1], own.keys
                self._kept_pages += 1
            part.token = page.token
            part.is_read = page.is_last or bool(rest.keys)
            at += 1
            if not part.is_read or at == len(self._ranges) or not self._ranges[at].is_untouched:
                return
            part = self._ranges[at]

    def _split(self, at: int) -> None:
        """Split the unread part of a range that is in flight, at most once for each of its pages."""
        part = self._ranges[at]
        points = split_points(part.newest, floor=len(self._prefix)) if part.newest else []
        part.newest = ()
        points = [point for point in points if part.high is None or point < part.high]
        if points:
            highs = [*points[1:], part.high]
            self._ranges[at + 1 : at + 1] = [KeyRange(low, high, low) for low, high in zip(points, highs, strict=True)]
            part.high = points[0]

    def _free_page(self, at: int) -> bool:
        """Whether one more page can be kept for range `at`, if necessary by discarding the pages of a later range."""
        if self._kept_pages < self._max_pages:
            return True
        for later in reversed(self._ranges[at + 1 :]):
            if later.pages and not later.in_flight:
                self._kept_pages -= len(later.pages)
                later.pages.clear()
                later.cursor, later.token, later.newest, later.is_read = later.low, None, (), False
                return True
        return False


def split_points(keys: Sequence[str], *, floor: int) -> list[str]:
    """Ascending names after the last of `keys`, as boundaries of ranges; such keys need not exist.

    Extrapolates from `keys`, the keys of one page: from the first character in which the first and last key differ, a
    page advances by some distance. Multiples of that distance are added to the last key with carry to the left, but not
    into the first `floor` characters. The digits are the ASCII characters that vary from that position on.
    """
    first, last = keys[0], keys[-1]
    place = next((at for at, (left, right) in enumerate(zip(first, last, strict=False)) if left != right), None)
    if place is None:
        return []
    columns = zip(*(key[place:] for key in keys[:: max(1, len(keys) // _SAMPLED_KEYS)]), strict=False)
    varying = set[str]().union(*(values for values in map(set, columns) if len(values) > 1))
    digits = "".join(sorted(filter(str.isascii, varying)))
    if first[place] in digits and last[place] in digits:
        distance = digits.index(last[place]) - digits.index(first[place])
    else:
        distance = ord(last[place]) - ord(first[place])
    points = [last]
    for number in range(1, _SPLIT_POINTS + 1):
        point = _advance(last, place, number * _PAGES_APART * distance, digits, floor=floor)
        if point is not None and point > points[-1]:
            points.append(point)
    return points[1:]


def _advance(key: str, place: int, distance: int, digits: str, *, floor: int) -> str | None:
    """`key` up to `place`, advanced by `distance` with carry; None if that is after all keys with its first `floor`."""
    suffix = ""
    for at in range(place, floor - 1, -1):
        value = digits.find(key[at])
        if value >= 0:
            distance, rest = divmod(value + distance, len(digits))
            suffix = digits[rest] + suffix
            if not distance:
                return key[:at] + suffix
        elif at == place:
            code = ord(key[at]) + distance
            code = _SURROGATES.stop if code in _SURROGATES else code
            return key[:at] + chr(code) if code < _CODE_POINTS else None
        else:
            suffix = key[at] + suffix
    return None
