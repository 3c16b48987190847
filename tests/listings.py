"""A fake for listing S3 buckets: keys in the order of their UTF-8 bytes, pages of any size, faults."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import anyio

from batchcl.aws.listing import ListingPage

AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@dataclass
class FakeBucket:
    """A `PageReader`. The Nth request, from 1, raises `faults[N]`; each takes `latency_s`."""

    keys: Iterable[str]
    page_size: int = 3
    is_sorted: bool = True
    has_tokens: bool = False
    latency_s: float = 0.0
    faults: dict[int, Exception] = field(default_factory=dict)
    requests: int = 0
    under_way: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.sorted = sorted(key.encode() for key in set(self.keys))

    def behind(self, after: str | None) -> list[str]:
        """The keys after `after`, as a serial listing returns them."""
        return [key.decode() for key in self.sorted[self._place(after) :]]

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        self.requests += 1
        request = self.requests
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await anyio.sleep(self.latency_s)
            if request in self.faults:
                raise self.faults[request]
            return self.read(after, token)
        finally:
            self.under_way -= 1

    def read(self, after: str | None, token: str | None = None) -> ListingPage:
        """Return a page."""
        begin = self._place(after) if token is None else int(token)
        end = begin + self.page_size
        keys = [key.decode() for key in self.sorted[begin:end]]
        is_last = end >= len(self.sorted)
        return ListingPage(
            keys=keys,
            etags=[f"e-{key}" for key in keys],
            sizes=[len(key) for key in keys],
            modified=[AT] * len(keys),
            is_last=is_last,
            token=str(end) if self.has_tokens and not is_last else None,
            is_sorted=self.is_sorted,
        )

    def _place(self, after: str | None) -> int:
        return 0 if after is None else bisect_right(self.sorted, after.encode())
