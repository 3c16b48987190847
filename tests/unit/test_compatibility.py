"""Tables that a later version has written: more columns are ignored, another schema is refused by every reader."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl import export_parquet, open_results
from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import OutputError
from batchcl.images import ImageRef
from batchcl.outcomes import Label
from batchcl.runs import incremental
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.store import Store
from batchcl.sources.from_results import open_published_images
from unit.analysis.conftest import Root, arn_of, failed, scored
from unit.sources.lists import selected

CAT = Label("cat", 95)
IMAGE = ImageRef(uri="s3://b/a", bucket="b", key="a", etag="e1")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A file in each table of two runs."""
    root = Root(tmp_path / "out")
    for run_id in ("r1", "r2"):
        root.results(dataclasses.replace(scored("s3://b/a", CAT), image=IMAGE), run_id=run_id)
        root.failures([failed("s3://b/c")], run_id=run_id)
    return root


def rewrite(root: Root, *, schema: str = "1", add: bool = False) -> None:
    """Rewrite all files of the newer run as another version writes them."""
    for path in root.path.rglob("r2-*.parquet"):
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
    with pytest.raises(OutputError, match=sentence):
        read(root)


@pytest.mark.parametrize("read", READERS)
def test_more_columns_of_the_same_schema_are_ignored(root: Root, read: Callable[[Root], object]) -> None:
    before = read(root)
    assert before
    rewrite(root, add=True)
    assert read(root) == before
