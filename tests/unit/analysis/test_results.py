from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from shutil import copytree
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl.analysis.query import query
from batchcl.analysis.results import DETECTIONS, open_results
from batchcl.errors import OutputError, UsageError
from batchcl.outcomes import Label
from batchcl.runs.schema import FAILURES, RESULTS
from unit.analysis.conftest import Make, Root

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
CAT = Label("cat", 90.0, (0.1, 0.2, 0.3, 0.4), ((0.0, 1.0),))
DOG = Label("dog", 55.5)


def test_a_directory_that_is_no_output_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(OutputError, match=r"none of results/, failures/ and runs/"):
        open_results(str(tmp_path))
    with pytest.raises(OutputError, match="does not exist"):
        open_results(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["results", "failures", "runs"])
def test_a_root_without_published_files_gives_typed_empty_frames(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    results = open_results(str(tmp_path))
    images, failures = results.images().collect(), results.failures().collect()
    assert (images.height, failures.height) == (0, 0)
    assert images.columns == [*RESULTS.names, "model", "date"]
    assert failures.columns == [*FAILURES.names, "model", "date"]
    assert results.detections().collect().columns == list(DETECTIONS)


def test_an_empty_and_a_full_root_have_the_same_schema(root: Root, tmp_path: Path, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", CAT))
    root.failures([make.failed("s3://b/2")])
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    full, empty = open_results(str(root)), open_results(str(tmp_path / "empty"))
    for name in ("images", "failures", "detections"):
        schemas = [getattr(results, name)().collect().schema for results in (full, empty)]
        assert schemas[0] == schemas[1]
    assert full.images().collect_schema()["date"] == pl.Date


def test_partitions_become_columns(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1"), model="123", date="2026-11-20", run_id="a")
    root.results(make.scored("s3://b/2"), model="cats@v1", date="2026-11-21", run_id="b")
    found = open_results(str(root)).images().sort("uri").select("uri", "model", "date").collect().rows()
    assert found == [("s3://b/1", "123", dt.date(2026, 11, 20)), ("s3://b/2", "cats@v1", dt.date(2026, 11, 21))]


def test_detections_have_a_row_a_label_and_none_for_images_without(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/łódź ☃.jpg", CAT, DOG), make.scored("s3://b/none"))
    rows = open_results(str(root)).detections().collect().to_dicts()
    assert [(row["uri"], row["label"], row["confidence"], row["left"]) for row in rows] == [
        ("s3://b/łódź ☃.jpg", "cat", 90.0, pytest.approx(0.1)),
        ("s3://b/łódź ☃.jpg", "dog", 55.5, None),
    ]
    assert rows[0]["height"] == pytest.approx(0.4)


def test_only_images_without_labels_give_no_detections(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1"), make.scored("s3://b/2"))
    assert open_results(str(root)).detections().collect().height == 0
    assert open_results(str(root)).images().collect().height == 2


def test_failures_alone_are_a_root(root: Root, make: type[Make]) -> None:
    root.failures([make.failed("s3://b/1"), make.failed("s3://b/2.gif", "UnsupportedExtension", skipped=True)])
    results = open_results(str(root))
    assert sorted(results.failures().collect()["status"]) == ["failed", "skipped"]
    assert results.images().collect().height == 0
    assert results.models == ["cats@v1"]


HOUR = dt.timedelta(hours=1)


def test_an_image_that_failed_in_several_runs_counts_once(root: Root, make: type[Make]) -> None:
    for hours, run_id in enumerate(("b", "a")):
        rows = [make.failed("s3://b/1", at=NOON - hours * HOUR), make.failed("s3://b/1", version_id="v1")]
        root.failures(rows, run_id=run_id)
    root.failures([make.failed("s3://b/1")], run_id="c", model="dogs@v1")
    found = open_results(str(root)).failures().sort("model", "version_id").collect()
    assert found["run_id"].to_list()[::2] == ["b", "c"], "the newest row of each image"
    assert found["version_id"].to_list() == [None, "v1", None]


@pytest.mark.parametrize(
    ("scored", "unresolved"),
    [
        ({"run_id": "a", "hours": -1}, False),
        ({"run_id": "b", "hours": 1}, False),
        ({"run_id": "b", "hours": -1}, True),
        ({"run_id": "b", "hours": 1, "version_id": "v1"}, True),
        ({"run_id": "b", "hours": 1, "model": "dogs@v1"}, True),
    ],
    ids=["same-run", "since", "before", "other-version", "other-model"],
)
def test_a_failure_is_resolved_by_its_own_run_or_one_since(
    root: Root, make: type[Make], scored: dict[str, Any], unresolved: bool
) -> None:
    root.failures([make.failed("s3://b/1")], run_id="a")
    row = make.scored("s3://b/1", at=NOON + scored["hours"] * HOUR, version_id=scored.get("version_id"))
    root.results(row, first=9, run_id=scored["run_id"], model=scored.get("model"))
    results = open_results(str(root))
    assert results.failures().collect().height == unresolved
    of_run = results.failures(run_id="a").collect().height
    assert of_run == (scored["run_id"] != "a"), "of a run its own rows decide"


def test_of_several_rounds_the_last_failure_counts(root: Root, make: type[Make]) -> None:
    for round_, code in enumerate(("Timeout", "InternalServerError")):
        root.failures([make.failed("s3://b/1", code)], first=round_, round_=round_)
    assert open_results(str(root)).failures().collect()["error_code"].to_list() == ["InternalServerError"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Each image is named for its model, day and run; the run id `a` is the beginning of another."""
    root = Root(tmp_path_factory.mktemp("runs"))
    for model, date, run in (("m@1", "01", "a"), ("m@1", "02", "a-b"), ("m@2", "01", "c"), ("m@2", "02", "d")):
        full = f"2026-11-{date}"
        root.results(Make.scored(f"{model}/{date}/{run}", DOG), model=model, date=full, run_id=run)
        root.failures([Make.failed(f"{model}/{date}/{run}.bad")], model=model, date=full, run_id=run)
    return root


@pytest.fixture
def four_runs(written: Root, root: Root) -> Root:
    """A root with these runs."""
    copytree(written.path, root.path, dirs_exist_ok=True)
    return root


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["m@1/01/a", "m@1/02/a-b", "m@2/01/c", "m@2/02/d"]),
        ({"model": "m@1"}, ["m@1/01/a", "m@1/02/a-b"]),
        ({"model": "m"}, ["m@1/01/a", "m@1/02/a-b", "m@2/01/c", "m@2/02/d"]),
        ({"run_id": "a"}, ["m@1/01/a"]),
        ({"run_id": "a-b"}, ["m@1/02/a-b"]),
        ({"date": "2026-11-01"}, ["m@1/01/a", "m@2/01/c"]),
        ({"date": dt.date(2026, 11, 2), "model": "m@2"}, ["m@2/02/d"]),
    ],
)
def test_filters_narrow_every_table_wherever_they_are_given(
    four_runs: Root, filters: dict[str, Any], expected: list[str]
) -> None:
    at_once = open_results(str(four_runs), **filters)
    later = open_results(str(four_runs))
    for name in ("images", "detections", "failures"):
        for frame in (getattr(at_once, name)(), getattr(later, name)(**filters)):
            assert sorted(uri.removesuffix(".bad") for uri in frame.collect()["uri"]) == expected


def test_models_of_one_name_are_told_apart_by_their_arn(root: Root, make: type[Make]) -> None:
    old, new = (f"arn:aws:rekognition:eu-west-1:123456789012:project/cats/version/v1/{stamp}" for stamp in (1, 2))
    for run_id, arn in (("a", old), ("b", new)):
        root.results(make.scored(f"s3://b/{run_id}"), run_id=run_id, model_arn=arn)
    results = open_results(str(root))
    assert results.images(model="cats@v1").collect().height == 2
    assert results.images(model=new).collect()["uri"].to_list() == ["s3://b/b"]
    assert open_results(str(root), model=old).images().collect()["uri"].to_list() == ["s3://b/a"]


def test_filters_that_exclude_each_other_leave_nothing(four_runs: Root) -> None:
    results = open_results(str(four_runs), model="m@1", date="2026-11-01")
    assert results.images(model="m@2").collect().height == 0
    assert results.images(model="m@1", run_id="a").collect().height == 1


def test_an_unknown_model_or_run_is_a_slip_and_named(four_runs: Root) -> None:
    with pytest.raises(UsageError, match=r"'m@3'.*m@1, m@2"):
        open_results(str(four_runs), model="m@3")
    with pytest.raises(UsageError, match="has no rows of the run 'x': its models are"):
        open_results(str(four_runs), run_id="x")
    (four_runs.path / "runs" / "x").mkdir(parents=True)
    (four_runs.path / "runs" / "x" / "run.json").write_text("{}")
    assert open_results(str(four_runs), run_id="x").images().collect().height == 0
    with pytest.raises(UsageError, match="not a day"):
        open_results(str(four_runs), date="21.11.2026")


def test_files_that_no_run_published_are_passed_over(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1"))
    (root.path / "results" / "_SUCCESS").write_text("")
    (root.path / "results" / "notes.parquet").write_text("no parquet")
    assert open_results(str(root)).images().collect().height == 1


def test_parts_of_an_older_or_newer_v1_are_read_together(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1"))
    part = next(root.path.rglob("*.parquet"))
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.append_column("later", pa.array([1])), part.with_name("r2-00000.parquet"))
    pq.write_table(table.drop_columns(["extra"]), part.with_name("r0-00000.parquet"))
    images = open_results(str(root), all_runs=True).images().collect()
    assert images.height == 3
    assert "later" not in images.columns
    assert images["extra"].null_count() == 1


@pytest.mark.parametrize(
    "condition",
    ["model = 'm@1'", "date = '2026-11-01' AND key <> 'x'", "run_id > '' AND (model IN ('m@1') AND key > '')"],
)
def test_only_the_partitions_that_a_query_may_need_are_read(four_runs: Root, condition: str) -> None:
    results = open_results(str(four_runs), all_runs=True)
    excluded = "date=2026-11-02" if "date" in condition else "model=m@2"
    for part in four_runs.path.rglob("*.parquet"):
        if excluded in str(part.relative_to(four_runs.path)):
            part.unlink()
    assert query(results, f"SELECT uri FROM results WHERE {condition}").height == 2
    with pytest.raises(OutputError, match=excluded):
        query(results, f"SELECT uri FROM results WHERE {condition} OR key = 'x'")


def test_only_the_columns_that_a_query_needs_are_read(root: Root, make: type[Make]) -> None:
    root.results(make.scored("s3://b/1", CAT))
    (part,) = root.path.rglob("*.parquet")
    group = pq.read_metadata(part).row_group(0)
    chunk = next(group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == "etag")
    data = bytearray(part.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    part.write_bytes(data)
    results = open_results(str(root))
    assert results.detections().select("uri", "label").collect().rows() == [("s3://b/1", "cat")]
    assert results.images().filter(pl.col("key") == "1").select(pl.len()).collect().item() == 1
    with pytest.raises(OutputError, match=r"/results/.*\.parquet is corrupt: .*; restore it$"):
        results.images().select("etag").collect()


def test_a_file_that_has_vanished_or_is_no_parquet_is_named(four_runs: Root) -> None:
    gone, bad, *_ = sorted(four_runs.path.glob("results/*/*/*"))
    bad.write_bytes(b"no parquet")
    results = open_results(str(four_runs))
    with pytest.raises(OutputError, match=rf"^{re.escape(str(bad))} is corrupt: .*; restore it$"):
        results.images().collect()
    gone.unlink()
    with pytest.raises(OutputError, match=rf"^reading {re.escape(str(gone))} failed: [^\n]*$"):
        results.images().collect()


def test_conditions_that_a_null_fits_or_not_are_those_of_polars(root: Root, make: type[Make]) -> None:
    root.results(
        make.scored("s3://b/1", version_id="v1"), make.scored("s3://b/2", version_id="v2"), make.scored("s3://b/3")
    )
    results = open_results(str(root))
    sql = "SELECT version_id FROM results WHERE version_id NOT IN ('v1')"
    assert query(results, sql).rows() == [("v2",)]
    assert results.images().filter(pl.col("version_id").ne_missing("v1")).collect().height == 2


@pytest.mark.parametrize("columns", [["model"], ["date", "uri"], ["version_id"]])
def test_a_part_of_the_rows_can_be_taken(four_runs: Root, columns: list[str]) -> None:
    images = open_results(str(four_runs)).images()
    first = images.select(columns).head(3).collect()
    assert (first.columns, first.height) == (columns, 3)
    assert first.equals(images.collect().select(columns).head(3))


def test_sql_answers_over_the_three_tables(four_runs: Root) -> None:
    results = open_results(str(four_runs))
    sql = """-- by model
        SELECT d.model, COUNT(*) AS n FROM detections d JOIN results r ON d.uri = r.uri
        WHERE d.date = '2026-11-01' GROUP BY d.model ORDER BY d.model"""
    assert query(results, sql).rows() == [("m@1", 1), ("m@2", 1)]
    assert query(results, "with f as (select * from failures) select count(*) from f").item() == 4


@pytest.mark.parametrize("condition", [">= 70.1", "= 70.1", "= 70.0999984741211"])
def test_a_query_compares_numbers_with_the_32_bits_that_are_stored(
    root: Root, make: type[Make], condition: str
) -> None:
    root.results(make.scored("s3://b/1", Label("cat", 70.1), Label("dog", 70.09)))
    sql = f"SELECT label FROM detections WHERE confidence {condition}"
    assert query(open_results(str(root)), sql).rows() == [("cat",)]


@pytest.mark.parametrize("root", ["out"], indirect=True)
@pytest.mark.parametrize("sql", ["DROP TABLE results", "DELETE FROM results", "", "  /* SELECT */ TRUNCATE results"])
def test_sql_that_is_no_query_is_refused(four_runs: Root, sql: str) -> None:
    with pytest.raises(UsageError, match="not a query"):
        query(open_results(str(four_runs)), sql)


READS = (
    "SELECT * FROM {call}",
    "select * from results, {call}",
    "SELECT uri FROM results WHERE uri IN (SELECT a FROM {call})",
    "SELECT (SELECT a FROM {call}) FROM results",
    "SELECT * FROM results JOIN {call} AS r ON 1 = 1",
    "WITH results AS (SELECT * FROM {call}) SELECT * FROM results",
    "SELECT 1 UNION ALL SELECT * FROM {call}",
    "EXPLAIN SELECT * FROM {call}",
    "FROM {call}",
    "(SELECT * FROM {call})",
    "SELECT 'it''s', $$ it's $$ FROM {call}",
)
CALLS = (
    "read_csv('{file}')",
    "READ_CSV ('{file}')",
    """"read_csv"('{file}')""",
    "`Read_Csv`\n('{file}')",
    "read_csv/* /* */ */('{file}')",
    "read_csv -- x\n('{file}')",
    "read_json('{file}')",
    "read_ipc('{file}')",
    "read_parquet('{file}')",
    "read_csv('http://127.0.0.1:9/x.csv')",
    "main.read_csv('{file}')",
)


@pytest.mark.parametrize("root", ["out"], indirect=True)
@pytest.mark.parametrize("call", CALLS)
def test_sql_reads_no_file(four_runs: Root, tmp_path: Path, call: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    results = open_results(str(four_runs))
    for sql in READS:
        with pytest.raises(UsageError, match=r"is not allowed, because queries read only the output root"):
            query(results, sql.format(call=call.format(file=file)))


@pytest.mark.parametrize("root", ["out"], indirect=True)
@pytest.mark.parametrize("kind", ["read", "scan", "sink", "write"])
def test_no_function_of_polars_for_files_has_another_name(four_runs: Root, kind: str) -> None:
    names = [name for name in (*dir(pl), *dir(pl.LazyFrame), *dir(pl.DataFrame)) if name.startswith(f"{kind}_")]
    assert names
    for name in names:
        with pytest.raises(UsageError, match=name):
            query(open_results(str(four_runs)), f"SELECT * FROM {name}('x')")


@pytest.mark.parametrize("root", ["out"], indirect=True)
@pytest.mark.parametrize("form", ["'{file}'", '"{file}"', "`{file}`", "main.'{file}'", "TABLE '{file}'"])
def test_sql_takes_no_file_for_a_table(four_runs: Root, tmp_path: Path, form: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    with pytest.raises(UsageError, match="query failed"):
        query(open_results(str(four_runs)), "SELECT * FROM " + form.format(file=file))


def test_names_like_those_of_readers_may_be_columns(four_runs: Root) -> None:
    sql = "SELECT COUNT(*) AS read_count, 'read_me' AS scan_text FROM results"
    assert query(open_results(str(four_runs)), sql).columns == ["read_count", "scan_text"]


@pytest.mark.parametrize("root", ["out"], indirect=True)
@pytest.mark.parametrize("sql", ["SELECT nope FROM results", "SELECT * FROM labels", "SELECT FROM WHERE", "SELECT 'a"])
def test_sql_errors_name_the_tables_and_columns(four_runs: Root, sql: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)query failed: .*detections \(uri, version_id, label.*failures \(run_id"):
        query(open_results(str(four_runs)), sql)
