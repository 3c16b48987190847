from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from batchcl.runs.layout import pace_path
from batchcl.runs.learned_rate import LearnedRate, read_learned, write_learned
from batchcl.runs.store import Store
from sim.fake_world import FaultyStore
from virtual import run_virtual

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def read(data: bytes | None) -> LearnedRate | None:
    async def main() -> LearnedRate | None:
        store: Store = FaultyStore({} if data is None else {pace_path("p@v", "2"): data})
        return await read_learned(store, "p@v", "2")

    return run_virtual(main)


def test_a_learned_rate_survives_a_round_trip() -> None:
    async def main() -> list[LearnedRate | None]:
        store = FaultyStore({})
        await write_learned(store, "p@v", "2", LearnedRate(13.9, NOW))
        return [await read_learned(store, *key) for key in (("p@v", "2"), ("p@other", "2"), ("p@v", "1"), ("p@v", ""))]

    assert run_virtual(main) == [LearnedRate(13.9, NOW), None, None, None]


def test_the_weight_decreases_with_age() -> None:
    starts = [
        LearnedRate(40.0, NOW - dt.timedelta(days=days)).start_tps(NOW, default_tps=5.0) for days in (0, 7, 70, 3650)
    ]
    assert starts[0] == pytest.approx(40)
    assert starts == sorted(starts, reverse=True)
    assert starts[-1] == pytest.approx(5)


def test_a_rate_from_the_future_is_ignored() -> None:
    assert LearnedRate(40.0, NOW + dt.timedelta(days=30)).weight(NOW) == 0


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"{",
        b"[]",
        b'{"tps": 4}',
        b'{"tps": "x", "learned_at": "2026-11-21T00:00:00Z"}',
        b'{"tps": -1, "learned_at": "2026-11-21T00:00:00Z"}',
        b'{"tps": 1e99, "learned_at": "2026-11-21T00:00:00Z"}',
        b'{"tps": 4, "learned_at": "2026-11-21T00:00:00"}',
        b'{"tps": 4, "learned_at": 7}',
    ],
)
def test_a_corrupt_file_is_ignored(data: Any) -> None:
    assert read(data) is None
