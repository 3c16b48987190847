"""docs/reading.md: what other software reads equals what `open_results` reads, and Athena's tables have our columns.

The SQL of the page runs in DuckDB, Athena's too except for its CREATE TABLE. tests/foreign runs Spark's.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl.analysis.results import DETECTIONS, open_results
from batchcl.outcomes import Label
from batchcl.runs.schema import FAILURES, RESULTS
from unit.analysis.conftest import NOON, Root, arn_of, failed, scored

PAGE = Path(__file__).parents[3] / "docs" / "reading.md"
CAT, DOG = Label("cat", 90, (0.1, 0.2, 0.3, 0.4)), Label("dog", 70.1)
HOUR = dt.timedelta(hours=1)
HIVE = {
    pa.string(): "string",
    pa.int16(): "smallint",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.bool_(): "boolean",
    pa.timestamp("us", "UTC"): "timestamp",
}
RESERVED = {"left", "date"}
"""Names of columns that are reserved words in Athena's CREATE TABLE."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def blocks_with(kind: str, *words: str) -> list[str]:
    return [block for block in blocks(kind) if any(word in block for word in words)]


def three_nights(folder: Path) -> Root:
    """The root `out` in `folder`, with repeated images, versions, retries and a retrained model."""
    root = Root(folder / "out", model="digits@v1", date="2026-11-20", run_id="first")
    root.results(
        scored("s3://b/again.jpg", CAT),
        scored("s3://b/once.jpg", CAT, DOG),
        scored("s3://b/two.jpg", DOG, version_id="v1"),
        scored("s3://b/two.jpg", CAT, version_id="v2"),
        scored("s3://b/retried.jpg", CAT, at=NOON + HOUR),
    )
    root.failures([failed("s3://b/retried.jpg"), failed("s3://b/later.jpg"), failed("s3://b/never.jpg")])
    root.failures([failed("s3://b/never.jpg", "Timeout", at=NOON + HOUR)], first=1, round_=1)
    day = 24 * HOUR
    root.results(
        scored("s3://b/again.jpg", at=NOON + day),
        scored("s3://b/later.jpg", DOG, at=NOON + day),
        date="2026-11-21",
        run_id="second",
    )
    root.failures([failed("s3://b/once.jpg", at=NOON + day)], date="2026-11-21", run_id="second")
    retrained = arn_of("digits@v1").replace("1700000000000", "1800000000000")
    root.results(
        scored("s3://b/again.jpg", DOG, at=NOON + 2 * day), date="2026-11-22", run_id="third", model_arn=retrained
    )
    return root


@pytest.fixture
def nights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return three_nights(tmp_path)


def rows(frame: pl.DataFrame, columns: list[str]) -> list[Any]:
    return sorted(tuple(map(str, row)) for row in frame.select(columns).rows())


def test_views_in_duckdb_equal_the_methods_of_results(nights):
    import duckdb  # slow to import

    engine = duckdb.connect()
    for block in blocks("sql"):
        if "CREATE EXTERNAL TABLE" not in block and "TEMPORARY" not in block:
            engine.execute(block).fetchall()
    results = open_results(str(nights))
    assert results.images().collect().height == 7
    for view, frame in (
        ("images", results.images()),
        ("detections", results.detections()),
        ("unresolved", results.failures()),
    ):
        expected = frame.collect()
        found = engine.sql(f"SELECT * FROM {view}").pl()
        assert set(found.columns) - {"recency"} == set(expected.columns)
        columns = [name for name in expected.columns if name not in {"scored_at", "failed_at"}]
        assert rows(found, columns) == rows(expected, columns)
    assert set(results.failures().collect()["uri"]) == {"s3://b/never.jpg", "s3://b/once.jpg"}
    plan = engine.execute("EXPLAIN ANALYZE SELECT * FROM images WHERE model = 'none'").fetchall()[0][1]
    assert "Scanning Files: 0/" in plan, "a condition on the model selects folders"
    engine.execute("SELECT count(*) FROM detections WHERE confidence >= CAST(70.1 AS REAL)")
    assert engine.fetchone() == (7,)


def test_python_readers_equal_the_methods_of_results(nights):
    variables: dict[str, Any] = {}
    for block in blocks("python"):
        if "spark" not in block:
            exec(block, variables)
    results = open_results(str(nights))
    assert rows(variables["newest"].collect(), ["uri", "scored_at"]) == rows(
        results.images().collect(), ["uri", "scored_at"]
    )
    named = ["uri", "version_id", "name", "confidence", "left", "model", "date"]
    assert rows(variables["labels"].collect(), named) == rows(
        results.detections().rename({"label": "name"}).collect(), named
    )
    assert variables["table"].num_rows == 8


def test_athena_tables_have_the_columns_of_the_schema():
    tables = blocks_with("sql", "CREATE EXTERNAL TABLE")
    for text, name, schema in zip(tables, ("results", "failures"), (RESULTS, FAILURES), strict=True):
        columns = ",\n".join(f"  {quoted(field.name)} {hive(field.type)}" for field in schema)
        partitions = "\n)\nPARTITIONED BY (model string, `date` string)\nSTORED AS PARQUET\n"
        location = f"LOCATION 's3://acme-tables/labels/{name}/'\nTBLPROPERTIES ("
        assert text.startswith(f"CREATE EXTERNAL TABLE {name} (\n{columns}{partitions}{location}")


def test_athena_projects_the_folders_that_runs_write(nights):
    for text in blocks_with("sql", "CREATE EXTERNAL TABLE"):
        properties = dict(re.findall(r"'(\S+)' = '([^']*)'", text))
        name = re.findall(r"TABLE (\w+)", text)[0]
        template = properties["storage.location.template"].replace("s3://acme-tables/labels", str(nights))
        written = {f"{path.parent}/" for path in nights.path.glob(f"{name}/*/*/*.parquet")}
        projected = {
            template.replace("${model}", "digits@v1").replace("${date}", f"2026-11-{day}") for day in (20, 21, 22)
        }
        assert written
        assert written <= projected


def quoted(name: str) -> str:
    return f"`{name}`" if name in RESERVED else name


def hive(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"array<{hive(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{','.join(f'{quoted(field.name)}:{hive(field.type)}' for field in kind)}>"
    return HIVE[kind]


def test_files_with_more_columns_need_the_options_of_the_page(nights):
    import duckdb  # slow to import

    path = next(nights.path.glob("results/*/date=2026-11-22/*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).append_column("later", pa.array(["new"])), path)
    engine, files = duckdb.connect(), "'out/results/*/*/*.parquet'"
    with pytest.raises(duckdb.BinderException, match="later"):
        engine.execute(f"SELECT later FROM read_parquet({files})")
    engine.execute(f"SELECT DISTINCT later FROM read_parquet({files}, union_by_name = true)")
    assert {row[0] for row in engine.fetchall()} == {None, "new"}
    assert open_results("out").detections().collect().columns == list(DETECTIONS)
