from __future__ import annotations

import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl import digests
from batchcl.digests import Seen, SeenOnDisk
from batchcl.errors import OutputError

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=60)
ALIKE = {"a": b"\1" * 8 + b"\2" * 8, "b": b"\1" * 8 + b"\3" * 8, "c": b"\1" * 8 + b"\4" * 8}
"""Digests that begin alike."""


def on_disk(names: list[str], *, block: int) -> SeenOnDisk:
    seen = SeenOnDisk(block=block)
    for at in range(0, len(names), 5):
        seen.update(names[at : at + 5])
    seen.seal()
    return seen


@given(NAMES, NAMES, st.integers(1, 9))
def test_a_set_of_names_holds_exactly_those(inside: list[str], asked: list[str], size: int) -> None:
    in_memory = Seen(unsorted=size)
    in_memory.update(inside[:5])
    in_memory.update(inside[5:])
    for seen in (in_memory, on_disk(inside, block=size)):
        assert all(name in seen for name in inside)
        assert {name for name in asked if name in seen} == set(asked) & set(inside)


def test_a_set_tells_names_apart_whose_digests_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "digest", ALIKE.__getitem__)
    in_memory = Seen(unsorted=1)
    in_memory.update("ca")
    for seen in (in_memory, on_disk(list("ca"), block=1)):
        assert [name in seen for name in "abc"] == [True, False, True]


@given(NAMES)
def test_a_set_on_disk_has_each_name_once(names: list[str]) -> None:
    assert len(on_disk([*names, *names], block=7)) == len(set(names))


def test_a_disk_without_room_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/directory")
    with pytest.raises(OutputError, match=r"temporary file below /no/such/directory failed: No such .*; .* by TMPDIR$"):
        SeenOnDisk()
