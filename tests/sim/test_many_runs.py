"""An output root with many runs: finished runs are read from names and summaries only."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from dataclasses import replace
from functools import partial

import anyio
import pytest

from batchcl.errors import BatchclError, FatalCallError, ImageError, OutputError
from batchcl.images import ImageRef
from batchcl.runs.record import read_record, read_summary
from batchcl.runs.status import RunState, _read_incomplete, list_runs, newest_run, read_run_state
from batchcl.summary import Summary
from sim.fake_world import FakeWorld, FaultInjector, FaultKind, FaultyStore, OperationKind, run_simulation, utcnow
from sim.service import Service, image

BROKEN = {2, 5}


class ReadingStore(FaultyStore):
    """A store that records which files are read."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.read: list[str] = []

    async def get(self, path: str) -> bytes | None:
        self.read.append(path)
        return await super().get(path)


def photo(n: int) -> ImageRef:
    """An image with a version id."""
    return replace(image(n), etag="e")


def broken(each: ImageRef, _call: int, _now: float) -> ImageError | None:
    return ImageError("not an image", code="InternalError", status=400) if int(each.key[:6]) in BROKEN else None


def world(**more: object) -> FakeWorld:
    values: dict[str, object] = {"images": [photo(n) for n in range(12)], "service": Service(fault=broken)} | more
    return FakeWorld(**values)  # type: ignore[arg-type]


async def nights(count: int = 3, **more: object) -> FakeWorld:
    """A root with finished incremental runs `n0`, `n1` and so on, a day apart, of twelve new images each."""
    root = world(incremental=True, **more)
    for number in range(count):
        images = [photo(100 * number + n) for n in range(12)]
        assert isinstance(await replace(root, run_id=f"n{number}", images=images).run(), Summary)
        await anyio.sleep(86_400)
    return root


async def shown(root: FakeWorld, run_id: str) -> RunState:
    state = await read_run_state(root.store(), run_id, now=utcnow())
    assert state is not None
    return state


async def closely(root: FakeWorld, run_id: str) -> RunState:
    """The state from markers and journals, without the summary."""
    record = await read_record(root.store(), run_id)
    assert record is not None
    return await _read_incomplete(root.store(), record, await read_summary(root.store(), run_id), now=utcnow())


def test_a_finished_run_is_shown_from_its_summary_and_file_names():
    async def main() -> None:
        root = await nights(1)
        store = ReadingStore(root.files)
        state = await read_run_state(store, "n0", now=utcnow())
        assert store.read == ["runs/n0/summary.json"]
        assert state == await closely(root, "n0")
        assert state is not None
        assert (state.state, state.scored, state.failed, state.left, state.sessions) == ("done", 10, 2, 0, 1)
        assert (state.calls, state.min_confidence) == (12, None)
        assert state.model_arn == "arn:aws:rekognition:eu-west-1:123456789012:project/birds/version/v1/1700000000000"

    run_simulation(main)


def test_summaries_and_journals_show_the_same_state():
    async def main() -> None:
        root = world(run_id="n0", incremental=True)
        await root.run()
        other = replace(root, run_id="n1", images=[photo(n) for n in range(24)], shard_size=6)
        assert await other.run(FaultInjector(OperationKind.CALL, 4, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(60)
        await replace(root, run_id="n2", images=[photo(n) for n in range(12, 20)]).run_to_end()
        await other.run_to_end()
        for run_id in ("n0", "n1", "n2"):
            assert await shown(root, run_id) == await closely(root, run_id)
        root.service = Service()
        assert isinstance(await root.retry(), Summary)
        state = await shown(root, "n0")
        assert state == await closely(root, "n0")
        assert (state.state, state.rounds, state.unresolved, state.sessions) == ("done", 1, 0, 2)

    run_simulation(main)


def test_a_retry_is_shown_while_it_runs_and_after_it_died():
    async def main() -> None:
        root = await nights(2)
        retried = replace(root, run_id="n0", service=Service(latency_s=lambda _: 30.0))
        async with anyio.create_task_group() as group:
            group.start_soon(retried.retry, FaultInjector(OperationKind.CALL, 1, FaultKind.CRASH_BEFORE))
            await anyio.sleep(5)
            running = await shown(root, "n0")
            assert (running.state, running.unfinished_round) == ("running", 1)
            assert [each.state for each in await list_runs(root.store(), now=utcnow())] == ["running", "done"]
        await anyio.sleep(600)
        died = await shown(root, "n0")
        assert (died.state, died.held_by, died.unfinished_round, died.sessions) == ("done", None, 1, 2)
        await retried.retry_to_end()
        assert (await shown(root, "n0")).unfinished_round is None

    run_simulation(main)


def test_the_newest_run_is_found_by_file_names_alone():
    async def main() -> None:
        root = await nights(4)
        store = ReadingStore(root.files)
        assert await newest_run(store) == "n3"
        assert store.read == ["runs/n3/run.json"]

    run_simulation(main)


def removed(root: FakeWorld, prefix: str) -> None:
    for path in [path for path in root.files if path.startswith(prefix)]:
        del root.files[path]


def test_names_of_removed_or_restarted_runs_are_not_misleading():
    async def main() -> None:
        root = await nights(3)
        removed(root, "runs/n2/")
        assert await newest_run(root.store()) == "n1"
        removed(root, "runs/n0/")
        await replace(root, run_id="n0", images=[photo(900)]).run()
        assert await newest_run(root.store()) == "n0", "it began anew"
        removed(root, "runs/.starts/")
        assert await newest_run(root.store()) == "n0", "records do without names"
        removed(root, "runs/")
        assert await newest_run(root.store()) is None

    run_simulation(main)


def test_the_name_of_a_run_without_record_is_ignored():
    async def main() -> None:
        root = await nights(2)
        await replace(root, run_id="n9").run()
        removed(root, "runs/n9/")
        assert await newest_run(root.store()) == "n1"

    run_simulation(main)


def test_the_name_of_a_refused_run_id_is_ignored():
    async def main() -> None:
        root = await nights(2)
        record = await read_record(root.store(), "n0")
        assert record is not None
        assert not await replace(record, started_at=record.started_at + dt.timedelta(days=1)).create(root.store())
        assert await newest_run(root.store()) == "n1"

    run_simulation(main)


def test_an_open_retry_is_shown_after_another_session():
    async def main() -> None:
        root = await nights(1)
        retried = replace(root, run_id="n0")
        denied = partial(FatalCallError, "not any more", code="AccessDeniedException", status=400)
        assert isinstance(await retried.retry(FaultInjector(OperationKind.CALL, 1, error=denied)), BatchclError)
        assert isinstance(await retried.run(), Summary), "the run itself is done"
        summary = await read_summary(root.store(), "n0")
        assert summary is not None
        assert (summary.status, summary.round) == ("done", 0)
        assert (await shown(root, "n0")).unfinished_round == 1

    run_simulation(main)


def test_an_incremental_start_reads_no_session_that_has_settled():
    async def main() -> None:
        root = await nights(5)
        reads = await _sessions_read(root)
        assert reads == []
        removed(root, "runs/n1/sessions/00000.settled")
        assert await _sessions_read(root) == ["runs/n1/sessions/00000.json"], "the name is a hint, the file decides"

    run_simulation(main)


async def _sessions_read(root: FakeWorld) -> list[str]:
    """Sessions of other runs that a new run reads."""
    read: list[str] = []
    get = FaultyStore.get

    async def noting(store: FaultyStore, path: str) -> bytes | None:
        if "/sessions/" in path and "/new/" not in path:
            read.append(path)
        return await get(store, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaultyStore, "get", noting)
        assert isinstance(await replace(root, run_id="new", images=[photo(5000)]).run_to_end(), Summary)
    removed(root, "runs/new/")
    removed(root, "results/")
    return read


@pytest.mark.parametrize("at", range(3, 12, 2))
def test_images_scored_by_a_killed_run_are_not_scored_again(at):
    async def main() -> None:
        service = Service()
        root = world(incremental=True, service=service, run_id="killed", max_in_flight=1, shard_size=4)
        assert await root.run(FaultInjector(OperationKind.CALL, at, FaultKind.CRASH_BEFORE)) is None
        journalled = root.journalled()
        await anyio.sleep(60)
        await replace(root, run_id="next").run_to_end()
        assert all(service.calls[uri] == 1 for uri in journalled)
        states = {each.run_id: each for each in await list_runs(root.store(), now=utcnow())}
        assert states["killed"].published == len(journalled)

    run_simulation(main)


DAMAGED = b'{"run_id": "n1", "model"'


def test_a_corrupt_run_is_listed_as_corrupt_beside_the_others():
    async def main() -> None:
        root = await nights(3)
        root.files["runs/n1/summary.json"] = DAMAGED
        states = {each.run_id: each for each in await list_runs(root.store(), now=utcnow())}
        assert {run_id: state.state for run_id, state in states.items()} == {
            "n0": "done",
            "n1": "damaged",
            "n2": "done",
        }
        assert states["n1"].reason is not None
        assert "runs/n1/summary.json is corrupt" in states["n1"].reason
        assert await newest_run(root.store()) == "n2"
        with pytest.raises(OutputError, match=r"runs/n1/summary.json is corrupt"):
            await read_run_state(root.store(), "n1", now=utcnow())
        root.files["runs/n1/run.json"] = DAMAGED
        removed(root, "runs/.starts/")
        assert await newest_run(root.store()) == "n2"

    run_simulation(main)


def test_a_corrupt_run_without_unpublished_rows_blocks_no_start():
    async def main() -> None:
        root = await nights(2)
        for name in ("run.json", "summary.json", "worklist.json", "journal/00000/00000.arrow"):
            root.files[f"runs/n1/{name}"] = DAMAGED
        assert isinstance(await replace(root, run_id="next", images=[photo(700)]).run(), Summary)

    run_simulation(main)


@pytest.mark.parametrize("name", ["run.json", "worklist.json", "journal/00000/00000.arrow"])
def test_a_corrupt_run_with_unpublished_rows_blocks_exact_starts(name):
    async def main() -> None:
        root = await nights(1)
        plain = replace(root, run_id="plain", incremental=False, images=[photo(600 + n) for n in (2, 5, 7)])
        await plain.run()
        killed = replace(root, run_id="killed", images=[photo(n) for n in range(500, 512)], max_in_flight=1)
        assert await killed.run(FaultInjector(OperationKind.CALL, 6, FaultKind.CRASH_BEFORE)) is None
        killed.files[f"runs/killed/{name}"] = DAMAGED
        await anyio.sleep(60)
        refused = await replace(root, run_id="next", images=[photo(700)]).run()
        assert isinstance(refused, BatchclError)
        assert f"runs/killed/{name}" in str(refused)
        assert "recovering run killed failed, so images that it has scored may be missing" in str(refused)
        assert "or run without --incremental" in str(refused)
        retried = replace(plain, service=Service())
        assert isinstance(await retried.retry(), Summary), (
            "a retry of a run that isn't incremental needs no other's rows"
        )

    run_simulation(main)


def test_runs_are_shown_without_pyarrow():
    loaded = "import sys, batchcl.runs.status; sys.exit('pyarrow' in sys.modules or 'polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
