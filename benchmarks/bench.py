"""One table over all benchmarks, each of which runs by its own script and tells its figures as JSON.

    python benchmarks/bench.py [--full] [--only NAME]... [--write] [--json]

Without `--full` the sizes are such that all of it ends within a quarter of an hour on two cores that do nothing else.
`--write` puts the table into `RESULTS.md`, where whatever stands below its heading "Remarks" stays as it is. A script
that fails is a line of the table, and makes this one end with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import conditions
from figures import READERS, Row

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
REMARKS = "## Remarks"
LIBRARIES = (
    *("anyio", "aioboto3", "aiobotocore", "aiohttp", "boto3", "botocore"),
    *("obstore", "orjson", "polars", "pyarrow"),
)


@dataclass(frozen=True)
class Benchmark:
    """A script, and its arguments for a short look and for a whole one."""

    name: str
    quick: Sequence[object]
    full: Sequence[object] = ()


BENCHMARKS = (
    Benchmark("startup", ("--repeat", 7)),
    Benchmark("pacing", ("--seeds", 1, "--held-out", 101)),
    Benchmark("client_cost", ("--calls", 5000, "--rounds", 3)),
    Benchmark("listing", ("--keys", 100_000, "--rounds", 2)),
    Benchmark("end_to_end", ("--images", 15_000, "--rounds", 2), ("--images", 60_000, "--rounds", 3)),
    Benchmark("image_cost", ("--rounds", 2)),
    Benchmark("tail", ("--rounds", 1)),
    Benchmark("listing_beside_scoring", ("--rounds", 1)),
    Benchmark("memory", ("--images", 10_000, 200_000)),
    Benchmark("resume", ("--images", 200_000, "--repeat", 3)),
    Benchmark("sources", ("--rows", 500_000, "--rounds", 1)),
    Benchmark("filters", ("--rows", 200_000, "--rounds", 1)),
    Benchmark("incremental", ("--known", 1_000_000, "--images", 50_000, "--rounds", 1)),
    Benchmark("nights", ("--nights", 200, "--rounds", 1), ("--nights", 1000, "--rounds", 3)),
    Benchmark("analysis", ("--files", 20, "--truth", 2000, "--repeat", 1)),
    Benchmark("emulator", ("--calls", 1000)),
)


def measured(benchmark: Benchmark, *, full: bool) -> list[Row]:
    """What the script found; one row that says why, where it failed."""
    arguments = benchmark.full if full else benchmark.quick
    print(f"{benchmark.name} {' '.join(map(str, arguments))}", file=sys.stderr, flush=True)
    begun_at = time.monotonic()
    command = [sys.executable, HERE / f"{benchmark.name}.py", *arguments, "--json"]
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    print(f"  {time.monotonic() - begun_at:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        return [Row(benchmark.name, "failed", said, is_met=False)]
    return [Row(benchmark.name, *each) for each in READERS[benchmark.name](json.loads(done.stdout))]


def table(rows: Iterable[Row]) -> str:
    """`rows` as Markdown, which is read as it is on a terminal too."""
    head = ("benchmark", "figure", "found", "to reach", "")
    cells = [head, *((row.benchmark, row.figure, row.found, row.to_reach, row.verdict) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def said_of(about: dict[str, Any]) -> list[str]:
    """The conditions, a line each."""
    return [
        f"{name}: {', '.join(f'{key} {value}' for key, value in said.items()) if isinstance(said, dict) else said}"
        for name, said in about.items()
    ]


def write(rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Put the table into `RESULTS.md` and leave the remarks there alone."""
    remarks = "\n"
    if RESULTS.exists():
        remarks = RESULTS.read_text().partition(REMARKS)[2] or remarks
    made = "\n".join(
        [
            "# Results",
            "",
            f"Written by `python benchmarks/bench.py {about['command']}`. What a figure means, and what it doesn't",
            "claim, is said by the script of its name. The remarks below the table are written by hand and stay.",
            "",
            *(f"- {line}" for line in said_of(about)),
            "",
            table(rows),
            "",
            REMARKS,
        ]
    )
    RESULTS.write_text(made + remarks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--full", action="store_true", help="the scripts' own sizes, for an hour or more")
    parser.add_argument("--only", action="append", choices=names, help="this one; may be repeated")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name}")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = [each for each in BENCHMARKS if each.name in (arguments.only or names)]
    chosen = [each for each in chosen if (HERE / f"{each.name}.py").exists()]
    begun_at = time.monotonic()
    about = conditions(*LIBRARIES) | {"command": " ".join(sys.argv[1:]) or "with its short sizes"}
    rows = [row for benchmark in chosen for row in measured(benchmark, full=arguments.full)]
    about |= {
        "minutes": round((time.monotonic() - begun_at) / 60, 1),
        "load_1m_at_the_end": round(os.getloadavg()[0], 2),
    }
    if arguments.write:
        write(rows, about)
    if arguments.json:
        print(json.dumps(about | {"rows": [asdict(row) for row in rows]}))
    else:
        print("\n".join(said_of(about)))
        print(table(rows))
    sys.exit(any(row.figure == "failed" for row in rows))


if __name__ == "__main__":
    main()
