"""Images that several sources, or one source several times, name are selected once, and none is lost."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import anyio
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.session import Aws
from batchcl.choices import SourceKind
from batchcl.images import Bookmark, ImageRef, Position
from batchcl.name_set import NameSet
from batchcl.sources.base import Source
from batchcl.sources.deduplication import Deduplication, HashLog, HashSet
from batchcl.sources.filters import Filters
from batchcl.sources.open import ListOptions, open_sources
from batchcl.sources.select import Selection
from servers import aws_env, client, make_bucket
from unit.sources.lists import BUCKET, FORMATS, FakeSource, with_bookmarks

THERE = ("a/1.png", "a/2.png", "a/3.png", "c.png")
FIRST = ("a/1.png", "a/2.png", "a/missing.png", "c.png")
SECOND = ("a/2.png", "a/missing.png", "a/other.png", "d.png")
KINDS = [*FORMATS, "prefix", "wider prefix", "image"]
PAIRED = {"key list", "Parquet table", "CSV inventory", "prefix", "wider prefix", "image"}
"""Kinds that are combined with each other one; the formats of lists differ only in how they are read."""
NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


def ref(key: str, version: str | None = None, etag: str | None = None, at: dt.datetime | None = None) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, version_id=version, etag=etag, last_modified=at)


async def selected(sources: Sequence[Source]) -> tuple[list[ImageRef], list[Bookmark], int]:
    """(images, their bookmarks, number of duplicates)."""
    selection = Selection(sources, Filters())
    pairs = [one async for page in selection.pages() for one in with_bookmarks(page)]
    return [one.image for one in pairs], [one.bookmark for one in pairs], selection.duplicates


async def resumed(
    sources: Sequence[Source], images: Sequence[ImageRef], bookmarks: Sequence[Bookmark]
) -> tuple[list[ImageRef], int]:
    """(the images after those, number of duplicates in total)."""

    async def earlier() -> AsyncIterator[tuple[int, Sequence[ImageRef]]]:
        for image, bookmark in zip(images, bookmarks, strict=True):
            yield bookmark.source, [image]

    selection = Selection(sources, Filters())
    pages = selection.pages(bookmarks[-1], earlier=earlier())
    return [image async for page in pages for image in page.images], selection.duplicates


def identities(images: Sequence[ImageRef]) -> list[tuple[str, str | None]]:
    return [(image.uri, image.version_id) for image in images]


@pytest.fixture(scope="module")
def s3(moto: str) -> Iterator[Aws]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_env(s3=moto).items():
            patch.setenv(name, value)
        s3 = client("s3", moto)
        make_bucket(s3, BUCKET)
        for key in THERE:
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        yield Aws.from_environment()


async def opened(kind: str, names: Sequence[str], path: Path, aws: Aws, stack: ExitStack) -> Source:
    """A source of this kind that names `names`; a prefix contains the existing objects."""
    name, options = str(path), {}
    if kind in FORMATS:
        options = FORMATS[kind](path, names)
    else:
        name = f"s3://{BUCKET}/" + {"prefix": "a/", "wider prefix": "", "image": names[1]}[kind]
        options = {"kind": "image" if kind == "image" else "prefix"}
    if "kind" in options:
        options["kind"] = SourceKind(options["kind"])
    (source,) = await open_sources([name], stack, aws=aws, region="us-east-1", options=ListOptions(**options))
    await source.check()
    return source


def test_any_two_kinds_of_source_are_deduplicated(s3: Aws, tmp_path: Path) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            firsts = [await opened(kind, FIRST, tmp_path / f"{kind} 1", s3, stack) for kind in KINDS]
            seconds = [await opened(kind, SECOND, tmp_path / f"{kind} 2", s3, stack) for kind in KINDS]
            own = {id(one): (await selected([one]))[0] for one in (*firsts, *seconds)}
            for (n, (one, first)), (m, (two, second)) in itertools.product(
                enumerate(zip(KINDS, firsts, strict=True)), enumerate(zip(KINDS, seconds, strict=True))
            ):
                is_next = m in {n, (n + 1) % len(KINDS)}
                if not is_next and not {one, two} & PAIRED:
                    continue
                images, bookmarks, repeated = await selected([first, second])
                named = identities(own[id(first)]) + identities(own[id(second)])
                assert Counter(identities(images)) == Counter(set(named)), (one, two)
                assert repeated == len(named) - len(set(named)), (one, two)
                if not is_next:
                    continue  # resuming depends on each of the two, not on the pair
                at = max(1, len(images) - 2)
                rest, again = await resumed([first, second], images[:at], bookmarks[:at])
                assert (identities(rest), again) == (identities(images[at:]), repeated), (one, two)

    anyio.run(main)


def test_listed_images_missing_from_a_prefix_are_kept() -> None:
    prefix, listed = FakeSource([ref("a/1")], prefix="a/"), FakeSource([ref("a/1"), ref("a/gone"), ref("b")])
    images, _, repeated = anyio.run(selected, [prefix, listed])
    assert ([image.key for image in images], repeated) == (["a/1", "a/gone", "b"], 1)


@pytest.mark.parametrize("first_is_versioned", [True, False])
def test_versions_are_compared_by_entity_tag_and_time(first_is_versioned: bool) -> None:
    listed = [ref("same", etag="e", at=NOON), ref("older", etag="e", at=NOON), ref("other", etag="e", at=NOON)]
    listed.append(ref("untold"))
    inventory = [
        ref("same", "v1", "e", NOON.replace(microsecond=500)),
        ref("older", "v1", "e", NOON - dt.timedelta(seconds=1)),
        ref("other", "v1", "f", NOON),
        ref("untold", "v1"),
    ]
    sources = (
        [FakeSource(inventory), FakeSource(listed)]
        if first_is_versioned
        else [FakeSource(listed), FakeSource(inventory)]
    )
    images, _, repeated = anyio.run(selected, sources)
    assert (len(images), repeated) == (7, 1)
    assert [image for image in images if image.key == "same"] == [sources[0].images[0]]


def test_two_versions_with_the_same_content_are_distinct() -> None:
    sources = [
        FakeSource([ref("a", "v1", "e", NOON)]),
        FakeSource([ref("a", "v2", "e", NOON), ref("a", "v1", "e", NOON)]),
    ]
    images, _, repeated = anyio.run(selected, sources)
    assert ([image.version_id for image in images], repeated) == (["v1", "v2"], 1)


def test_the_deduplication_of_two_prefixes_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(NameSet, "update", lambda _, names: kept.extend(names))
    wide = [ref(f"{folder}/{number}") for folder in "ab" for number in range(5)]
    for sources in (
        [FakeSource(wide, prefix=""), FakeSource(wide[:5], prefix="a/")],
        [FakeSource(wide[:5], prefix="a/"), FakeSource(wide, prefix="")],
    ):
        images, bookmarks, repeated = anyio.run(selected, sources)
        assert (images, repeated) == (wide, 5)
        rest, _ = anyio.run(resumed, sources, images[:5], bookmarks[:5])
        assert (rest, kept) == (wide[5:], [])


def test_a_single_source_without_repeats_is_not_deduplicated() -> None:
    deduplication = Deduplication([FakeSource([ref("a")])])
    assert not deduplication.possible
    assert anyio.run(deduplication.new, 0, [ref("a"), ref("a")]) == [True, True]


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcdef"), unique=True), st.booleans()), min_size=1, max_size=4))
def test_duplicates_are_removed_and_reading_can_resume(
    sources: list[tuple[list[str], bool]],
) -> None:
    existing = sorted("abcd")
    made: list[Source] = [
        FakeSource([ref(key) for key in existing], prefix="") if lists_all else FakeSource([ref(key) for key in keys])
        for keys, lists_all in sources
    ]
    named = [image.key for source in made for image in cast("FakeSource", source).images]
    images, bookmarks, repeated = anyio.run(selected, made)
    assert [image.key for image in images] == list(dict.fromkeys(named))
    assert repeated == len(named) - len(set(named))
    for at in range(1, len(images)):
        rest, again = anyio.run(resumed, made, images[:at], bookmarks[:at])
        assert (rest, again) == (images[at:], repeated)


def test_restoring_earlier_images_pauses_after_each_page() -> None:
    sources = [FakeSource([ref("a"), ref("b")]), FakeSource([ref("b"), ref("c")])]
    pauses: list[int] = []

    async def earlier() -> AsyncIterator[tuple[int, Sequence[ImageRef]]]:
        yield 0, [ref("a")]
        yield 0, [ref("b")]

    async def pause(images: int) -> None:
        pauses.append(images)

    async def main() -> list[str]:
        after = Bookmark(0, Position(2, "b"), 2)
        pages = Selection(sources, Filters()).pages(after, earlier=earlier(), pause=pause)
        return [image.key async for page in pages for image in page.images]

    assert anyio.run(main) == ["c"]
    assert pauses == [1, 1, 2]


NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=60)


def series(names: list[str]) -> pl.Series:
    return pl.Series(names, dtype=pl.String)


def found_in(candidates: HashSet, names: list[str]) -> set[str]:
    return {names[at] for at in candidates.positions(series(names))}


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=6), max_size=10))
def test_names_added_twice_are_found(batches: list[list[str]]) -> None:
    every = [name for batch in batches for name in batch]
    wanted = {name for name in every if every.count(name) > 1}
    log = HashLog()
    for batch in batches:
        log.add(series(batch))
    candidates = log.repeats()
    assert found_in(candidates, [*every, "never added"]) == wanted
    assert bool(candidates) == bool(wanted)


def test_names_may_be_added_by_several_threads() -> None:
    log = HashLog()
    names = [str(number) for number in range(4000)]
    batches = [names[at : at + 50] for at in range(0, 4000, 50)] + [names[:10]]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda batch: log.add(series(batch)), batches))
    assert found_in(log.repeats(), names) == set(names[:10])


@given(NAMES, NAMES)
def test_a_hash_set_contains_its_names(inside: list[str], queried: list[str]) -> None:
    assert found_in(HashSet.of([series(inside[:5]), series(inside[5:])]), queried) == set(queried) & set(inside)
