from __future__ import annotations

import gzip
import random
import zlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.reading import gunzip
from batchcl.reading.gunzip import CutError, GrowsError, Gunzipped, is_gzip


@dataclass
class Bytes:
    data: bytes
    block_bytes: int = 1
    most: int = 0

    def read(self, offset: int, size: int) -> bytes:
        self.most = max(self.most, size)
        return self.data[offset : offset + size]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, states and steps of some bytes."""
    for name, value in {
        "_WINDOW_BYTES": 100,
        "_FEED_BYTES": 7,
        "_STEP_BYTES": 50,
        "_FIRST_SPACING_BYTES": 64,
        "_MOST_STATES": 4,
    }.items():
        monkeypatch.setattr(gunzip, name, value)


parts = st.lists(st.binary(max_size=700) | st.integers(1, 900).map(lambda size: b"ab" * size), min_size=1, max_size=4)


@pytest.mark.usefixtures("small")
@given(
    parts, st.integers(0, 9), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 500)), min_size=1, max_size=20)
)
def test_any_reads_in_any_order_give_the_decompressed_bytes(
    members: list[bytes], padding: int, reads: list[tuple[int, int]]
) -> None:
    whole = b"".join(members)
    content = Gunzipped(Bytes(b"".join(gzip.compress(member) + b"\0" * padding for member in members)))
    for offset, size in reads:
        assert content.read(offset, size) == whole[offset : offset + size]
    assert len(content._states) <= 5


def test_going_back_far_does_not_begin_anew() -> None:
    data = random.Random(1).randbytes(40 << 20)
    blob = Bytes(gzip.compress(data, 1), block_bytes=1 << 20)
    content = Gunzipped(blob)
    assert content.read(39 << 20, 100) == data[39 << 20 :][:100]
    assert len(content._window) <= 18 << 20
    assert content.read(20 << 20, 100) == data[20 << 20 :][:100]
    assert content._end < 26 << 20
    assert content._taken > 15 << 20, "the state before it was gone on from"


@given(st.integers(0, 3000))
def test_a_cut_file_says_so_wherever_it_is_cut(cut: int) -> None:
    data = gzip.compress(random.Random(2).randbytes(3000))
    cut = min(cut, len(data) - 1)
    content = Gunzipped(Bytes(data[:cut]))
    with pytest.raises(CutError, match="ends in the middle"):
        content.read(0, 3001)


def test_a_damaged_file_is_not_taken_for_good() -> None:
    data = bytearray(gzip.compress(random.Random(3).randbytes(3000)))
    data[-6] ^= 1
    content = Gunzipped(Bytes(bytes(data)))
    with pytest.raises(zlib.error, match="incorrect data check"):
        content.read(0, 3001)
    with pytest.raises(zlib.error, match="incorrect header"):
        Gunzipped(Bytes(gzip.compress(b"x") + b"more")).read(0, 10)


def test_a_bomb_ends_early_and_in_little_memory() -> None:
    content = Gunzipped(Bytes(gzip.compress(bytes(200 << 20), 9)))
    with pytest.raises(GrowsError, match="250 times"):
        content.read(190 << 20, 10)
    assert content._end < 70 << 20
    assert len(content._window) < 18 << 20


def test_it_is_known_by_its_first_bytes() -> None:
    assert is_gzip(gzip.compress(b""))
    assert not is_gzip(b"PK")
