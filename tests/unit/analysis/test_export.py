"""Exported copies have the same rows in few files, verified by count, and the manifest is written last."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest

from batchcl.analysis import export
from batchcl.analysis.export import copy_tables, export_parquet
from batchcl.analysis.results import open_results
from batchcl.errors import OutputError, UsageError
from batchcl.outcomes import Label
from batchcl.runs.published import read_part
from batchcl.runs.schema import FAILURES, RESULTS
from batchcl.runs.store import Store
from tables import published
from unit.analysis.conftest import Root, failed, scored

CAT = Label("cat", 90)


@pytest.fixture
def filled(tmp_path: Path) -> Root:
    """Two nights of three shards each, with a failure that a retry resolved and one that it did not."""
    root = Root(tmp_path / "out")
    for date, run_id in (("2026-11-20", "n1"), ("2026-11-21", "n2")):
        for shard in (2, 0, 1):
            names = [f"s3://b/{shard}/{n}" for n in (3, 1, 2)]
            root.results(*(scored(name, CAT) for name in names), date=date, run_id=run_id, shard=shard)
    root.failures([failed("s3://b/x"), failed("s3://b/y")], run_id="n2", first=0)
    root.results(scored("s3://b/x", CAT), run_id="n2", first=2)
    root.failures([failed("s3://b/y")], run_id="n2", first=2, round_=1)
    return root


def rows(root: object, table: str) -> list[dict[str, Any]]:
    return published(str(root), table).sort("model", "date", "run_id", "uri").to_dicts()


def test_a_copy_has_all_rows_in_few_sorted_files(filled: Root, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in filled.path.rglob("*.parquet")}
    export = anyio.run(export_parquet, str(filled), str(tmp_path / "new"))
    assert {path: path.read_bytes() for path in filled.path.rglob("*.parquet")} == before, "the source is not changed"
    assert [(file.path, file.rows, len(file.sources)) for file in export.files] == [
        ("failures/model=cats@v1/date=2026-11-21/part-00000.parquet", 3, 2),
        ("results/model=cats@v1/date=2026-11-20/part-00000.parquet", 9, 3),
        ("results/model=cats@v1/date=2026-11-21/part-00000.parquet", 10, 4),
    ]
    assert export.rows == {"results": 19, "failures": 3}
    for table, schema in (("results", RESULTS), ("failures", FAILURES)):
        assert rows(tmp_path / "new", table) == rows(filled, table)
        for path in (tmp_path / "new" / table).rglob("*.parquet"):
            copied = pq.read_table(path, partitioning=None)
            assert copied.schema.remove_metadata() == schema
            assert copied["uri"].to_pylist() == sorted(copied["uri"].to_pylist())


def test_the_manifest_lists_the_files_and_is_written_last(filled: Root, tmp_path: Path) -> None:
    written: list[str] = []

    async def main() -> None:
        target = Store.open(str(tmp_path / "new"), create=True)
        await copy_tables(Store.open(str(filled)), target, on_file=lambda file: written.append(file.path))

    anyio.run(main)
    manifest = json.loads((tmp_path / "new" / "export.json").read_bytes())
    assert manifest["source"] == str(filled)
    assert (manifest["schema"], manifest["rows"]) == ("1", {"results": 19, "failures": 3})
    assert [file["path"] for file in manifest["files"]] == written
    assert sum(len(file["sources"]) for file in manifest["files"]) == 9


def test_results_are_read_from_a_copy_as_from_the_root(filled: Root, tmp_path: Path) -> None:
    anyio.run(export_parquet, str(filled), str(tmp_path / "new"))
    old, new = open_results(str(filled)), open_results(str(tmp_path / "new"))
    assert new.failures().collect()["uri"].to_list() == ["s3://b/y"]
    for one in (old, new):
        assert one.images(run_id="n1").collect().height == 9
        assert one.failures().collect().select("uri", "round").rows() == [("s3://b/y", 1)]
    with pytest.raises(UsageError, match="no rows of the run 'n3'"):
        old.images(run_id="n3")


def test_only_days_before_the_given_one_are_copied(filled: Root, tmp_path: Path) -> None:
    export = anyio.run(lambda: export_parquet(str(filled), str(tmp_path / "new"), before="2026-11-21"))
    assert [file.path for file in export.files] == ["results/model=cats@v1/date=2026-11-20/part-00000.parquet"]
    assert export.before == dt.date(2026, 11, 21)


def test_a_small_target_size_makes_adjacent_sorted_files(filled: Root, tmp_path: Path) -> None:
    export = anyio.run(lambda: export_parquet(str(filled), str(tmp_path / "new"), target_bytes=1))
    assert [len(file.sources) for file in export.files] == [1] * 9
    first = sorted((tmp_path / "new" / "results" / "model=cats@v1" / "date=2026-11-20").iterdir())
    names = [name for path in first for name in pq.read_table(path, partitioning=None)["uri"].to_pylist()]
    assert names == sorted(names)


@pytest.mark.parametrize("left", ["export.json", "results/model=m/date=2026-11-20/part-00000.parquet"])
def test_a_location_that_is_not_empty_is_refused(filled: Root, tmp_path: Path, left: str) -> None:
    path = tmp_path / "new" / left
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UsageError, match="it is not empty"):
        anyio.run(export_parquet, str(filled), str(tmp_path / "new"))
    assert [file for file in (tmp_path / "new").rglob("*") if file.is_file()] == [path]


def test_a_location_inside_the_root_is_refused(filled: Root) -> None:
    with pytest.raises(UsageError, match="it is inside"):
        anyio.run(export_parquet, str(filled), str(filled.path / "results" / "copy"))
    assert not (filled.path / "results" / "copy").exists()


def test_a_copy_with_a_different_row_count_is_refused(
    filled: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "read_part", lambda *args: read_part(*args).slice(1))
    with pytest.raises(OutputError, match=r"has 1 rows, but its 2 source files have 3; delete this copy"):
        anyio.run(export_parquet, str(filled), str(tmp_path / "new"))
    assert not (tmp_path / "new" / "export.json").exists()


def test_a_corrupt_file_is_named(filled: Root, tmp_path: Path) -> None:
    part = next(filled.path.rglob("n1-*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(OutputError, match=rf"{part.name} is corrupt"):
        anyio.run(export_parquet, str(filled), str(tmp_path / "new"))
