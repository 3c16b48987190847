"""The journal: entries are read back, and of two writers one continues."""

from __future__ import annotations

import datetime as dt
import io

import anyio
import pyarrow as pa
import pytest
from obstore.store import MemoryStore

from batchcl.errors import OutputError, StoppedError
from batchcl.images import ImageRef
from batchcl.outcomes import Failed, Label, Scored
from batchcl.runs.entries import JournalEntry, entry_table, of_round, positions
from batchcl.runs.journal import Journal, JournalContent
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store, StoredFile
from virtual import run_virtual

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=dt.UTC)
IMAGES = [ImageRef(uri=f"s3://b/{n}.jpg", bucket="b", key=f"{n}.jpg") for n in range(6)]
PATHS = RunPaths("r")


def scored(n: int, labels: tuple[Label, ...] = ()) -> JournalEntry:
    outcome = Scored(image=IMAGES[n], labels=labels, attempts=2, latency_ms=1.5, request_id="q", scored_at=NOW)
    return JournalEntry(n, outcome)


def failed(n: int, status: str = "failed") -> JournalEntry:
    outcome = Failed(
        image=IMAGES[n],
        status=status,  # type: ignore[arg-type]
        code="X",
        message="why\nnot",
        attempts=8,
        failed_at=NOW,
    )
    return JournalEntry(n, outcome)


class RoundZero(Journal):
    """A journal whose entries are of round 0."""

    async def write(self, *entries: JournalEntry) -> None:
        await self.stage(entries, round_=0)
        await self.flush()


def journal(store: Store, writer: str) -> RoundZero:
    return RoundZero(store, PATHS, 0, writer=writer)


async def read(store: Store) -> pa.Table:
    return (await journal(store, "reader").read()).entries


def test_outcomes_survive_a_round_trip():
    box = Label("é\n", 12.5, (0.25, 0.5, 0.125, 1.0), ((0.0, 0.5), (1.0, 0.25)))
    entries = [scored(0, (box, Label("plain", 99.5))), scored(1), failed(2), failed(3, "skipped")]

    async def main() -> None:
        store = Store.memory()
        writer = journal(store, "a")
        for entry in entries:
            await writer.stage([entry], round_=3)
        await writer.flush()
        assert await read(store) == entry_table(entries, round_=3)

    anyio.run(main)


def test_cuts_divide_a_journal_into_chunks():
    async def main() -> None:
        store = Store.memory()
        first = journal(store, "a")
        await first.write(scored(0))
        await first.write(failed(1))
        await first.cut()
        await first.cut()
        second = journal(store, "b")
        assert (await second.read()).uncut is None
        await second.stage([scored(1)], round_=1)
        await second.flush()
        content = await journal(store, "c").read()
        assert [(chunk.first, positions(chunk.entries)) for chunk in content.chunks] == [(0, [0, 1])]
        assert content.uncut is not None
        assert (content.uncut.first, positions(content.uncut.entries)) == (4, [1])
        assert [positions(entries) for entries in of_round(content.entries, 1)] == [[1], [0, 1]]

    anyio.run(main)


def test_segments_without_newer_columns_are_read():
    async def main() -> None:
        store = Store.memory()
        old = entry_table([scored(0)], round_=0).drop_columns(["fitted"])
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, old.schema) as out:
            out.write_table(old)
        await store.put(PATHS.segment(0, 0), sink.getvalue())
        writer = journal(store, "a")
        assert (await writer.read()).entries.to_pylist() == entry_table([scored(0)], round_=0).to_pylist()
        await writer.write(scored(1))
        assert await read(store) == entry_table([scored(0), scored(1)], round_=0)

    anyio.run(main)


def test_of_two_writers_one_continues_and_the_other_stops():
    async def main() -> None:
        store = Store.memory()
        first, second = journal(store, "a"), journal(store, "b")
        await first.read()
        await second.read()
        await first.write(scored(0))
        with pytest.raises(StoppedError, match="another process"):
            await second.write(scored(0), scored(1))
        await first.write(scored(1))
        assert positions(await read(store)) == [0, 1]

    anyio.run(main)


def test_a_cut_by_another_process_fences_off_a_writer():
    async def main() -> None:
        store = Store.memory()
        suspended, other = journal(store, "a"), journal(store, "b")
        await suspended.write(scored(0))
        await other.read()
        await other.cut()
        for act in (suspended.write(scored(1)), suspended.cut()):
            with pytest.raises(StoppedError, match="another process"):
                await act
        assert positions(await read(store)) == [0]

    anyio.run(main)


def test_equal_entries_of_two_writers_are_distinguished():
    async def main() -> None:
        store = Store.memory()
        await journal(store, "a").write(scored(0))
        with pytest.raises(StoppedError):
            await journal(store, "b").write(scored(0))

    anyio.run(main)


class LosesAnswers(Store):
    """A store whose first write takes effect and then raises an error."""

    lost = False

    async def put_new(self, path: str, data: bytes) -> bool:
        created = await super().put_new(path, data)
        if not self.lost:
            self.lost = True
            raise OutputError("timed out")
        return created


def test_a_write_with_a_lost_response_is_recognized():
    async def main() -> None:
        store = LosesAnswers("memory", Store.memory()._backend)
        writer = journal(store, "a")
        with pytest.raises(OutputError):
            await writer.write(scored(0))
        await writer.write(scored(1))
        assert positions(await read(store)) == [0, 1]

    anyio.run(main)


class LateListing(Store):
    """A store whose listings lack the newest file until `late` of them were returned."""

    late = 0

    async def list_all(self, prefix: str) -> list[StoredFile]:
        files = await super().list_all(prefix)
        self.late -= 1
        return files[:-1] if self.late >= 0 else files


async def cut_journal(store: LateListing, *, late: int) -> JournalContent:
    writer = journal(store, "w")
    await writer.read()
    await writer.write(scored(0))
    await writer.cut()
    store.late = late
    return await writer.read()


def test_a_segment_that_is_listed_late_is_waited_for():
    content = run_virtual(lambda: cut_journal(LateListing("memory", MemoryStore()), late=3))
    assert content.uncut is None, "without the cut, the chunk would not be published"
    assert len(content.chunks) == 1


def test_a_segment_that_is_never_listed_is_an_error():
    with pytest.raises(OutputError, match=r"00001\.arrow was written, but the store does not list it"):
        run_virtual(lambda: cut_journal(LateListing("memory", MemoryStore()), late=1000))


class SlowPuts(Store):
    """A store whose writes take a second."""

    puts = 0

    async def put_exclusive(self, path: str, data: bytes, *, what: str) -> None:
        self.puts += 1
        await anyio.sleep(1)
        await super().put_exclusive(path, data, what=what)


def test_concurrent_flushes_write_a_segment_once():
    async def main() -> None:
        store = SlowPuts("memory", MemoryStore())
        writer = journal(store, "w")
        async with anyio.create_task_group() as group:
            group.start_soon(writer.cut)
            await anyio.sleep(0.5)
            group.start_soon(writer.flush)
        assert store.puts == 1
        await writer.write(scored(0))
        assert (await read(store)).num_rows == 1, "no number is missing"

    run_virtual(main)
