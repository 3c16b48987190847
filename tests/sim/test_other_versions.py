"""Runs that another version has begun: resumed if their format is known, otherwise refused and left alone."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl.errors import OutputError
from batchcl.runs.record import read_summary
from batchcl.runs.status import list_runs
from sim.fake_world import EPOCH, RUN, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image

REFUSAL = (
    rf"runs/{RUN}/run\.json has format 2 of batchcl 0\.9\.0, and this is batchcl \S+, which reads formats up to 1; "
    r"use batchcl 0\.9\.0 or later"
)


async def killed(**more: Any) -> FakeWorld:
    """A run whose process was killed after half of its images."""
    world = FakeWorld([image(n) for n in range(60)], Service(), segment_entries=4, **more)
    assert await world.run(FaultInjector(OperationKind.CALL, 30, FaultKind.CRASH_BEFORE)) is None
    assert world.journalled()
    return world


def edit(world: FakeWorld, path: str, **changes: Any) -> None:
    world.files[path] = orjson.dumps(orjson.loads(world.files[path]) | changes)


def with_column(table: pa.Table) -> pa.Table:
    return table.append_column("later", pa.array(["x"] * len(table), pa.string()))


def test_a_run_of_a_later_version_with_the_same_format_is_resumed():
    async def main() -> None:
        world = await killed()
        for path, data in list(world.files.items()):
            if path.endswith(".json") and not path.startswith("runs/."):
                edit(world, path, later="x", **({"version": "0.9.0"} if path.endswith("run.json") else {}))
            elif path.endswith(".arrow"):
                with pa.ipc.open_file(pa.py_buffer(data)) as file:
                    table = with_column(file.read_all())
                with pa.ipc.new_file(sink := io.BytesIO(), table.schema) as out:
                    out.write_table(table)
                world.files[path] = sink.getvalue()
            elif "/worklist/" in path:
                table = pq.read_table(io.BytesIO(data))
                metadata = {**table.schema.metadata}
                bookmark = orjson.loads(metadata[b"batchcl.bookmark"])
                bookmark = bookmark | {"later": "x", "position": bookmark["position"] | {"later": "x"}}
                metadata[b"batchcl.bookmark"] = orjson.dumps(bookmark)
                pq.write_table(with_column(table).replace_schema_metadata(metadata), sink := io.BytesIO())
                world.files[path] = sink.getvalue()
        world.assert_exactly_once(await world.run_to_end())

    run_simulation(main)


def test_a_run_of_a_later_format_is_neither_resumed_nor_recovered():
    async def main() -> None:
        world = await killed(incremental=True)
        edit(world, f"runs/{RUN}/run.json", format=2, version="0.9.0")
        before = dict(world.files)
        with pytest.raises(OutputError, match=f"{REFUSAL}$"):
            await refusal(world)
        world.run_id = "next"
        with pytest.raises(OutputError, match=f"recovering run {RUN} failed, .*: .*{REFUSAL}; or run without --incr"):
            await refusal(world)
        own = {path: data for path, data in world.files.items() if path in before}
        assert own == before, "not changed by any of these"
        (damaged,) = [run for run in await list_runs(world.store(), now=EPOCH) if run.run_id == RUN]
        assert damaged.state == "damaged"
        assert damaged.reason is not None
        assert "use batchcl 0.9.0 or later" in damaged.reason
        assert await read_summary(world.store(), "next") is None

    async def refusal(world: FakeWorld) -> None:
        end = await world.run()
        assert isinstance(end, OutputError)
        raise end

    run_simulation(main)
