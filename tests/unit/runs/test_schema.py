from __future__ import annotations

import datetime as dt
import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tables
from batchcl import __version__
from batchcl.images import ImageRef
from batchcl.outcomes import Failed, Label, Scored
from batchcl.runs.schema import FAILURES, RESULTS, failures_table, parquet_bytes, results_table, utf8

AT = dt.datetime(2026, 11, 21, 12, 30, 0, 123456, tzinfo=dt.UTC)
FULL = ImageRef(
    uri="s3://b/a b+c%2F é.jpg",
    bucket="b",
    key="a b+c%2F é.jpg",
    version_id="v1",
    etag="e1",
    size_bytes=2**40,
    last_modified=AT,
    extra='{"patient":"Ł"}',
)
IDENTITY = [
    ("run_id", "string", False),
    ("model_arn", "string", False),
    ("uri", "string", False),
    ("bucket", "string", False),
    ("key", "string", False),
    ("version_id", "string", True),
    ("etag", "string", True),
    ("size_bytes", "int64", True),
    ("last_modified", "timestamp[us, tz=UTC]", True),
]


def image(key: str, **more: Any) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, **more)


def scored(ref: ImageRef, *labels: Label) -> Scored:
    return Scored(image=ref, labels=labels, attempts=2, latency_ms=12.5, request_id="r-1", scored_at=AT)


def failed(ref: ImageRef, **more: Any) -> Failed:
    values: dict[str, Any] = {"status": "failed", "code": "C", "message": "why", "attempts": 8, "failed_at": AT, **more}
    return Failed(image=ref, **values)


ARN = "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000"


def rows(table: pa.Table, run_id: str = "run-1") -> list[dict[str, Any]]:
    """Rows of `table` after writing and reading a file."""
    found: list[dict[str, Any]] = pq.read_table(
        io.BytesIO(parquet_bytes(table, run_id=run_id, model_arn=ARN))
    ).to_pylist()
    return found


def results(*outcomes: Scored, min_confidence: float | None = None, max_results: int | None = None) -> pa.Table:
    return results_table(
        *tables.columns(outcomes), run_id="run-1", model_arn=ARN, min_confidence=min_confidence, max_results=max_results
    )


def failures(*outcomes: Failed, round_: int = 0, fit: bool = False) -> pa.Table:
    return failures_table(*tables.columns(outcomes, round_=round_, fit=fit), run_id="run-1", model_arn=ARN)


def columns(schema: pa.Schema) -> list[tuple[str, str, bool]]:
    return [(field.name, str(field.type), field.nullable) for field in schema]


def test_results_have_exactly_the_columns_of_schema_v1() -> None:
    polygon = "list<item: struct<x: float, y: float>>"
    box = "left: float, top: float, width: float, height: float"
    assert columns(RESULTS) == [
        *IDENTITY,
        ("labels", f"list<item: struct<name: string, confidence: float, {box}, polygon: {polygon}>>", False),
        ("min_confidence", "float", True),
        ("max_results", "int32", True),
        ("attempts", "int16", False),
        ("latency_ms", "float", False),
        ("request_id", "string", False),
        ("scored_at", "timestamp[us, tz=UTC]", False),
        ("extra", "string", True),
        ("fitted", "string", True),
    ]
    assert results().schema == RESULTS


def test_failures_have_exactly_the_columns_of_schema_v1() -> None:
    assert columns(FAILURES) == [
        *IDENTITY,
        ("status", "string", False),
        ("error_code", "string", False),
        ("error_message", "string", False),
        ("attempts", "int16", False),
        ("round", "int16", False),
        ("failed_at", "timestamp[us, tz=UTC]", False),
        ("extra", "string", True),
        ("fit", "bool", False),
    ]
    assert failures().schema == FAILURES


def test_a_result_survives_a_round_trip() -> None:
    box = Label("cat", 99.5, (0.0, 0.25, 0.5, 0.75), ((0.0, 0.25), (0.5, 1.0)))
    table = results(scored(FULL, box, Label("dog", 12.25)), min_confidence=0.0, max_results=3)
    none = dict.fromkeys(("left", "top", "width", "height", "polygon"))
    polygon = [{"x": 0.0, "y": 0.25}, {"x": 0.5, "y": 1.0}]
    assert rows(table) == [
        {
            "run_id": "run-1",
            "model_arn": ARN,
            "uri": "s3://b/a b+c%2F é.jpg",
            "bucket": "b",
            "key": "a b+c%2F é.jpg",
            "version_id": "v1",
            "etag": "e1",
            "size_bytes": 2**40,
            "last_modified": AT,
            "labels": [
                {
                    "name": "cat",
                    "confidence": 99.5,
                    "left": 0.0,
                    "top": 0.25,
                    "width": 0.5,
                    "height": 0.75,
                    "polygon": polygon,
                },
                {"name": "dog", "confidence": 12.25, **none},
            ],
            "min_confidence": 0.0,
            "max_results": 3,
            "attempts": 2,
            "latency_ms": 12.5,
            "request_id": "r-1",
            "scored_at": AT,
            "extra": '{"patient":"Ł"}',
            "fitted": None,
        }
    ]


def test_an_image_without_labels_is_a_row() -> None:
    (row,) = rows(results(scored(image("a.png"))))
    assert row["labels"] == []
    unknown = ("version_id", "etag", "size_bytes", "last_modified", "extra", "min_confidence", "max_results")
    assert [row[name] for name in unknown] == [None] * len(unknown)


def test_a_failure_survives_a_round_trip() -> None:
    (row,) = rows(failures(failed(FULL, status="skipped", attempts=0), round_=3, fit=True))
    assert row == {
        "run_id": "run-1",
        "model_arn": ARN,
        "uri": FULL.uri,
        "bucket": "b",
        "key": FULL.key,
        "version_id": "v1",
        "etag": "e1",
        "size_bytes": 2**40,
        "last_modified": AT,
        "status": "skipped",
        "error_code": "C",
        "error_message": "why",
        "attempts": 0,
        "round": 3,
        "failed_at": AT,
        "extra": '{"patient":"Ł"}',
        "fit": True,
    }


def test_times_are_converted_to_utc() -> None:
    there = AT.astimezone(dt.timezone(dt.timedelta(hours=9)))
    (row,) = rows(results(scored(image("a.png", last_modified=there))))
    assert row["last_modified"] == AT


def test_rows_are_sorted_by_uri() -> None:
    keys = [f"{number:03d}.png" for number in range(50)]
    shuffled = random.Random(1).sample(keys, len(keys))
    found = rows(results(*(scored(image(key, etag=f"e-{key}"), Label(key, 1.0)) for key in shuffled)))
    assert [row["key"] for row in found] == keys
    assert all(row["etag"] == f"e-{row['key']}" and row["labels"][0]["name"] == row["key"] for row in found)
    found = rows(failures(*(failed(image(key), message=key) for key in shuffled)))
    assert [row["error_message"] for row in found] == keys


def test_file_metadata_has_schema_version_and_run() -> None:
    for table in (results(), failures()):
        file = pq.ParquetFile(io.BytesIO(parquet_bytes(table, run_id="run-1", model_arn=ARN)))
        metadata = file.schema_arrow.metadata
        assert metadata[b"batchcl.schema"] == b"1"
        assert metadata[b"batchcl.version"] == __version__.encode()
        assert metadata[b"batchcl.run_id"] == b"run-1"
        assert metadata[b"batchcl.model_arn"] == ARN.encode()


def test_files_are_zstd_in_row_groups_of_128k_rows() -> None:
    table = results(scored(image("a.png"), Label("cat", 1.0)))
    big = pa.concat_tables([table] * 2).take(pa.array([0, 1] * 70_000))
    file = pq.ParquetFile(io.BytesIO(parquet_bytes(big, run_id="run-1")))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [131_072, 8_928]
    assert {file.metadata.row_group(0).column(n).compression for n in range(file.metadata.num_columns)} == {"ZSTD"}


def test_equal_rows_give_equal_bytes() -> None:
    outcomes = [scored(image(f"{number}.png"), Label("cat", 1.0)) for number in range(20)]
    outcomes += [scored(image("v.png", version_id=version)) for version in ("b", None, "a")]
    backwards = list(reversed(outcomes))
    assert parquet_bytes(results(*outcomes), run_id="r") == parquet_bytes(results(*backwards), run_id="r")


def test_keys_that_are_not_utf8_are_escaped() -> None:
    name = b"/d/a\xff.png".decode("utf-8", "surrogateescape")
    ref = ImageRef(uri="/d/a\\udcff.png", bucket="", key=name)
    (row,) = rows(failures(failed(ref)))
    assert row["key"] == "/d/a\\udcff.png"
    assert utf8(name) == b"/d/a\xff.png"


@pytest.mark.parametrize("key", ["", "ü.png", "\U0001f600.png", "a\nb\t\0c", "..//../x"])
def test_valid_keys_are_written_unchanged(key: str) -> None:
    (row,) = rows(results(scored(image(key))))
    assert row["key"] == key


@given(
    st.lists(
        st.tuples(
            st.text(max_size=20),
            st.floats(min_value=0, max_value=100, width=32),
            st.none() | st.tuples(*[st.floats(min_value=0, max_value=1, width=32)] * 4),
        ),
        max_size=5,
    )
)
def test_any_labels_survive_a_round_trip(
    labels: list[tuple[str, float, tuple[float, float, float, float] | None]],
) -> None:
    (row,) = rows(results(scored(image("a.png"), *(Label(*label) for label in labels))))
    back = [
        (
            one["name"],
            one["confidence"],
            None if one["left"] is None else (one["left"], one["top"], one["width"], one["height"]),
        )
        for one in row["labels"]
    ]
    assert back == labels
