from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcl.errors import UsageError
from batchcl.images import Bookmark, ImageRef
from batchcl.sources.filters import ALL_RANKS, Filters, Sample, SmallestRanks
from batchcl.sources.select import Selection
from unit.sources.lists import FakeSource, Selected, with_bookmarks

KEYS = [f"{n}.png" for n in range(500)]


def selected(
    lists: Sequence[Sequence[str]], filters: Filters, after: Bookmark | None = None, taken: Sequence[Selected] = ()
) -> list[Selected]:
    async def earlier() -> AsyncIterator[tuple[int, Sequence[ImageRef]]]:
        for one in taken:
            yield one.bookmark.source, [one.image]

    async def main() -> list[Selected]:
        selection = Selection([FakeSource(keys, page=7) for keys in lists], filters)
        return [one async for page in selection.pages(after, earlier=earlier()) for one in with_bookmarks(page)]

    return anyio.run(main)


def sampled(text: str, keys: Sequence[str] = KEYS, *, seed: int = 0) -> list[str]:
    chosen = selected([keys], Filters(sample=Sample.parse(text, seed=seed)))
    return [one.image.key for one in chosen]


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        ("1000", Sample(count=1000)),
        ("2%", Sample(share=0.02)),
        ("0.5%", Sample(share=0.005)),
        ("100%", Sample(share=1)),
    ],
)
def test_a_sample_is_a_count_or_a_share(text: str, sample: Sample) -> None:
    assert Sample.parse(text) == sample


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1.5", "-1", "half", "5 %"])
def test_an_invalid_sample_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid sample; write a count such as 1000"):
        Sample.parse(text)


def test_ranks_are_the_same_in_every_version() -> None:
    image = ImageRef(uri="s3://b/a.png", bucket="b", key="a.png")
    versioned = ImageRef(uri="s3://b/a.png", bucket="b", key="a.png", version_id="1")
    ranks = [Sample(count=1, seed=seed).ranker()(image) for seed in (0, 1)]
    assert ranks == [14_474_395_792_146_423_856, 1_000_509_231_851_854_692]
    assert Sample(count=1).ranker()(versioned) not in ranks


def test_a_count_is_exact_and_independent_of_the_order() -> None:
    chosen = sampled("50")
    assert len(chosen) == 50
    assert chosen == [key for key in KEYS if key in set(chosen)]
    assert set(sampled("50", KEYS[::-1])) == set(chosen)
    assert sampled("500") == sampled("501") == KEYS


def test_a_share_is_approximate_and_independent_per_image() -> None:
    chosen = sampled("20%")
    assert 60 < len(chosen) < 140
    assert sampled("20%", KEYS[:250]) == [key for key in chosen if key in set(KEYS[:250])]
    assert sampled("100%") == KEYS


def test_larger_samples_contain_smaller_ones_of_a_seed() -> None:
    for texts in (("10", "50", "200"), ("1%", "5%", "50%")):
        for smaller, larger in pairwise(map(sampled, texts)):
            assert set(smaller) <= set(larger)
    assert sampled("50", seed=1) != sampled("50")
    assert sampled("50", seed=1) == sampled("50", seed=1)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(0, 3), st.none() | st.integers(1, 10))
def test_a_sample_is_the_same_when_resumed(count: int, seed: int, limit: int | None) -> None:
    lists = [KEYS[:20], KEYS[10:25], KEYS[5:35]]
    filters = Filters(sample=Sample(count=count, seed=seed), exclude=("1*",), limit=limit)
    chosen = selected(lists, filters)
    matching = {key for key in KEYS[:35] if not key.startswith("1")}
    assert len(chosen) == min(count, len(matching), limit or count)
    assert len({one.image.key for one in chosen}) == len(chosen)
    for number, one in list(enumerate(chosen, 1))[::4]:
        assert selected(lists, filters, one.bookmark, chosen[:number]) == chosen[number:]


def test_a_resumed_sample_keeps_its_maximum_rank() -> None:
    sample = Sample(count=10)
    chosen = selected([KEYS[:100]], Filters(sample=sample))
    rank = sample.ranker()
    max_rank = max(rank(one.image) for one in chosen)
    later = [image for image in FakeSource(KEYS).images if int(image.key[:-4]) > int(chosen[3].image.key[:-4])]
    expected = [image.key for image in later if rank(image) <= max_rank][:6]
    assert [one.image.key for one in selected([KEYS], Filters(sample=sample), chosen[3].bookmark)] == expected
    assert len(expected) == 6, "new images don't increase the sample"


def test_images_outside_the_sample_are_counted() -> None:
    async def main() -> dict[str, int]:
        selection = Selection([FakeSource(KEYS, page=7)], Filters(sample=Sample(count=10), exclude=("1.png",)))
        async for _ in selection.pages():
            pass
        return selection.filtered

    assert anyio.run(main) == {"sample": 489, "exclude": 1}


@given(st.lists(st.integers(0, ALL_RANKS), min_size=1, max_size=50), st.integers(1, 60))
def test_the_smallest_ranks_equal_those_of_a_sort(ranks: list[int], count: int) -> None:
    smallest = SmallestRanks(count)
    smallest._buffer_size = 8  # several rounds with few ranks
    for rank in ranks:
        smallest.add([rank])
    assert smallest.largest() == (sorted(ranks)[count - 1] if len(ranks) >= count else ALL_RANKS)
