from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from batchcl.sources.repeats import HashLog, HashSet

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=60)


def series(names: list[str]) -> pl.Series:
    return pl.Series(names, dtype=pl.String)


def found(candidates: HashSet, names: list[str]) -> set[str]:
    return {names[at] for at in candidates.among(series(names))}


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=6), max_size=10))
def test_what_comes_twice_is_found(batches: list[list[str]]) -> None:
    every = [name for batch in batches for name in batch]
    wanted = {name for name in every if every.count(name) > 1}
    log = HashLog()
    for batch in batches:
        log.add(series(batch))
    candidates = log.repeats()
    assert found(candidates, [*every, "never added"]) == wanted
    assert bool(candidates) == bool(wanted)


def test_threads_may_add_at_once() -> None:
    log = HashLog()
    names = [str(number) for number in range(4000)]
    batches = [names[at : at + 50] for at in range(0, 4000, 50)] + [names[:10]]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda batch: log.add(series(batch)), batches))
    assert found(log.repeats(), names) == set(names[:10])


@given(NAMES, NAMES)
def test_a_set_of_hashes_holds_at_least_those(inside: list[str], asked: list[str]) -> None:
    assert found(HashSet.of([series(inside[:5]), series(inside[5:])]), asked) == set(asked) & set(inside)


def test_candidates_that_only_look_alike_are_told_apart_by_those_who_use_them() -> None:
    names = [str(random.Random(7).random()) for _ in range(3)]
    assert HashSet(series(names).hash(7).sort()).among(series(["x", names[0]])) == [1]
