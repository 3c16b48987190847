"""What do filters cost an image, and in how much memory are images selected from a table or from earlier results?

    python benchmarks/filters.py [--rows 1000000] [--rounds 3] [--json]

The table is a Parquet file on local disk with a column of its own beside key, size and time; the results are an output
root of ten parts whose images have two labels each. Each filter has a process of its own, which reads the list once to
check it and once more to select from it, as `plan` does. The peer is polars, which asks the same of the same files.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from common import conditions, cost_of, said_by

from batchcl.aws.session import Aws
from batchcl.runs.schema import RESULTS
from batchcl.sources.filters import Filters, Sample
from batchcl.sources.from_results import open_published_images
from batchcl.sources.open import open_sources
from batchcl.sources.select import Selection
from batchcl.sources.where import Condition, condition_on

PARTS = 10
NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
FILTERS: dict[str, tuple[Filters, str | None]] = {
    "none": (Filters(), None),
    "--include '*7.jpg'": (Filters(include=("*7.jpg",)), None),
    "--min-size --newer-than": (Filters(min_size_bytes=200_500, newer_than=NOON), None),
    "--where size": (Filters(), "size >= 200500 AND key LIKE '%7.jpg'"),
    "--where camera": (Filters(), "camera = 'c7' AND size >= 200500"),
    "--sample 2%": (Filters(sample=Sample(share=0.02)), None),
    "--sample 100000": (Filters(sample=Sample(count=100_000)), None),
}
RESULTS_WHERE = "label = 'cat' AND confidence < 40"


def make(folder: Path, rows: int) -> None:
    """Write the table and the output root."""
    number = pl.int_range(0, rows, eager=True).alias("n")
    frame = pl.DataFrame(number).select(
        bucket=pl.lit("photos"),
        key=pl.format("camera-{}/2026-11-01/frame-{}.jpg", pl.col("n") // 10_000, pl.col("n")),
        size_bytes=200_000 + pl.col("n") % 1000,
        last_modified=pl.lit(NOON) + pl.duration(seconds=pl.col("n") % 7 - 3),
        camera=pl.format("c{}", pl.col("n") % 10),
    )
    pq.write_table(frame.to_arrow(), folder / "table.parquet", row_group_size=100_000)
    partition = folder / "out" / "results" / "model=cats@v1" / "date=2026-11-20"
    partition.mkdir(parents=True)
    for part in range(PARTS):
        some = frame.slice(part * (rows // PARTS), rows // PARTS).drop("camera").with_row_index("n")
        rest = {
            "run_id": pa.repeat(pa.scalar("r"), some.height),
            "uri": some.select(pl.format("s3://photos/{}", "key")).to_series().to_arrow(),
            "labels": pa.array(
                [
                    [{"name": "cat", "confidence": float(n % 100)}, {"name": "dog", "confidence": 99.0}]
                    for n in some["n"]
                ],
                RESULTS.field("labels").type,
            ),
            "scored_at": pa.repeat(pa.scalar(NOON, pa.timestamp("us", "UTC")), some.height),
        }
        table = some.drop("n").to_arrow()
        columns = {name: table[name] for name in table.column_names} | rest
        whole = [
            columns[field.name].cast(field.type)
            if field.name in columns
            else pa.repeat(pa.scalar(None if field.nullable else 1, pa.int64()), some.height).cast(field.type)
            for field in RESULTS
        ]
        pq.write_table(pa.table(whole, schema=RESULTS), partition / f"r-{part:05}.parquet", compression="zstd")


async def _selected(folder: Path, name: str) -> int:
    with ExitStack() as stack:
        if name == "--from-results":
            where = Condition(RESULTS_WHERE)
            source = await open_published_images(
                str(folder / "out"), aws=cast("Aws", None), where=where, exclude_run=None
            )
            filters = Filters()
        else:
            (source,) = await open_sources(  # type: ignore[assignment]
                [str(folder / "table.parquet")], stack, aws=cast("Aws", None), region="us-east-1"
            )
            filters, condition = FILTERS[name]
            if condition is not None:
                filters = replace(filters, where=await condition_on(Condition(condition), [source]))
        await source.check()
        return sum([len(page.images) async for page in Selection([source], filters).pages()])


def _by_polars(folder: Path, name: str) -> int:
    if name == "--from-results":
        frame = pl.scan_parquet(folder / "out" / "results" / "**" / "*.parquet").explode("labels")
        label = pl.col("labels").struct
        fits = (label.field("name") == "cat") & (label.field("confidence") < 40)
        return frame.filter(fits).select(pl.col("uri").unique()).collect(engine="streaming").height
    images = pl.scan_parquet(folder / "table.parquet").rename({"size_bytes": "size"})
    context = pl.SQLContext({"images": images})
    sql = "SELECT bucket, key, size, last_modified FROM images WHERE camera = 'c7' AND size >= 200500"
    return context.execute(sql).collect(engine="streaming").height


def _one(way: str, name: str, folder: Path) -> dict[str, Any]:
    by_batchcl = partial(anyio.run, _selected, folder, name)
    taken, cost = cost_of(by_batchcl if way == "batchcl" else partial(_by_polars, folder, name))
    return {"taken": taken, **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--one", "--filter", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_one(arguments.one, arguments.filter, Path(arguments.folder))))
        return
    ways = [("batchcl", name) for name in (*FILTERS, "--from-results")]
    ways += [("polars", "--where camera"), ("polars", "--from-results")]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.rows)
        for way, name in ways:
            one = (__file__, "--one", way, f"--filter={name}", "--folder", folder)
            rounds = [said_by(one) for _ in range(arguments.rounds)]
            seconds = sorted(each["seconds"] for each in rounds)
            found.append(
                {
                    "way": way,
                    "filter": name,
                    "taken": rounds[0]["taken"],
                    "rows_per_second": round(arguments.rows / statistics.median(seconds)),
                    "cpu_us_per_row": round(
                        statistics.median(each["cpu_seconds"] for each in rounds) * 1e6 / arguments.rows, 2
                    ),
                    "seconds": [round(each, 2) for each in seconds],
                    "peak_rss_mb": round(max(each["peak_rss_mb"] for each in rounds), 1),
                }
            )
    where = conditions("polars", "pyarrow")
    if arguments.json:
        print(json.dumps(where | {"rows": arguments.rows, "runs": found}))
        return
    for key, value in where.items():
        print(f"{key:10} {value}")
    print(
        f"conditions {arguments.rows:,} images in a table, and in {PARTS} parts of results, on local disk; Linux VmHWM"
    )
    for each in found:
        print(
            f"{each['way']:8} {each['filter']:24} takes {each['taken']:>9,}   {each['rows_per_second']:>10,} rows/s   "
            f"{each['cpu_us_per_row']:6.2f} µs CPU a row   peak RSS {each['peak_rss_mb']:6.1f} MB   "
            f"{min(each['seconds']):.2f} to {max(each['seconds']):.2f} s"
        )
    print(
        "batchcl reads the list twice (a counted sample: three times) and makes an object of each image; polars counts"
    )
    print("not claimed: lists in S3, which are copied first, or any disk but this one")


if __name__ == "__main__":
    main()
