from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.listing import ListingPage
from batchcl.errors import SourceError
from batchcl.sources.s3_prefix import KeyRange, KeyRanges, read_in_order, split_points
from listings import FakeBucket
from virtual import run_virtual

WORKERS = 16

hard = st.text(
    st.sampled_from("ab/.-+% \n\x01\x7f~09é\u0fff\ud7ff\ue000\uffff\U00010000\U0010ffff"), min_size=1, max_size=4
)
counted = st.integers(0, 300).map(lambda number: f"p/{number:03}")
alike = st.integers(0, 120).map(lambda number: "x" * 200 + chr(number + 33))
nested = st.text("012", min_size=1, max_size=4)
names = st.one_of(
    st.sets(nested, max_size=120),
    st.sets(hard, max_size=60),
    st.sets(counted, max_size=200),
    st.sets(alike, max_size=80),
)


def listed(
    bucket: FakeBucket, rng: random.Random, *, prefix: str = "", after: str | None = None, max_pages: int = 160
) -> list[str]:
    """All keys after `after`, with responses in random order and pages taken at random times."""
    page = bucket.read(after)
    keys = list(page.keys)
    ranges = None if page.is_last else KeyRanges(prefix, page, max_pages=max_pages)
    in_flight: list[KeyRange] = []
    while ranges is not None and not ranges.is_done:
        while len(in_flight) < WORKERS and ranges.ready_pages < 4 and (part := ranges.next_range()) is not None:
            in_flight.append(part)
        if in_flight:
            part = in_flight.pop(rng.randrange(len(in_flight)))
            ranges.add(part, bucket.read(part.cursor, part.token))
        if not in_flight or rng.random() < 0.2:
            for page in ranges.take():
                assert page.keys
                assert page.etags == [f"e-{key}" for key in page.keys]
                assert len(page.sizes) == len(page.modified) == len(page.keys)
                keys += page.keys
    return keys


@given(names, st.none() | hard, st.integers(1, 5), st.integers(1, 30), st.booleans(), st.randoms(use_true_random=False))
def test_ranges_yield_the_keys_of_a_serial_listing(
    keys: set[str], after: str | None, page_size: int, max_pages: int, has_tokens: bool, rng: random.Random
) -> None:
    bucket = FakeBucket(keys, page_size=page_size, has_tokens=has_tokens)
    assert listed(bucket, rng, after=after, max_pages=max_pages) == bucket.behind(after)


@given(st.sets(counted, min_size=1, max_size=100), st.randoms(use_true_random=False))
def test_a_listing_resumes_after_any_key(keys: set[str], rng: random.Random) -> None:
    bucket = FakeBucket(keys)
    for key in keys:
        assert listed(bucket, rng, prefix="p/", after=key) == bucket.behind(key)


@given(names, names, names, st.integers(1, 5), st.randoms(use_true_random=False))
def test_keys_that_change_during_a_listing_are_never_duplicated(
    stay: set[str], come: set[str], go: set[str], page_size: int, rng: random.Random
) -> None:
    come, go = come - stay - go, go - stay

    class Changing(FakeBucket):
        def read(self, after: str | None, token: str | None = None) -> ListingPage:
            present = stay | {key for key in come | go if rng.random() < 0.5}
            self.sorted = sorted(key.encode() for key in present)
            return super().read(after, token)

    listed_keys = listed(Changing(stay | go, page_size=page_size), rng)
    assert listed_keys == sorted(set(listed_keys))
    assert stay - set(listed_keys) == set()
    assert set(listed_keys) <= stay | come | go


@dataclass
class Answers:
    """A server with prepared responses that records its requests."""

    pages: list[ListingPage]
    requests: list[tuple[str | None, str | None]] = field(default_factory=list)

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        self.requests.append((after, token))
        return self.pages.pop(0)


def read(server: Answers | FakeBucket, after: str | None = None) -> list[list[str]]:
    async def main() -> list[list[str]]:
        pages: AsyncGenerator[ListingPage, None] = read_in_order(server, after=after)
        async with aclosing(pages):
            return [page.keys async for page in pages]

    return run_virtual(main)


@given(names)
def test_a_server_without_known_order_is_read_page_by_page(keys: set[str]) -> None:
    bucket = FakeBucket(keys, is_sorted=False, has_tokens=True, latency_s=1)
    assert [key for page in read(bucket) for key in page] == bucket.behind(None)
    assert bucket.most_at_once == 1


@pytest.mark.parametrize("is_sorted", [True, False])
def test_empty_pages_do_not_end_a_listing(is_sorted: bool) -> None:
    keys: list[list[str]] = [[], ["a"], ["b"], [], ["c"]]
    tokens = ["t1", "t2", "t3", "t4", None]
    server = Answers(
        [
            page_of(some, token=token, is_last=token is None, is_sorted=is_sorted)
            for some, token in zip(keys, tokens, strict=True)
        ]
    )
    assert read(server) == [["a"], ["b"], ["c"]]
    assert [token for _, token in server.requests] == [None, *tokens[:-1]]


def page_of(keys: list[str], *, token: str | None = None, is_last: bool = False, is_sorted: bool = True) -> ListingPage:
    columns = {"etags": [None] * len(keys), "sizes": [0] * len(keys), "modified": [dt.datetime.now(dt.UTC)] * len(keys)}
    return ListingPage(keys=keys, token=token, is_last=is_last, is_sorted=is_sorted, **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cursor", "keys"), [(None, ["b", "a"]), (None, ["a", "a"]), ("m", ["m"]), ("m", ["a", "z"])])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_page_out_of_order_is_an_error(cursor: str | None, keys: list[str], before: int) -> None:
    if before and cursor is None:
        cursor = "0"
    good = [page_of([f"{cursor}{number}"]) for number in range(before)]
    bad = [f"{cursor}{before - 1}", "z"] if before and keys[0] == "m" else keys
    with pytest.raises(SourceError, match="out of order; use --transport aioboto3"):
        read(Answers([*good, page_of(bad, is_sorted=before < 2)]), after=cursor)


def test_a_repeated_token_or_page_is_an_error() -> None:
    again = page_of(["a"], token="t", is_sorted=False)
    with pytest.raises(SourceError, match="the same page of the listing repeatedly"):
        read(Answers([again, again]))
    for answer in (page_of(["a"], is_sorted=False), page_of([], is_sorted=False)):
        with pytest.raises(SourceError, match="the same page of the listing repeatedly"):
            read(Answers([answer]), after="a")


def test_a_small_prefix_needs_no_extra_requests() -> None:
    for count in (0, 1, 999, 1000, 1001, 1999, 2000):
        bucket = FakeBucket((f"{number:06}" for number in range(count)), page_size=1000, latency_s=1)
        assert sum(map(len, read(bucket))) == count
        assert bucket.requests == max(1, -(-count // 1000))
        assert bucket.most_at_once == 1


def test_split_points_extrapolate_a_page_within_the_prefix() -> None:
    page = [f"p/{number:04}.jpg" for number in range(100)]
    assert split_points(page, floor=2) == ["p/054", "p/099", "p/144", "p/189"]
    assert split_points([f"p/{number}.jpg" for number in range(10, 100)], floor=2) == []
    assert split_points(["a"], floor=0) == split_points(["a", "ab"], floor=0) == []
    assert split_points(["\u4e00", "\u4e01"], floor=0) == ["\u4e06", "\u4e0b", "\u4e10", "\u4e15"]


@given(names.filter(bool), st.integers(0, 3))
def test_split_points_are_ascending_and_valid_keys(keys: set[str], floor: int) -> None:
    listed_keys = split_points(sorted(keys), floor=floor)
    assert [max(keys), *listed_keys] == sorted({max(keys), *listed_keys})
    assert all(name.encode() and len(name.encode()) <= 1024 for name in listed_keys)


SHAPES: dict[str, Callable[[random.Random], list[str]]] = {
    "counter": lambda _: [f"frame-{number:09}.jpg" for number in range(20_000)],
    "folders": lambda _: [f"camera-{number // 700:03}/2026-11-01/frame-{number:09}.jpg" for number in range(20_000)],
    "uuid": lambda rng: [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(20_000)],
    "hashed folders": lambda rng: [
        f"{name[:2]}/{name[2:4]}/{name}" for name in (f"{rng.getrandbits(160):040x}" for _ in range(20_000))
    ],
    "dates": lambda _: [
        f"{dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=7 * number):%Y/%m/%d/%H%M}"
        for number in range(20_000)
    ],
    "one hot folder": lambda _: ["a/1", "b/2", *(f"hot/{number:07}" for number in range(20_000)), "y", "z"],
    "each a prefix": lambda _: [f"{number:0{digits}}" for digits in range(1, 5) for number in range(10**digits)],
    "alike to the end": lambda _: ["x" * 900 + f"{number:05}" for number in range(20_000)],
    "kanji": lambda rng: ["".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(4)) for _ in range(20_000)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_of_any_shape_are_listed_concurrently(shape: str) -> None:
    bucket = FakeBucket(SHAPES[shape](random.Random(5)), page_size=50)
    pages = len(bucket.sorted) / bucket.page_size
    max_pages, round_pages = 160, 48
    page = bucket.read(None)
    keys = list(page.keys)
    ranges = KeyRanges("", page, max_pages=max_pages)
    rounds = requests = 1
    while not ranges.is_done:
        in_flight: list[KeyRange] = []
        while len(in_flight) < WORKERS and (part := ranges.next_range()) is not None:
            in_flight.append(part)
        rounds += 1
        requests += len(in_flight)
        for part in in_flight:
            ranges.add(part, bucket.read(part.cursor))
        assert ranges._kept_pages <= max_pages + WORKERS + round_pages
        if ranges.ready_pages >= round_pages or not in_flight or all(each.is_read for each in ranges._ranges):
            keys += [key for page in ranges.take() for key in page.keys]
    assert keys == bucket.behind(None)
    assert pages / rounds > 4, f"{pages / rounds:.1f} times the speed of a serial listing"
    assert requests < 2 * pages, f"{requests / pages:.2f} times the requests of a serial listing"
