"""What the peers that write a table share: the columns that batchcl's results have, and their command line."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

RUN_ID = "nightly"
ROWS = 10_000
UTC = pa.timestamp("us", tz="UTC")
POINT = pa.struct([("x", pa.float32()), ("y", pa.float32())])
SIDES = ("left", "top", "width", "height")
LABEL = pa.struct(
    [
        ("name", pa.string()),
        ("confidence", pa.float32()),
        *((side, pa.float32()) for side in SIDES),
        ("polygon", pa.list_(POINT)),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("model_arn", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("version_id", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("last_modified", UTC),
        pa.field("labels", pa.list_(LABEL), nullable=False),
        pa.field("min_confidence", pa.float32()),
        pa.field("max_results", pa.int32()),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("latency_ms", pa.float32(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("scored_at", UTC, nullable=False),
        pa.field("extra", pa.string()),
        pa.field("fitted", pa.string()),
    ]
)


def asked() -> argparse.Namespace:
    """Where the images are and where the table goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", help="s3://bucket/prefix")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=64)
    arguments = parser.parse_args()
    place = urlsplit(arguments.source)
    arguments.bucket, arguments.prefix = place.netloc, place.path.lstrip("/")
    return arguments


def row(model: str, bucket: str, entry: dict[str, Any], answer: dict[str, Any], latency_s: float) -> dict[str, Any]:
    """What is kept of one image, from its entry in the listing and the service's answer."""
    return {
        "run_id": RUN_ID,
        "model_arn": model,
        "uri": f"s3://{bucket}/{entry['Key']}",
        "bucket": bucket,
        "key": entry["Key"],
        "etag": entry["ETag"].strip('"'),
        "size_bytes": entry["Size"],
        "last_modified": entry["LastModified"],
        "labels": [_label(label) for label in answer["CustomLabels"]],
        "attempts": answer["ResponseMetadata"]["RetryAttempts"] + 1,
        "latency_ms": latency_s * 1000,
        "request_id": answer["ResponseMetadata"]["RequestId"],
        "scored_at": dt.datetime.now(dt.UTC),
    }


def _label(label: dict[str, Any]) -> dict[str, Any]:
    geometry = label.get("Geometry", {})
    box = geometry.get("BoundingBox", {})
    polygon = [{"x": point["X"], "y": point["Y"]} for point in geometry.get("Polygon", ())]
    return {
        "name": label["Name"],
        "confidence": label["Confidence"],
        **{side: box.get(side.title()) for side in SIDES},
        "polygon": polygon or None,
    }


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """`rows` as Parquet files of 10,000 each, sorted by uri."""
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(rows), ROWS)):
        table = pa.Table.from_pylist(sorted(rows[first : first + ROWS], key=lambda one: one["uri"]), schema=SCHEMA)
        pq.write_table(table, folder / f"{RUN_ID}-{number:05}.parquet", compression="zstd")
