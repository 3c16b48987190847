"""How soon does a run that is almost done go on? From the start of the process to its first call.

    python benchmarks/resume.py [--images 1000000] [--repeat 5] [--json]

The root lies on local disk and holds a run of which all shards but the last are published; the last one has 4,000 of
its 10,000 outcomes in its journal. Its first shard was really scored, and the files of the other published ones are
copies of that one's: a resume reads no more than their names and counts. The process imports what the command line
imports.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import anyio

SHARD = 10_000
KEPT = 2  # segments of 2,000 outcomes


def _prepare(out: str, images: int) -> None:
    """Score the first shard, and make the run look as if it had been killed in the middle of its last one."""
    from memory import StubSource, score

    from batchcl.runs.layout import PartName, RunPaths
    from batchcl.runs.store import Store
    from batchcl.runs.worklist import WorkList
    from batchcl.scoring.work_list_writer import write_work_list
    from batchcl.sources.filters import Filters
    from batchcl.sources.select import Selection
    from batchcl.summary import SourceCounts

    anyio.run(partial(score, out, SHARD))
    paths = RunPaths("r")
    root = Path(out)
    for name in (paths.summary, paths.totals, paths.frozen(0)):
        (root / name).unlink()

    async def freeze() -> None:
        await write_work_list(
            WorkList(Store.open(out), paths),
            Selection([StubSource(images)], Filters()).pages(),
            shard_size=SHARD,
            incremental=None,
            count_sources=partial(SourceCounts, lines=None),
            on_frozen=lambda: None,
        )

    anyio.run(freeze)
    segments = sorted((root / paths.journal(0)).iterdir())
    part = next((root / "results").rglob("*.parquet"))
    last = images // SHARD - 1
    for shard in range(1, last + 1):
        folder = root / paths.journal(shard)
        folder.mkdir(parents=True)
        for segment in segments if shard < last else segments[:KEPT]:
            shutil.copyfile(segment, folder / segment.name)
        if shard < last:
            shutil.copyfile(part, part.with_name(str(PartName("r", shard, 0))))
            shutil.copyfile(root / paths.marker(0, 0), root / paths.marker(shard, 0))


def _resume(out: str, images: int, started_at: float) -> None:
    """Go on with the run up to its first call, and print how long that took."""
    import os

    from memory import StubDetector, score

    from batchcl.images import ImageRef

    def tell(image: ImageRef) -> None:
        assert int(image.key[-13:-4]) >= images - SHARD, f"{image.key} is already done"
        print(time.monotonic() - started_at, flush=True)
        os._exit(0)

    anyio.run(partial(score, out, images, detector=StubDetector(tell)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--resume", nargs=2, metavar=("OUT", "STARTED_AT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume is not None:
        _resume(arguments.resume[0], arguments.images, float(arguments.resume[1]))
        return
    from common import conditions
    from memory import LIBRARIES

    command = [sys.executable, __file__, "--images", str(arguments.images), "--resume"]
    with tempfile.TemporaryDirectory() as out:
        _prepare(out, arguments.images)
        files = sum(1 for path in Path(out).rglob("*") if path.is_file())
        seconds = [
            float(subprocess.run([*command, out, repr(time.monotonic())], check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(arguments.repeat)
        ]
    median = statistics.median(seconds)
    if arguments.json:
        figures = {"images": arguments.images, "files": files, "seconds": seconds, "median_s": median}
        print(json.dumps(conditions(*LIBRARIES) | figures))
        return
    for name, value in conditions(*LIBRARIES).items():
        print(f"{name:10} {value}")
    print(f"conditions local disk, warm cache; {files:,} files below the root; stub detector, no model to look at")
    print(
        f"{arguments.images:>9,} images, all but 6,000 done: first call {median:.2f} s after the process began "
        f"(median of {len(seconds)}; {min(seconds):.2f} to {max(seconds):.2f} s)"
    )
    print("not claimed: AWS's answers to the checks before a run, a root on S3, a cold disk")


if __name__ == "__main__":
    main()
