"""What does an image cost from its listing to its row? Images per CPU-second of `batchcl run` and of users' scripts.

    python benchmarks/end_to_end.py [--images 30000] [--rounds 3] [--json]

Every contender is a process of its own, tied to one core: it lists a prefix, has each image scored and writes the same
Parquet table. S3 and the model are one stub on another core, which answers after 100 ms as a fast model does: batchcl
would take it for overload if its own work made answers come three times as late as at first. batchcl is the command
itself, with its work list, journal and markers. A round runs all of them one after the other, on all images and on a
handful: what the handful takes is start-up, and told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import MODEL, Ended, conditions, cores, environment, spend, stub

PEERS = Path(__file__).parent / "peers"
BATCHCL = "batchcl run"
CONTENDERS: dict[str, Sequence[object]] = {
    BATCHCL: ("-m", "batchcl", "run"),
    "aioboto3, gather": (PEERS / "score_aioboto3.py",),
    "boto3, threads": (PEERS / "score_boto3.py",),
    "boto3, adaptive": (PEERS / "score_adaptive.py",),
}
TARGETS = {"aioboto3, gather": 3, "boto3, threads": 5}
FEW = 100
DELAY_MS = 100
SOURCE = "s3://photos/camera-"
OF_THE_RUN = {"run_id", "latency_ms", "request_id", "scored_at"}
LIBRARIES = ("aioboto3", "aiobotocore", "boto3", "botocore", "aiohttp", "anyio", "orjson", "obstore", "pyarrow")


def scored(name: str, endpoint: str, images: int, core: int) -> tuple[Ended, pa.Table]:
    """One contender over `images`, in a fresh process; what it took, and what it wrote of each image."""
    command = [*CONTENDERS[name], SOURCE, "--model", MODEL]
    with tempfile.TemporaryDirectory() as out:
        ended = spend([*command, "--out", out], env=environment(endpoint), core=core)
        table = pa.concat_tables(
            [
                pq.ParquetFile(part).read().replace_schema_metadata(None)
                for part in Path(out, "results").rglob("*.parquet")
            ]
        ).sort_by("uri")
    assert table.num_rows == images, f"{name} wrote {table.num_rows} rows of {images}"
    return ended, table.select([column for column in table.column_names if column not in OF_THE_RUN])


def compared(images: int, rounds: int) -> tuple[list[dict[str, Any]], int]:
    """All rounds: a row a contender, and the stub's CPU time an answer in µs."""
    client, server = cores()
    counted: dict[str, float] = {}
    many: dict[str, list[Ended]] = {name: [] for name in CONTENDERS}
    few: dict[str, list[Ended]] = {name: [] for name in CONTENDERS}
    with (
        stub("--keys", images, "--delay-ms", DELAY_MS, core=server, ended=counted) as endpoint,
        stub("--keys", FEW, "--delay-ms", DELAY_MS, core=server) as small,
    ):
        for _ in range(rounds):
            tables = []
            for name in CONTENDERS:
                few[name].append(scored(name, small, FEW, client)[0])
                ended, table = scored(name, endpoint, images, client)
                many[name].append(ended)
                tables.append(table)
            for name, table in zip(CONTENDERS, tables, strict=True):
                assert table.schema.equals(tables[0].schema), f"{name} writes other columns:\n{table.schema}"
                assert table.equals(tables[0]), f"{name} writes other rows"
    rates = {name: [images / each.cpu_s for each in many[name]] for name in CONTENDERS}
    costs = {
        name: [(all_.cpu_s - start.cpu_s) / (images - FEW) for all_, start in zip(many[name], few[name], strict=True)]
        for name in CONTENDERS
    }
    rows = [
        {
            "client": name,
            "images_per_cpu_second": round(statistics.median(rates[name])),
            "lowest": round(min(rates[name])),
            "highest": round(max(rates[name])),
            "cpu_us_per_image": round(1e6 * statistics.median(costs[name])),
            "start_up_cpu_s": round(statistics.median(each.cpu_s for each in few[name]), 2),
            "wall_s": round(statistics.median(each.wall_s for each in many[name]), 1),
            "batchcl_is_times": _times(rates[BATCHCL], rates[name]),
            "batchcl_is_times_without_start_up": _times(costs[name], costs[BATCHCL]),
            "to_reach": TARGETS.get(name),
        }
        for name in CONTENDERS
    ]
    return rows, round(counted["cpu_s"] / counted["answers"] * 1e6)


def _times(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about = conditions(*LIBRARIES) | {"images": arguments.images, "rounds": arguments.rounds, "delay_ms": DELAY_MS}
    rows, stub_us = compared(arguments.images, arguments.rounds)
    if arguments.json:
        print(json.dumps(about | {"clients": rows, "stub_cpu_us": stub_us}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    print(
        "conditions client on one core, stub on another, plain HTTP on the loopback, S3 images; output on local disk;"
    )
    print("           medians of the rounds; CPU time of the whole process; peers with 64 calls at once")
    for row in rows:
        target = "" if row["to_reach"] is None else f" (to reach: {row['to_reach']})"
        print(
            f"{row['client']:17} {row['images_per_cpu_second']:>6,} images/CPU-s ({row['lowest']:,} to "
            f"{row['highest']:,}), start-up {row['start_up_cpu_s']:.2f} s CPU and {row['cpu_us_per_image']:>5,} µs an "
            f"image, {row['wall_s']:.1f} s wall; batchcl does {row['batchcl_is_times']} times as many{target}, "
            f"{row['batchcl_is_times_without_start_up']} without start-up"
        )
    print(f"the stub takes {stub_us} µs CPU an answer; all wrote equal tables, but for times and request ids")
    print("wall time is no comparison: batchcl, which knows nothing of the model, begins at 5 calls a second and feels")
    print("its way up, as on AWS; the scripts send as much as 64 calls at once give, and would be throttled there")
    print("not claimed: TLS, images sent as bytes, a table in S3, AWS's own speed")


if __name__ == "__main__":
    main()
