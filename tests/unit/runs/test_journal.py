"""The journal: what was recorded is read back, and of two writers one goes on."""

from __future__ import annotations

import datetime as dt
import io

import anyio
import pyarrow as pa
import pytest

from batchcl.errors import OutputError, StoppedError
from batchcl.images import ImageRef
from batchcl.runs.entries import Entry, entry_table, positions
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.scoring.outcome import Failed, Label, Scored

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=dt.UTC)
IMAGES = [ImageRef(uri=f"s3://b/{n}.jpg", bucket="b", key=f"{n}.jpg") for n in range(6)]
PATHS = RunPaths("r")


def scored(n: int, labels: tuple[Label, ...] = ()) -> Entry:
    outcome = Scored(image=IMAGES[n], labels=labels, attempts=2, latency_ms=1.5, request_id="q", scored_at=NOW)
    return Entry(n, outcome)


def failed(n: int, status: str = "failed") -> Entry:
    outcome = Failed(
        image=IMAGES[n],
        status=status,  # type: ignore[arg-type]
        code="X",
        message="why\nnot",
        attempts=8,
        failed_at=NOW,
    )
    return Entry(n, outcome)


def journal(store: Store, writer: str, round_: int = 0) -> Journal:
    return Journal(store, PATHS, 0, round_=round_, writer=writer)


def test_outcomes_come_back_as_they_were():
    box = Label("é\n", 12.5, (0.25, 0.5, 0.125, 1.0), ((0.0, 0.5), (1.0, 0.25)))
    entries = [scored(0, (box, Label("plain", 99.5))), scored(1), failed(2), failed(3, "skipped")]

    async def main() -> None:
        store = Store.memory()
        writer = journal(store, "a", round_=3)
        for entry in entries:
            await writer.stage([entry])
        await writer.settle()
        assert await journal(store, "b", round_=3).read() == entry_table(entries, round_=3)
        assert (await journal(store, "b", round_=0).read()).num_rows == 0, "rounds are apart"

    anyio.run(main)


def test_segments_of_an_older_version_that_lack_a_column_are_read():
    async def main() -> None:
        store = Store.memory()
        old = entry_table([scored(0)], round_=0).drop_columns(["fitted"])
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, old.schema) as out:
            out.write_table(old)
        await store.put(PATHS.segment(0, 0, 0), sink.getvalue())
        writer = journal(store, "a")
        assert (await writer.read()).to_pylist() == entry_table([scored(0)], round_=0).to_pylist()
        await writer.stage([scored(1)])
        await writer.settle()
        assert await journal(store, "b").read() == entry_table([scored(0), scored(1)], round_=0)

    anyio.run(main)


def test_of_two_writers_one_goes_on_and_nothing_is_mixed():
    async def main() -> None:
        store = Store.memory()
        first, second = journal(store, "a"), journal(store, "b")
        await first.read()
        await second.read()
        await first.stage([scored(0)])
        await first.settle()
        await second.stage([scored(0), scored(1)])
        with pytest.raises(StoppedError, match="another runner"):
            await second.settle()
        await first.stage([scored(1)])
        await first.settle()
        assert positions(await journal(store, "c").read()) == [0, 1]

    anyio.run(main)


def test_two_runners_that_recorded_the_very_same_are_still_two():
    async def main() -> None:
        store = Store.memory()
        for writer, stopped in (("a", False), ("b", True)):
            one = journal(store, writer)
            await one.stage([scored(0)])
            if stopped:
                with pytest.raises(StoppedError):
                    await one.settle()
            else:
                await one.settle()

    anyio.run(main)


class LosesAnswers(Store):
    """Writes, and then says that it failed, once."""

    lost = False

    async def put_new(self, path: str, data: bytes) -> bool:
        created = await super().put_new(path, data)
        if not self.lost:
            self.lost = True
            raise OutputError("timed out")
        return created


def test_a_write_whose_answer_was_lost_is_no_other_runner_and_is_not_repeated():
    async def main() -> None:
        store = LosesAnswers("memory:", Store.memory()._backend)
        writer = journal(store, "a")
        await writer.stage([scored(0)])
        with pytest.raises(OutputError):
            await writer.settle()
        await writer.stage([scored(1)])
        await writer.settle()
        assert positions(await journal(store, "b").read()) == [0, 1]

    anyio.run(main)
