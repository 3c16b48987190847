"""What does `--incremental` cost, and in how much memory, beside lists in order and in no order?

    python benchmarks/incremental.py [--known 5000000] [--images 200000] [--rounds 3] [--json]

The known versions are Parquet files of 10,000 rows on local disk, as a run publishes them, with the columns that tell a
version; all are read before the first answer. A list asks a thousand images at a time: neighbours, as a prefix lists
them, or any, as an inventory does. Half of the images have changed since. Each list has a process of
its own. The peer is polars, which has the whole list in memory and joins it with the parts at once.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import polars as pl
from common import conditions, cost_of, said_by, status_mb

from batchcl.arns import ModelArn
from batchcl.images import ImageRef
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.schema import ROW_GROUP_ROWS
from batchcl.runs.store import Store

PART_ROWS = 10_000
PAGE = 1000
BATCHCL, POLARS = "batchcl", "polars"
IN_ORDER, ANY = "in order", "in no order"
WAYS = ((BATCHCL, IN_ORDER), (BATCHCL, ANY), (POLARS, ANY))
MODEL = "arn:aws:rekognition:eu-west-1:123456789012:project/cats/version/v1/1700000000000"
PARTS = "results/model=cats@v1/date=2026-11-20"


def _uri(number: int) -> str:
    return f"s3://photos/camera-{number // 10_000:05}/2026-11-01/frame-{number:09}.jpg"


def _etag(number: int) -> str:
    return f"{number:032x}"


def make(root: Path, known: int) -> None:
    """Write the parts."""
    (root / PARTS).mkdir(parents=True)
    for first in range(0, known, PART_ROWS):
        numbers = range(first, min(first + PART_ROWS, known))
        frame = pl.DataFrame(
            {
                "model_arn": MODEL,
                "uri": [_uri(number) for number in numbers],
                "version_id": None,
                "etag": [_etag(number) for number in numbers],
                "size_bytes": 200_000,
                "last_modified": None,
            },
            schema_overrides={"version_id": pl.String, "last_modified": pl.Datetime("us", "UTC")},
        )
        frame.write_parquet(root / PARTS / f"r-{first:012}.parquet", row_group_size=ROW_GROUP_ROWS)


def _asked(order: str, known: int, images: int) -> list[int]:
    return list(range(images)) if order == IN_ORDER else random.Random(7).sample(range(known), images)


def _image(number: int) -> ImageRef:
    etag = _etag(number) if number % 2 else "changed"
    return ImageRef(uri=_uri(number), bucket="photos", key=_uri(number)[12:], etag=etag)


async def _by_batchcl(root: str, numbers: list[int]) -> int:
    known = IncrementalFilter(Store.open(root), ModelArn.parse(MODEL))
    pages = [numbers[at : at + PAGE] for at in range(0, len(numbers), PAGE)]
    return sum([(await known.known([_image(number) for number in page])).count(None) for page in pages])


def _by_polars(root: str, numbers: list[int]) -> int:
    images = [_image(number) for number in numbers]
    asked = pl.LazyFrame({"uri": [image.uri for image in images], "etag": [image.etag for image in images]})
    known = pl.scan_parquet(f"{root}/{PARTS}/*.parquet").select("uri", "etag")
    return asked.join(known, on=["uri", "etag"], how="anti").collect(engine="streaming").height


def _one(way: str, order: str, root: str, known: int, images: int) -> dict[str, Any]:
    numbers = _asked(order, known, images)
    by_batchcl = partial(anyio.run, _by_batchcl, root, numbers)
    fresh, cost = cost_of(by_batchcl if way == BATCHCL else partial(_by_polars, root, numbers))
    wrong = fresh - sum(number % 2 == 0 for number in numbers)
    assert not wrong, f"{way} takes {wrong} images too many for fresh"
    return cost | {"anonymous_mb": status_mb("RssAnon")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=5_000_000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known, images = arguments.known, min(arguments.images, arguments.known)
    if arguments.one is not None:
        way, order, root = arguments.one
        print(json.dumps(_one(way, order, root, known, images)))
        return
    about = conditions("anyio", "polars", "pyarrow") | {"known": known, "images": images, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), known)
        sizes = ("--known", known, "--images", images)
        found = {
            way: [said_by([__file__, "--one", *way, root, *sizes]) for _ in range(arguments.rounds)] for way in WAYS
        }
    rows = [
        {"way": way, "order": order}
        | {name: round(statistics.median(each[name] for each in measured), 1) for name in measured[0]}
        for (way, order), measured in found.items()
    ]
    if arguments.json:
        print(json.dumps(about | {"runs": rows}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    print("conditions local disk, warm cache; medians of the rounds")
    for row in rows:
        print(
            f"{row['way']:8} {row['order']:12} {row['seconds']:6.1f} s, {row['cpu_seconds']:6.1f} s CPU, peak RSS "
            f"{row['peak_rss_mb']:.0f} MB, {row['anonymous_mb']:.0f} MB at the end without files"
        )
    print("not claimed: parts in S3; a list that is longer than what polars can hold in memory")


if __name__ == "__main__":
    main()
