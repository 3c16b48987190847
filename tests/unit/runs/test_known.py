"""Which image versions have a result: the same version once, another version again."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.errors import OutputError
from batchcl.images import ImageRef
from batchcl.runs.journal import Chunk
from batchcl.runs.known import KnownVersions
from batchcl.runs.parts import PartSpec, publish_chunk
from batchcl.runs.store import Store
from batchcl.scoring.outcome import Scored
from tables import columns

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def image(key: str, **more: object) -> ImageRef:
    values: dict[str, object] = {"uri": f"s3://b/{key}", "bucket": "b", "key": key, "etag": "e1"} | more
    return ImageRef(**values)  # type: ignore[arg-type]


async def publish(store: Store, run: str, images: list[ImageRef], *, model: str = "m@1", day: int = 20) -> None:
    spec = PartSpec(run_id=run, model=model, date=dt.date(2026, 11, day))
    outcomes = [
        Scored(image=each, labels=(), attempts=1, latency_ms=1.0, request_id="", scored_at=NOW) for each in images
    ]
    rows, entries = columns(outcomes)
    await publish_chunk(store, spec, 0, Chunk(0, entries), rows)


def fresh(published: list[ImageRef], asked: list[ImageRef], *, model: str = "m@1") -> list[bool]:
    """What is known of the same results in memory, and on disk."""

    async def main() -> list[bool]:
        store = Store.memory()
        if published:
            await publish(store, "r", published)
        found = await KnownVersions(store, model).fresh(asked)
        assert await KnownVersions(store, model, most_rows=0).fresh(asked) == found
        return found

    return anyio.run(main)


def test_without_results_everything_is_fresh():
    assert fresh([], [image("a")]) == [True]


def test_the_same_etag_is_known_and_another_is_fresh():
    assert fresh([image("a"), image("b")], [image("a"), image("b", etag="e2"), image("c")]) == [False, True, True]


def test_a_version_id_decides_alone():
    old = image("a", version_id="v1")
    assert fresh([old], [old, image("a", version_id="v2"), image("a", version_id="v1", etag=None)]) == [
        False,
        True,
        False,
    ]


def test_a_local_file_is_known_by_size_and_time():
    local = ImageRef(uri="/x/a.png", bucket="", key="/x/a.png", size_bytes=5, last_modified=NOW)
    changed = [local, replace(local, size_bytes=6), replace(local, last_modified=NOW + dt.timedelta(seconds=1))]
    assert fresh([local], changed) == [False, True, True]


def test_an_image_of_which_nothing_is_told_is_never_known():
    untold = image("a", etag=None)
    assert fresh([untold], [untold]) == [True]


def test_another_model_knows_nothing():
    assert fresh([image("a")], [image("a")], model="m@2") == [True]


def test_every_night_and_every_part_counts_and_only_what_can_match_is_read():
    async def main() -> None:
        store = Store.memory()
        for night in range(1, 4):
            keys = [f"{night}/{n:03}" for n in range(50)]
            await publish(store, f"n{night}", [image(key) for key in keys], day=night)
        known = KnownVersions(store, "m@1")
        assert not any(await known.fresh([image(f"2/{n:03}") for n in range(50)]))
        assert [group.path.count("n2") for group in known._cached] == [1]
        assert all(await known.fresh([image(f"4/{n:03}") for n in range(50)]))
        assert known._cached == {}

    anyio.run(main)


def test_a_list_in_no_order_has_all_versions_read_once_and_none_kept_in_memory(monkeypatch: pytest.MonkeyPatch):
    reads = []
    read = KnownVersions._read_now

    def counted(known: KnownVersions, group: Any) -> Any:
        reads.append(group.path)
        return read(known, group)

    monkeypatch.setattr(KnownVersions, "_read_now", counted)

    async def main() -> None:
        store = Store.memory()
        for night in range(1, 4):
            await publish(store, f"n{night}", [image(f"{night}/{n:03}") for n in range(50)], day=night)
        known = KnownVersions(store, "m@1", most_rows=149)
        assert await known.fresh([image("1/000"), image("2/000")]) == [False, False]
        assert (len(reads), len(known._cached)) == (2, 2)
        reads.clear()
        for n in range(50):
            across = [image(f"{night}/{n:03}") for night in (1, 3, 4)]
            assert await known.fresh([*across, image("2/000", etag="e2")]) == [False, False, True, True]
        assert (len(reads), known._cached) == (3, {})

    anyio.run(main)


@given(st.data())
def test_memory_and_disk_know_the_same(data: st.DataObject):
    texts = st.sampled_from(["a", "b", None])
    uris = ("s3://b/x", "s3://b/y", "/x/x", "https://h/x")

    def drawn() -> ImageRef:
        uri = data.draw(st.sampled_from(uris))
        bucket, key = ("b", uri[-1]) if uri.startswith("s3") else ("", uri)
        times = st.sampled_from([NOW, NOW + dt.timedelta(microseconds=1), None])
        return ImageRef(
            uri=uri,
            bucket=bucket,
            key=key,
            version_id=data.draw(texts),
            etag=data.draw(texts),
            size_bytes=data.draw(st.sampled_from([1, 12, None])),
            last_modified=data.draw(times),
        )

    published = [drawn() for _ in range(data.draw(st.integers(1, 6)))]
    fresh(published, [*published, *(drawn() for _ in range(6))])


def test_a_damaged_part_is_named_with_what_to_do():
    async def main() -> None:
        store = Store.memory()
        await publish(store, "r1", [image("a")])
        (part,) = [file.path for file in await store.list_all("results")]
        data = await store.get(part)
        assert data is not None
        await store.put(part, data[:-20])
        with pytest.raises(
            OutputError, match=r"r1-00000-00000.parquet is damaged: .*; restore it, or run without --incr"
        ):
            await KnownVersions(store, "m@1").fresh([image("a")])

    anyio.run(main)


def test_names_that_are_too_long_for_statistics_are_known_too():
    long = "x" * 5000
    assert fresh([image(long)], [image(long), image("y")]) == [False, True]
