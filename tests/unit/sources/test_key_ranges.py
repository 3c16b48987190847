from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.listing_page import Page
from batchcl.errors import SourceError
from batchcl.sources.key_ranges import KeyRange, KeyRanges
from listings import FakeBucket

WORKERS = 16

hard = st.text(
    st.sampled_from("ab/.-+% \n\x01\x7f~09é\u0fff\ud7ff\ue000\uffff\U00010000\U0010ffff"), min_size=1, max_size=4
)
counted = st.integers(0, 300).map(lambda number: f"p/{number:03}")
alike = st.integers(0, 120).map(lambda number: "x" * 200 + chr(number + 33))
names = st.one_of(st.sets(hard, max_size=60), st.sets(counted, max_size=200), st.sets(alike, max_size=80))


def listed(
    bucket: FakeBucket,
    ranges: KeyRanges,
    chance: random.Random,
    *,
    wanted: int = 4,
    each: Callable[[], None] = lambda: None,
) -> list[str]:
    """Everything, where answers come in any order and pages are taken now and then."""
    keys: list[str] = []
    under_way: list[KeyRange] = []
    while not ranges.is_over:
        while len(under_way) < WORKERS and ranges.ready_pages < wanted and (part := ranges.next_range()) is not None:
            under_way.append(part)
        if under_way:
            part = under_way.pop(chance.randrange(len(under_way)))
            ranges.arrived(part, bucket.read(part.cursor, part.token))
        each()
        if not under_way or chance.random() < 0.2:
            for page in ranges.take():
                assert page.keys
                assert page.etags == [f"e-{key}" for key in page.keys]
                assert len(page.sizes) == len(page.modified) == len(page.keys)
                keys += page.keys
    return keys


@given(names, st.none() | hard, st.integers(1, 5), st.integers(1, 30), st.booleans(), st.randoms(use_true_random=False))
def test_any_keys_come_exactly_as_a_serial_listing_gives_them_from_any_key_on(
    keys: set[str], after: str | None, page_size: int, room: int, has_tokens: bool, chance: random.Random
) -> None:
    bucket = FakeBucket(keys, page_size=page_size, has_tokens=has_tokens)
    ranges = KeyRanges(after=after, room_pages=room)
    assert listed(bucket, ranges, chance) == bucket.behind(after)


@given(st.sets(counted, min_size=1, max_size=100), st.randoms(use_true_random=False))
def test_a_listing_goes_on_behind_every_key_of_it(keys: set[str], chance: random.Random) -> None:
    bucket = FakeBucket(keys)
    for key in keys:
        assert listed(bucket, KeyRanges("p/", after=key), chance) == bucket.behind(key)


@given(names)
def test_a_server_without_a_known_order_is_read_page_by_page(keys: set[str]) -> None:
    bucket = FakeBucket(keys, is_sorted=False, has_tokens=True)
    ranges = KeyRanges()
    first = ranges.next_range()
    while first is not None:
        assert ranges.next_range() is None
        ranges.arrived(first, bucket.read(first.cursor, first.token))
        first = ranges.next_range()
    assert [key for page in ranges.take() for key in page.keys] == bucket.behind(None)
    assert ranges.is_over


@pytest.mark.parametrize("is_sorted", [True, False])
def test_pages_without_keys_are_not_the_end(is_sorted: bool) -> None:
    ranges = KeyRanges()
    for number, (keys, token) in enumerate([([], "t1"), (["a"], "t2"), ([], "t3"), (["b"], None)]):
        part = ranges.next_range()
        assert part is not None
        assert part.token == (f"t{number}" if number else None)
        ranges.arrived(part, page_of(keys, token=token, is_last=token is None, is_sorted=is_sorted))
    assert [page.keys for page in ranges.take()] == [["a"], ["b"]]
    assert ranges.is_over


def page_of(keys: list[str], *, token: str | None = None, is_last: bool = False, is_sorted: bool = True) -> Page:
    columns = {"etags": [None] * len(keys), "sizes": [0] * len(keys), "modified": [dt.datetime.now(dt.UTC)] * len(keys)}
    return Page(keys=keys, token=token, is_last=is_last, is_sorted=is_sorted, **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cursor", "keys"), [(None, ["b", "a"]), (None, ["a", "a"]), ("m", ["m"]), ("m", ["a", "z"])])
def test_a_page_out_of_order_ends_the_listing_rather_than_losing_keys(cursor: str | None, keys: list[str]) -> None:
    ranges = KeyRanges(after=cursor)
    part = ranges.next_range()
    assert part is not None
    with pytest.raises(SourceError, match="out of order; list it with --transport aioboto3"):
        ranges.arrived(part, page_of(keys))


def test_a_server_that_repeats_its_token_or_its_page_ends_the_listing() -> None:
    ranges = KeyRanges()
    part = ranges.next_range()
    assert part is not None
    ranges.arrived(part, page_of(["a"], token="t", is_sorted=False))
    ranges.next_range()
    with pytest.raises(SourceError, match="again and again"):
        ranges.arrived(part, page_of(["a"], token="t", is_sorted=False))
    for answer in (page_of(["a"], is_sorted=False), page_of([], is_sorted=False)):
        stuck = KeyRanges(after="a")
        part = stuck.next_range()
        assert part is not None
        with pytest.raises(SourceError, match="again and again"):
            stuck.arrived(part, answer)


def test_a_small_prefix_takes_the_requests_of_a_serial_listing() -> None:
    for count in (0, 1, 999, 1000, 1001, 1999):
        bucket = FakeBucket((f"{number:06}" for number in range(count)), page_size=1000)
        ranges, requests = KeyRanges(), 0
        while (part := ranges.next_range()) is not None:
            assert ranges.next_range() is None
            ranges.arrived(part, bucket.read(part.cursor))
            requests += 1
        assert requests == max(1, -(-count // 1000))


CHANCE = random.Random(5)
SHAPES = {
    "counter": [f"frame-{number:09}.jpg" for number in range(20_000)],
    "folders": [f"camera-{number // 700:03}/2026-11-01/frame-{number:09}.jpg" for number in range(20_000)],
    "uuid": [str(uuid.UUID(int=CHANCE.getrandbits(128))) for _ in range(20_000)],
    "hashed folders": [
        f"{name[:2]}/{name[2:4]}/{name}" for name in (f"{CHANCE.getrandbits(160):040x}" for _ in range(20_000))
    ],
    "dates": [
        f"{dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=7 * number):%Y/%m/%d/%H%M}"
        for number in range(20_000)
    ],
    "one hot folder": ["a/1", "b/2", *(f"hot/{number:07}" for number in range(20_000)), "y", "z"],
    "alike to the end": ["x" * 900 + f"{number:05}" for number in range(20_000)],
    "kanji": ["".join(chr(CHANCE.randint(0x4E00, 0x9FFF)) for _ in range(4)) for _ in range(20_000)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_of_any_shape_are_listed_many_ranges_at_a_time_within_bounds(shape: str) -> None:
    bucket = FakeBucket(SHAPES[shape], page_size=50)
    pages = len(bucket.sorted) / bucket.page_size
    room, wanted = 160, 48
    ranges = KeyRanges(room_pages=room)
    keys: list[str] = []
    rounds = requests = 0
    while not ranges.is_over:
        under_way: list[KeyRange] = []
        while len(under_way) < WORKERS and (part := ranges.next_range()) is not None:
            under_way.append(part)
        rounds += 1
        requests += len(under_way)
        for part in under_way:
            ranges.arrived(part, bucket.read(part.cursor))
        assert ranges._kept <= room + WORKERS + wanted
        if ranges.ready_pages >= wanted or not under_way or all(each.is_read for each in ranges._ranges):
            keys += [key for page in ranges.take() for key in page.keys]
    assert keys == bucket.behind(None)
    assert pages / rounds > 4, f"{pages / rounds:.1f} times the speed of a serial listing"
    assert requests < 2 * pages, f"{requests / pages:.2f} times the requests of a serial listing"
