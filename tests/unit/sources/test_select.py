from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import anyio
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.images import Bookmark, ImageRef
from batchcl.sources.base import Source
from batchcl.sources.deduplication import HashSet
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from unit.sources.lists import FakeSource, Selected, with_bookmarks


def select(
    sources: Sequence[Source], after: Bookmark | None = None, taken: Sequence[ImageRef] = (), **filters: Any
) -> tuple[list[list[Selected]], int]:
    """(the pages, number of duplicates)."""

    async def before() -> AsyncIterator[tuple[int, Sequence[ImageRef]]]:
        yield 0, taken

    async def main() -> tuple[list[list[Selected]], int]:
        selection = Selection(sources, Filters(**filters))
        return [with_bookmarks(page) async for page in selection.pages(after, earlier=before())], selection.duplicates

    return anyio.run(main)


def keys(sources: Sequence[Source], after: Bookmark | None = None, **filters: Any) -> list[str]:
    return [one.image.key for page in select(sources, after, **filters)[0] for one in page]


def test_sources_are_read_one_after_the_other_in_order() -> None:
    assert keys([FakeSource("dac"), FakeSource(""), FakeSource("zb")]) == ["d", "a", "c", "z", "b"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ["a/x.png", "a/y.jpg", "b/x.png", "X.PNG", "xpng"]),
        (("*.png",), (), ["a/x.png", "b/x.png"]),
        (("*.png", "*.jpg"), (), ["a/x.png", "a/y.jpg", "b/x.png"]),
        (("a/*",), (), ["a/x.png", "a/y.jpg"]),
        (("*/x.png",), (), ["a/x.png", "b/x.png"]),
        (("x.png",), (), ["a/x.png", "b/x.png"]),
        (("a/x",), (), []),
        (("?.png",), (), ["a/x.png", "b/x.png"]),
        (("[xy].*",), (), ["a/x.png", "a/y.jpg", "b/x.png"]),
        ((), ("*.png",), ["a/y.jpg", "X.PNG", "xpng"]),
        ((), ("a/*", "xpng"), ["b/x.png", "X.PNG"]),
        (("*.png",), ("b/*",), ["a/x.png"]),
        (("*",), ("*",), []),
    ],
)
def test_an_image_matches_any_include_and_no_exclude(
    include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]
) -> None:
    source = FakeSource(["a/x.png", "a/y.jpg", "b/x.png", "X.PNG", "xpng"])
    assert keys([source], include=include, exclude=exclude) == expected


def test_a_star_matches_slashes_and_unusual_names() -> None:
    odd = ["a/b/c/d.png", "a/\n/d.png", "a/\udcff/d.png", "a/[x]/d.png"]
    assert keys([FakeSource(odd)], include=("a/*.png",)) == odd
    assert keys([FakeSource(odd)], include=("*/[[]x]/*",)) == ["a/[x]/d.png"]


def test_the_limit_applies_to_all_sources_together() -> None:
    sources = [FakeSource(["1.png", "2.txt", "3.png"]), FakeSource(["4.png", "5.txt", "6.png", "7.png"])]
    for limit in range(1, 7):
        expected = ["1.png", "3.png", "4.png", "6.png", "7.png"][:limit]
        assert keys(sources, include=("*.png",), limit=limit) == expected


def test_no_page_is_read_after_the_limit() -> None:
    first, second = FakeSource("abcdef"), FakeSource("xyz")
    assert keys([first, second], limit=2) == ["a", "b"]
    assert (first.pages_read, second.pages_read) == (1, 0)


def test_images_of_other_regions_have_their_buckets_region() -> None:
    async def main(**elsewhere: str) -> list[str | None]:
        selection = Selection([FakeSource("ab")], Filters(), elsewhere=elsewhere)
        return [image.region async for page in selection.pages() for image in page.images]

    assert anyio.run(lambda: main(b="eu-west-1")) == ["eu-west-1", "eu-west-1"]
    assert anyio.run(lambda: main(c="eu-west-1")) == [None, None]


def test_no_selected_page_is_empty() -> None:
    pages, _ = select([FakeSource(["a", "b", "c.png", "d"], page=1)], include=("*.png",))
    assert [[one.image.key for one in page] for page in pages] == [["c.png"]]


def test_an_image_of_two_sources_is_selected_once() -> None:
    sources = [FakeSource("abc"), FakeSource("cxa"), FakeSource("xyb")]
    pages, repeated = select(sources)
    assert [one.image.key for page in pages for one in page] == ["a", "b", "c", "x", "y"]
    assert repeated == 4


def test_a_filtered_image_is_not_counted_as_duplicate() -> None:
    assert select([FakeSource(["a.txt"]), FakeSource(["a.txt", "b.png"])], include=("*.png",))[1] == 0


def test_duplicates_within_a_source_are_counted() -> None:
    source = FakeSource("abacab")
    source.repeats = HashSet.of([pl.Series(["s3://b/a", "s3://b/b"])])
    pages, repeated = select([source])
    assert ([one.image.key for page in pages for one in page], repeated) == (["a", "b", "c"], 3)
    for number, one in enumerate(selected := [one for page in pages for one in page], 1):
        rest, again = select([source], one.bookmark, [each.image for each in selected[:number]])
        assert ([other for page in rest for other in page], again) == (selected[number:], 3)


def test_the_row_that_passes_the_filters_is_selected() -> None:
    source = FakeSource("aba")
    source.repeats = HashSet.of([pl.Series(["s3://b/a"])])
    source.images = [replace(image, size_bytes=size) for image, size in zip(source.images, (None, 5, 7), strict=True)]
    pages, repeated = select([source], min_size_bytes=1)
    assert [(one.image.key, one.image.size_bytes) for page in pages for one in page] == [("b", 5), ("a", 7)]
    assert repeated == 0


@given(
    st.lists(
        st.lists(st.sampled_from(["a.png", "b.png", "c/a.png", "c/b.jpg", "d", "e.jpg"]), unique=True), max_size=4
    ),
    st.lists(st.sampled_from(["*.png", "c/*", "d"]), max_size=2),
    st.lists(st.sampled_from(["*.jpg", "b*"]), max_size=2),
    st.none() | st.integers(1, 8),
    st.integers(1, 4),
)
def test_filters_keep_the_order_and_any_bookmark_resumes(
    lists: list[list[str]], include: list[str], exclude: list[str], limit: int | None, page: int
) -> None:
    def fits(key: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(key if "/" in one else key.rpartition("/")[2], one) for one in patterns)

    sources = [FakeSource(names, page=page) for names in lists]
    whole = list(dict.fromkeys(key for names in lists for key in names))
    expected = [key for key in whole if (not include or fits(key, include)) and not fits(key, exclude)][:limit]
    filters: dict[str, Any] = {"include": tuple(include), "exclude": tuple(exclude), "limit": limit}
    pages, repeated = select(sources, **filters)
    selected = [one for part in pages for one in part]
    assert [one.image.key for one in selected] == expected
    for number, one in enumerate(selected, 1):
        assert one.bookmark.taken == number
        rest, repeated_then = select(sources, one.bookmark, [each.image for each in selected[:number]], **filters)
        assert [other for part in rest for other in part] == selected[number:]
        assert repeated_then == repeated


def test_filtered_images_are_counted_across_a_resume() -> None:
    async def earlier() -> AsyncIterator[tuple[int, Sequence[ImageRef]]]:
        yield 0, []  # the sources share nothing

    async def filtered(after: Bookmark | None) -> tuple[list[Selected], int]:
        selection = Selection(
            [FakeSource(["a.png", "x", "b.png"]), FakeSource(["y", "c.png", "z"])], Filters(include=("*.png",))
        )
        taken = [one async for page in selection.pages(after, earlier=earlier()) for one in with_bookmarks(page)]
        return taken, sum(selection.filtered.values())

    taken, count = anyio.run(filtered, None)
    assert ([sum(one.bookmark.filtered.values()) for one in taken], count) == ([0, 1, 2], 3)
    for one in taken:
        assert anyio.run(filtered, one.bookmark)[1] == 3
