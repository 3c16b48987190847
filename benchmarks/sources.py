"""How fast, and in how much memory, does an S3 Inventory become a work list?

    python benchmarks/sources.py [--rows 5000000] [--rounds 3] [--json]

The inventory lies on local disk: ten data files, every tenth key with a space (URL-encoded in CSV). batchcl verifies
its checksums, reads it once to check it, and once more to freeze the work list on local disk. Its peers read the needed
columns of the same files and count rows: polars (lazily, streaming) and pyarrow (a batch at a time). Each has a process
of its own.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from common import conditions, cost_of, said_by

from batchcl.aws.session import Aws
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.work_list_writer import write_work_list
from batchcl.sources.filters import Filters
from batchcl.sources.open import open_sources
from batchcl.sources.select import Selection
from batchcl.summary import SourceCounts

FIELDS = (
    "Bucket",
    "Key",
    "VersionId",
    "IsLatest",
    "IsDeleteMarker",
    "Size",
    "LastModifiedDate",
    "ETag",
    "StorageClass",
)
SNAKE = (
    "bucket",
    "key",
    "version_id",
    "is_latest",
    "is_delete_marker",
    "size",
    "last_modified_date",
    "e_tag",
    "storage_class",
)
NEEDED = SNAKE[:8]
FILES = 10


def make(folder: Path, rows: int, kind: str) -> None:
    """Write an inventory of so many objects."""
    (folder / "data").mkdir(parents=True)
    delivery = folder / "2026-11-20T01-00Z"
    delivery.mkdir()
    listed = []
    for number in range(FILES):
        path = folder / "data" / f"{number}.{'csv.gz' if kind == 'CSV' else 'parquet'}"
        _write(path, number * (rows // FILES), rows // FILES, kind)
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        listed.append({"key": f"inv/photos/daily/data/{path.name}", "size": path.stat().st_size, "MD5checksum": md5})
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "creationTimestamp": "1763600400000",
        "fileFormat": kind,
        "fileSchema": ", ".join(FIELDS) if kind == "CSV" else "message s3.inventory { }",
        "files": listed,
    }
    data = json.dumps(manifest).encode()
    (delivery / "manifest.json").write_bytes(data)
    (delivery / "manifest.checksum").write_text(hashlib.md5(data).hexdigest())


def _write(path: Path, first: int, count: int, kind: str) -> None:
    number = pl.int_range(first, first + count, eager=True).alias("n")
    gap = pl.when(pl.col("n") % 10 == 0).then(pl.lit("+" if kind == "CSV" else " ")).otherwise(pl.lit("-"))
    frame = pl.DataFrame(number).select(
        bucket=pl.lit("photos"),
        key=pl.format("camera-{}/2026-11-01/frame{}{}.jpg", pl.col("n") // 10_000, gap, pl.col("n")),
        version_id=pl.format("v{}", pl.col("n").hash(1)),
        is_latest=pl.lit(value=True),
        is_delete_marker=pl.lit(value=False),
        size=200_000 + pl.col("n") % 1000,
        last_modified_date=pl.lit(dt.datetime(2026, 11, 1, tzinfo=dt.UTC)).dt.cast_time_unit("ms"),
        e_tag=pl.format("e{}{}", pl.col("n").hash(2), pl.col("n").hash(3)),
        storage_class=pl.lit("STANDARD"),
    )
    if kind == "CSV":
        text = frame.with_columns(pl.col("last_modified_date").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
        with gzip.open(path, "wb", compresslevel=6) as file:
            text.write_csv(file, include_header=False, quote_style="always")  # type: ignore[call-overload]
    else:
        pq.write_table(frame.to_arrow(), path, compression="snappy", row_group_size=100_000)


async def _to_work_list(folder: Path, out: Path) -> int:
    with ExitStack() as stack:
        sources = await open_sources([str(folder)], stack, aws=cast("Aws", None), region="us-east-1")
        for source in sources:
            await source.check()
        worklist = WorkList(Store.open(str(out), create=True), RunPaths("r"))
        await write_work_list(
            worklist,
            Selection(sources, Filters()).pages(),
            shard_size=10_000,
            incremental=None,
            count_sources=partial(SourceCounts, lines=None),
            on_frozen=lambda: None,
        )
        return worklist.images


async def _to_check(folder: Path) -> int:
    with ExitStack() as stack:
        (source,) = await open_sources([str(folder)], stack, aws=cast("Aws", None), region="us-east-1")
        return (await source.check()).lines or 0


def _by_polars(folder: Path) -> int:
    paths = sorted((folder / "data").iterdir())
    if paths[0].suffix == ".gz":
        frame = pl.scan_csv(paths, has_header=False, infer_schema=False, new_columns=list(SNAKE))
    else:
        frame = pl.scan_parquet(paths)
    wanted = frame.select(pl.len(), pl.col(NEEDED[1], NEEDED[2], NEEDED[7]).str.len_bytes().sum().name.suffix("_bytes"))
    return int(wanted.collect(engine="streaming")["len"][0])


def _by_pyarrow(folder: Path) -> int:
    count = 0
    for path in sorted((folder / "data").iterdir()):
        if path.suffix == ".gz":
            with pa.CompressedInputStream(pa.OSFile(str(path)), "gzip") as stream:
                options = pacsv.ReadOptions(column_names=list(SNAKE), block_size=4 << 20)
                convert = pacsv.ConvertOptions(include_columns=list(NEEDED))
                count += sum(
                    batch.num_rows for batch in pacsv.open_csv(stream, read_options=options, convert_options=convert)
                )
        else:
            with pq.ParquetFile(path) as file:
                count += sum(batch.num_rows for batch in file.iter_batches(65_536, columns=list(NEEDED)))
    return count


def _one(way: str, folder: Path, out: Path) -> dict[str, Any]:
    ways: dict[str, Callable[[], int]] = {
        "batchcl": partial(anyio.run, _to_work_list, folder, out),
        "batchcl check": partial(anyio.run, _to_check, folder),
        "polars": partial(_by_polars, folder),
        "pyarrow": partial(_by_pyarrow, folder),
    }
    rows, cost = cost_of(ways[way])
    return {"rows": rows, **cost}


def _measured(way: str, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        return said_by([__file__, "--one", way, "--folder", folder, "--out", out])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--one", "--folder", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_one(arguments.one, Path(arguments.folder), Path(arguments.out))))
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("Parquet", "CSV"):
            make(Path(folder, kind), arguments.rows, kind)
        for kind in ("Parquet", "CSV"):
            for way in ("batchcl", "batchcl check", "polars", "pyarrow"):
                rounds = [_measured(way, Path(folder, kind)) for _ in range(arguments.rounds)]
                seconds = [each["seconds"] for each in rounds]
                found.append(
                    {
                        "kind": kind,
                        "way": way,
                        "rows": rounds[0]["rows"],
                        "rows_per_second": round(rounds[0]["rows"] / statistics.median(seconds)),
                        "cpu_us_per_row": round(
                            statistics.median(each["cpu_seconds"] for each in rounds) * 1e6 / rounds[0]["rows"], 2
                        ),
                        "seconds": [round(each, 2) for each in sorted(seconds)],
                        "peak_rss_mb": round(max(each["peak_rss_mb"] for each in rounds), 1),
                    }
                )
    where = conditions("polars", "pyarrow")
    if arguments.json:
        print(json.dumps(where | {"runs": found}))
        return
    for name, value in where.items():
        print(f"{name:10} {value}")
    print(
        f"conditions {arguments.rows:,} rows in {FILES} files on local disk, every tenth key with a space; Linux VmHWM"
    )
    for each in found:
        print(
            f"{each['kind']:8} {each['way']:14} {each['rows_per_second']:>10,} rows/s   "
            f"{each['cpu_us_per_row']:6.2f} µs CPU a row   peak RSS {each['peak_rss_mb']:6.1f} MB   "
            f"{min(each['seconds']):.2f} to {max(each['seconds']):.2f} s"
        )
    print("batchcl: checksums, check, work list; batchcl check: the first two alone; polars, pyarrow: read and count")
    print("not claimed: reading from S3, which copies the data files first, or any disk but this one")


if __name__ == "__main__":
    main()
