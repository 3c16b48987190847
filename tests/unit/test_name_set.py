from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl import name_set
from batchcl.name_set import NameSet

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=60)
A, B, AB = (b"\0\0aaaaaa\0\0bbbbbb", b"\0\0cccccc\0\0dddddd", b"\0\0bbbbbb\0\0cccccc")
"""Digests of one bucket; the third one also occurs across the first two."""


@given(NAMES, NAMES)
def test_a_set_of_names_holds_exactly_those(inside: list[str], asked: list[str]) -> None:
    names = NameSet()
    names.update(inside[:5])
    names.update(name.encode() for name in inside[3:])
    assert len(names) == len(set(inside))
    assert all(name in names and name.encode() in names for name in inside)
    assert {name for name in asked if name in names} == set(asked) & set(inside)


def test_names_in_the_same_bucket_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_set, "_digest", {"a": A, "b": B, "ab": AB}.__getitem__)
    names = NameSet()
    names.update(["a", "b"])
    assert ["ab" in names, "b" in names] == [False, True]
    names.update(["ab", "a"])
    assert ["ab" in names, len(names)] == [True, 3]


def test_a_local_name_need_not_be_utf_8() -> None:
    names = NameSet()
    names.update(["\udcff"])
    assert ["\udcff" in names, "\udcfe" in names] == [True, False]


def test_a_name_takes_16_bytes() -> None:
    names = NameSet()
    names.update(str(number) for number in range(1000))
    assert sum(map(len, names._buckets)) == 16_000
