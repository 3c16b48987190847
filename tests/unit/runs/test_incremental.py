"""The incremental filter: which image versions are excluded, and which files are read to find out."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import BinaryIO

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from batchcl.arns import ModelArn
from batchcl.errors import OutputError
from batchcl.images import ImageRef
from batchcl.outcomes import FAILURE_CODES, Failed, Outcome, Scored
from batchcl.runs import incremental as module
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.journal import JournalChunk
from batchcl.runs.publish import PartSpec, publish_chunk
from batchcl.runs.schema import parquet_bytes
from batchcl.runs.store import Store
from tables import columns

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def image(key: str, **more: object) -> ImageRef:
    values: dict[str, object] = {"uri": f"s3://b/{key}", "bucket": "b", "key": key, "etag": "e1"} | more
    return ImageRef(**values)  # type: ignore[arg-type]


def arn_of(model: str) -> ModelArn:
    """The ARN of `project@version`, or of `project@version/stamp` for a retrained model of the same name."""
    project, _, version = model.partition("@")
    version, _, stamp = version.partition("/")
    return ModelArn.parse(
        f"arn:aws:rekognition:eu-west-1:123456789012:project/{project}/version/{version}/{stamp or 1700000000000}"
    )


def scored(each: ImageRef) -> Scored:
    return Scored(image=each, labels=(), attempts=1, latency_ms=1.0, request_id="", scored_at=NOW)


def failed(each: ImageRef, code: str = "InvalidImageFormatException") -> Failed:
    return Failed(image=each, status="failed", code=code, message="no", attempts=1, failed_at=NOW)


async def publish(
    store: Store,
    run: str,
    outcomes: Sequence[Outcome],
    *,
    model: str = "m@1",
    day: int = 20,
    fit: bool = False,
) -> None:
    arn = arn_of(model)
    spec = PartSpec(run_id=run, model=arn.name, model_arn=arn.text, date=dt.date(2026, 11, day))
    rows, entries = columns(outcomes, fit=fit)
    await publish_chunk(store, spec, 0, JournalChunk(0, entries), rows)


def is_new(published: list[ImageRef], asked: list[ImageRef], *, model: str = "m@1") -> list[bool]:
    async def main() -> list[bool]:
        store = Store.memory()
        if published:
            await publish(store, "r", [scored(each) for each in published])
        return [each is None for each in await IncrementalFilter(store, arn_of(model)).known(asked)]

    return anyio.run(main)


def test_without_results_no_image_is_excluded():
    assert is_new([], [image("a")]) == [True]


def test_images_are_excluded_by_etag():
    assert is_new([image("a"), image("b")], [image("a"), image("b", etag="e2"), image("c")]) == [False, True, True]


def test_a_version_id_takes_precedence_over_the_etag():
    old = image("a", version_id="v1")
    assert is_new([old], [old, image("a", version_id="v2"), image("a", version_id="v1", etag=None)]) == [
        False,
        True,
        False,
    ]


def test_a_local_file_is_known_by_size_and_time():
    local = ImageRef(uri="/x/a.png", bucket="", key="/x/a.png", size_bytes=5, last_modified=NOW)
    changed = [local, replace(local, size_bytes=6), replace(local, last_modified=NOW + dt.timedelta(seconds=1))]
    assert is_new([local], changed) == [False, True, True]


def test_an_image_of_unknown_version_is_never_excluded():
    unversioned = image("a", etag=None)
    assert is_new([unversioned], [unversioned]) == [True]


@pytest.mark.parametrize("model", ["m@2", "m@1/1800000000000"], ids=["another-version", "trained-again"])
def test_results_of_other_models_do_not_count(model):
    assert is_new([image("a")], [image("a")], model=model) == [True]


class RecordingStore(Store):
    """A store in memory that records which published files are read."""

    def __init__(self) -> None:
        super().__init__("memory", MemoryStore())
        self.read: list[str] = []

    async def get(self, path: str) -> bytes | None:
        if path.endswith(".parquet"):
            self.read.append(path)
        return await super().get(path)

    def open_file(self, path: str, *, size_bytes: int | None = None) -> BinaryIO:
        assert size_bytes is not None, "known from the listing"
        self.read.append(path)
        return super().open_file(path, size_bytes=size_bytes)

    def reads(self) -> list[str]:
        """The files that were read since the last call."""
        read, self.read = sorted(self.read), []
        return read


_published: dict[int, tuple[str, bytes]] = {}
"""The file of each night: its path and content, which each test would write again."""


async def publish_nights(store: Store, numbers: Iterable[int]) -> None:
    for night in numbers:
        if night not in _published:
            once = Store.memory()
            await publish(once, f"n{night:03}", [scored(image(f"{night}/{n:03}")) for n in range(4)])
            (file,) = await once.list_all("results")
            _published[night] = file.path, await once.get(file.path) or b""
        await store.put(*_published[night])


async def excludes_exactly(store: Store, numbers: Iterable[int]) -> bool:
    """Whether the filter excludes exactly the images of these nights, out of 100."""
    versions = IncrementalFilter(store, arn_of("m@1"), keep_index=True)
    asked = [image(f"{night}/{n:03}") for night in range(100) for n in range(4)]
    there = set(numbers)
    return [one is None for one in await versions.known(asked)] == [
        night not in there for night in range(100) for _ in range(4)
    ]


async def index_of(store: Store) -> str:
    (path,) = [file.path for file in await store.list_all("runs/.index")]
    return path


def test_all_runs_count_and_files_are_read_once():
    pauses: list[int] = []

    async def pause(images: int) -> None:
        pauses.append(images)

    async def main() -> None:
        store = RecordingStore()
        for night in range(1, 4):
            outcomes = [scored(image(f"{night}/{n:03}")) for n in range(48)]
            await publish(store, f"n{night}", outcomes, day=night)
        known = IncrementalFilter(store, arn_of("m@1"), pause=pause)
        for n in range(48):
            across = [image(f"{night}/{n:03}") for night in (1, 3, 4)]
            found = await known.known([*across, image("2/000", etag="e2")])
            assert found == ["already_scored", "already_scored", None, None]
        assert len(set(read := store.reads())) == len(read) == 3

    anyio.run(main)
    assert sum(pauses) == 18


def test_large_files_are_never_indexed():
    async def main() -> None:
        store = RecordingStore()
        many = [image(f"{n:05}", etag=hashlib.sha256(b"%d" % n).hexdigest()) for n in range(8000)]
        await publish(store, "large", [scored(each) for each in many])
        (file,) = await store.list_all("results")
        assert file.size_bytes > 128 * 1024
        for _ in range(2):
            versions = IncrementalFilter(store, arn_of("m@1"), keep_index=True)
            assert set(await versions.known(many)) == {"already_scored"}
            assert store.reads() == [file.path]
        assert await store.list_all("runs/.index") == []

    anyio.run(main)


def test_the_next_run_reads_only_new_small_files():
    async def main() -> None:
        store = RecordingStore()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, range(60))
        assert len(store.reads()) == 60
        await publish_nights(store, range(60, 63))
        assert await excludes_exactly(store, range(63))
        assert [path[-24:-20] for path in store.reads()] == ["n060", "n061", "n062"], "only the new files"

    anyio.run(main)


def test_few_new_files_do_not_create_an_index():
    async def main() -> None:
        store = RecordingStore()
        await publish_nights(store, range(49))
        assert await excludes_exactly(store, range(49))
        await publish_nights(store, range(49, 60))
        assert await IncrementalFilter(store, arn_of("m@1")).known([image("0/000")]) == ["already_scored"]
        assert await store.list_all("runs/.index") == []

    anyio.run(main)


def test_the_size_of_an_index_is_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_INDEX_BYTES", 16 * 4 * 55)

    async def main() -> None:
        store = RecordingStore()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, range(60))
        index = await store.get(await index_of(store))
        store.reads()
        await publish_nights(store, range(60, 100))
        assert await excludes_exactly(store, range(100))
        assert len(store.reads()) == 45, "the files that are not in the index"
        assert await store.get(await index_of(store)) == index

    anyio.run(main)


def test_deleted_files_no_longer_count():
    async def main() -> None:
        store = RecordingStore()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, range(60))
        for file in await store.list_all("results"):
            if "/n007-" in file.path:
                await store.delete(file.path)
        assert await excludes_exactly(store, set(range(60)) - {7})

    anyio.run(main)


def test_a_replaced_file_is_read_again():
    async def main() -> None:
        store = RecordingStore()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, range(60))
        first, second, *_ = [file.path for file in await store.list_all("results")]
        data = await store.get(second)
        assert data is not None
        await store.put(first, data)
        assert await excludes_exactly(store, range(1, 60))

    anyio.run(main)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "another model's", "empty"])
def test_a_corrupt_index_is_ignored_and_replaced(damage):
    async def main() -> None:
        store = RecordingStore()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, range(60))
        store.reads()
        path = await index_of(store)
        data = await store.get(path)
        assert data is not None
        if damage == "gone":
            await store.delete(path)
        elif damage == "another model's":
            await IncrementalFilter(store, arn_of("m@1/1800000000000"), keep_index=True).known([image("0/000")])
            (other,) = {file.path for file in await store.list_all("runs/.index")} - {path}
            await store.put(path, await store.get(other) or b"")
            store.reads()
        else:
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            await store.put(path, {"cut": data[:middle], "flipped": flipped, "empty": b""}[damage])
        assert await excludes_exactly(store, range(60))
        assert len(store.reads()) == 60, "the corrupt index is ignored"
        assert await excludes_exactly(store, range(60))
        assert store.reads() == [], "a new index was written"

    anyio.run(main)


def test_failures_have_one_index_per_fit_setting():
    async def main() -> None:
        store = RecordingStore()
        for night in range(60):
            await publish(store, f"n{night:03}", [failed(image(f"{night}/000"))])
        for fit, expected in ((False, "already_failed"), (True, None), (False, "already_failed")):
            versions = IncrementalFilter(store, arn_of("m@1"), fit=fit, keep_index=True)
            assert await versions.known([image("7/000")]) == [expected]
        again = IncrementalFilter(store, arn_of("m@1"), retry_failed=True, keep_index=True)
        assert await again.known([image("7/000")]) == [None]
        store.reads()
        for fit in (False, True):
            await IncrementalFilter(store, arn_of("m@1"), fit=fit).known([image("7/000")])
        assert [path for path in store.reads() if path.startswith("failures")] == []

    anyio.run(main)


def test_a_failure_to_write_the_index_is_ignored():
    class Full(RecordingStore):
        async def put(self, path: str, data: bytes) -> None:
            if ".index" in path:
                raise OutputError("no space left")
            await super().put(path, data)

    async def main() -> None:
        store = Full()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, range(60))

    anyio.run(main)


def test_a_file_deleted_during_reading_is_ignored():
    class Vanishing(RecordingStore):
        async def get(self, path: str) -> bytes | None:
            return None if "/n003-" in path else await super().get(path)

    async def main() -> None:
        store = Vanishing()
        await publish_nights(store, range(60))
        assert await excludes_exactly(store, set(range(60)) - {3})

    anyio.run(main)


def known(
    outcomes: Sequence[Outcome], asked: ImageRef, *, failed_with: bool = False, fit: bool = False, again: bool = False
) -> str | None:
    """The filter's result for `asked`, with `fit` and `retry_failed=again`, after a run with `fit=failed_with`."""

    async def main() -> str | None:
        store = Store.memory()
        await publish(store, "r", outcomes, fit=failed_with)
        (found,) = await IncrementalFilter(store, arn_of("m@1"), fit=fit, retry_failed=again).known([asked])
        return found

    return anyio.run(main)


@pytest.mark.parametrize("code", ["InternalServerError", "InvalidS3ObjectException", *FAILURE_CODES])
def test_permanent_failures_exclude_their_version(code):
    outcomes = [failed(image("a"), code)]
    about = FAILURE_CODES.get(code)
    expected = "already_failed" if about is not None and about.permanent else None
    assert known(outcomes, image("a")) == expected
    assert known(outcomes, image("a", etag="e2")) is None
    assert known(outcomes, image("a"), again=True) is None


def test_a_failure_of_an_unknown_version_does_not_count():
    unversioned = image("a", etag=None)
    assert known([failed(unversioned)], unversioned) is None


@pytest.mark.parametrize("failed_with", [False, True])
def test_a_permanent_failure_counts_for_its_fit_setting_only(failed_with):
    outcomes = [failed(image("a"))]
    assert known(outcomes, image("a"), failed_with=failed_with, fit=failed_with) == "already_failed"
    assert known(outcomes, image("a"), failed_with=failed_with, fit=not failed_with) is None


def test_a_result_takes_precedence_over_a_failure():
    assert known([failed(image("a")), scored(image("a"))], image("a")) == "already_scored"


def is_known(old: ImageRef, new: ImageRef) -> bool:
    """Reference implementation for one image."""
    if old.uri != new.uri:
        return False
    by_time = new.local and None not in (new.size_bytes, new.last_modified)
    return (
        (new.version_id is not None and old.version_id == new.version_id)
        or (new.version_id is None and new.etag is not None and old.etag == new.etag)
        or (by_time and (old.size_bytes, old.last_modified) == (new.size_bytes, new.last_modified))
    )


@given(st.data())
def test_versions_match_by_id_then_etag_then_size_and_time(data: st.DataObject):
    texts = st.sampled_from(["a", "b", None])
    uris = ("s3://b/x", "s3://b/y", "/x/x")

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
    asked = [*published, *(drawn() for _ in range(6))]
    assert is_new(published, asked) == [not any(is_known(old, new) for old in published) for new in asked]


def test_a_corrupt_part_is_reported_with_a_remedy():
    async def main() -> None:
        store = Store.memory()
        await publish(store, "r1", [scored(image("a"))])
        (part,) = [file.path for file in await store.list_all("results")]
        data = await store.get(part)
        assert data is not None
        await store.put(part, data[:-20])
        with pytest.raises(
            OutputError, match=r"r1-00000-00000.parquet is corrupt: .*; restore it, or run without --incr"
        ):
            await IncrementalFilter(store, arn_of("m@1")).known([image("a")])

    anyio.run(main)


def test_foreign_files_need_the_columns_but_not_the_types():
    async def main() -> None:
        store = Store.memory()
        await publish_nights(store, range(2))
        (first, _) = [file.path for file in await store.list_all("results")]
        table = pq.read_table(pa.BufferReader(await store.get(first) or b""))
        kinds = {"uri": pa.dictionary(pa.int32(), pa.string()), "size_bytes": pa.string()}
        schema = pa.schema([field.with_type(kinds.get(field.name, field.type)) for field in table.schema])
        await store.put(first, parquet_bytes(table.cast(schema)))
        assert await excludes_exactly(store, range(2))
        await store.put(first, parquet_bytes(table.drop_columns(["etag"])))
        with pytest.raises(
            OutputError, match=r"n000.*it has no column etag, so it is not a file of results/; .*--incremental"
        ):
            await excludes_exactly(store, range(2))

    anyio.run(main)
