"""What docs/compatibility.md promises about names, and about tables that another version has written."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import anyio
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl import __version__, export_parquet, open_results
from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import OutputError
from batchcl.images import ImageRef
from batchcl.outcomes import Label
from batchcl.runs import incremental
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.store import Store
from batchcl.sources.from_results import open_published_images
from stable_names import recorded_names, stable_names
from unit.analysis.conftest import Root, arn_of, failed, scored
from unit.sources.lists import selected

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
RECORD = "record the names with: .venv/bin/python tests/stable_names.py"
CAT = Label("cat", 95)
IMAGE = ImageRef(uri="s3://b/a", bucket="b", key="a", etag="e1")


def test_no_stable_name_is_removed_or_changed() -> None:
    removed = recorded_names() - stable_names()
    assert not removed, f"keep them; or, in a minor version, say in CHANGELOG.md what to do, and {RECORD}"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A file in each table of two runs."""
    root = Root(tmp_path / "out")
    for run_id in ("r1", "r2"):
        root.results(dataclasses.replace(scored("s3://b/a", CAT), image=IMAGE), run_id=run_id)
        root.failures([failed("s3://b/c")], run_id=run_id)
    return root


def rewrite(root: Root, *, schema: str = "1", add: bool = False, run_id: str = "r2") -> None:
    """Rewrite all files of a run as another version writes them."""
    for path in root.path.rglob(f"{run_id}-*.parquet"):
        table = pq.read_table(path, partitioning=None)
        metadata = {**table.schema.metadata, b"batchcl.schema": schema.encode(), b"batchcl.version": b"0.9.0"}
        if add:
            table = table.append_column("added", pa.array(["x"] * len(table)))
        pq.write_table(table.replace_schema_metadata(metadata), path)


def images(root: Root) -> object:
    return open_results(str(root)).images().select("uri", "labels").collect().rows()


def failures(root: Root) -> object:
    return open_results(str(root)).failures().select("uri", "error_code").collect().rows()


def batches(root: Root) -> object:
    return list(open_results(str(root), all_runs=True).map_batches(lambda batch: batch.detections["label"].to_list()))


def statistics(root: Root) -> object:
    return open_results(str(root)).min_confidences


def exported(root: Root) -> object:
    with tempfile.TemporaryDirectory() as copy:
        return anyio.run(lambda: export_parquet(str(root), copy)).rows


def listed(root: Root) -> object:
    async def main() -> object:
        source = await open_published_images(str(root), aws=Aws(), where=None, exclude_run=None)
        return sorted(image.uri for image in (await selected(source))[0])

    return anyio.run(main)


def known(root: Root) -> object:
    model = ModelArn.parse(arn_of("cats@v1"))

    async def main() -> object:
        store = await Store.open_async(str(root), aws=Aws())
        return await IncrementalFilter(store, model).known([IMAGE, dataclasses.replace(IMAGE, etag="e2")])

    return anyio.run(main)


def known_by_large_files(root: Root) -> object:
    with mock.patch.object(incremental, "_SMALL_FILE_BYTES", 0):
        return known(root)


READERS = [images, failures, batches, statistics, exported, listed, known, known_by_large_files]


@pytest.mark.parametrize("read", READERS)
def test_a_later_schema_is_refused_in_one_sentence(root: Root, read: Callable[[Root], object]) -> None:
    rewrite(root, schema="2")
    sentence = (
        r"^\S+\.parquet has schema 2 of batchcl 0\.9\.0, and this is batchcl \S+, which reads schema 1; "
        r"use batchcl 0\.9\.0 or later$"
    )
    with pytest.raises(OutputError, match=sentence) as refused:
        read(root)
    shown = str(refused.value).partition(".parquet ")[2].replace(f"is batchcl {__version__}", "is batchcl 0.1.0")
    assert shown in PAGE.read_text()


@pytest.mark.parametrize("read", READERS)
def test_more_columns_of_the_same_schema_are_ignored(root: Root, read: Callable[[Root], object]) -> None:
    before = read(root)
    assert before
    rewrite(root, add=True)
    assert read(root) == before


@pytest.mark.parametrize("run_id", ["r1", "r2"])
def test_other_readers_see_an_added_column_as_documented(root: Root, run_id: str) -> None:
    import duckdb  # slow to import

    rewrite(root, add=True, run_id=run_id)
    glob = f"{root}/results/*/*/*.parquet"
    first = run_id == "r1"  # whether the first file has it
    with pytest.raises(pl.exceptions.PolarsError):
        pl.scan_parquet(glob, hive_partitioning=True).collect()
    frame = pl.scan_parquet(glob, hive_partitioning=True, missing_columns="insert", extra_columns="ignore").collect()
    assert (frame.height, "added" in frame.columns) == (2, first)
    table = pq.read_table(root.path / "results")
    assert (table.num_rows, "added" in table.column_names) == (2, first)
    united = duckdb.execute(f"SELECT added FROM read_parquet('{glob}', hive_partitioning=true, union_by_name=true)")
    assert sorted(united.fetchall(), key=str) == [("x",), (None,)]
    plain = f"SELECT * FROM read_parquet('{glob}', hive_partitioning=true)"
    if first:
        with pytest.raises(duckdb.Error):
            duckdb.execute(plain).fetchall()
    else:
        assert "added" not in [name for name, *_ in duckdb.execute(plain).description]
