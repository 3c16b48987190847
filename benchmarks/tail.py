"""How soon after the last answer is the last row committed, and how long does one hanging call hold a model up?

    python benchmarks/tail.py [--images 20000] [--rounds 3] [--json]

`batchcl run` over shards of 10,000 images, against a stub that answers after 100 ms. The stub notes when it gave its
last answer, and the files' times tell when the last table and the last shard's marker, which commits it, were there.
In a second run, the stub never answers the first call for one of the last images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common import MODEL, conditions, cores, environment, spend, stub

SHARD = 10_000
DELAY_MS = 100
DEADLINE_S = 60
TARGET_S = 2.0


def ended(images: int, *, hang: int | None = None) -> dict[str, float]:
    """Seconds from the last answer to what followed it, in one run."""
    client, server = cores()
    counted: dict[str, float] = {}
    flags: list[object] = ["--keys", images, "--delay-ms", DELAY_MS]
    if hang is not None:
        flags += ["--hang", hang]
    with tempfile.TemporaryDirectory() as out:
        with stub(*flags, core=server, ended=counted) as endpoint:
            command = ["-m", "batchcl", "run", "s3://photos/camera-", "--model", MODEL, "--out", out, "--json"]
            done = spend([*command, "--shard-size", SHARD], env=environment(endpoint), core=client)
        summary = json.loads(done.out)
        assert summary["scored"] == images, summary
        root = Path(out)
        last = {
            "table_s": max(part.stat().st_mtime for part in root.glob("results/**/*.parquet")),
            "committed_s": max(marker.stat().st_mtime for marker in root.glob("runs/*/shards/*.json")),
            "summary_s": max(summary.stat().st_mtime for summary in root.glob("runs/*/summary.json")),
        }
    found = {name: at - counted["answered_at"] for name, at in last.items()}
    if hang is not None:
        found |= {"hung_s": counted["answered_at"] - counted["hung_at"], "calls": summary["calls"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2 * SHARD)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about = conditions("anyio", "pyarrow", "obstore")
    about |= {"images": arguments.images, "shard_size": SHARD, "rounds": arguments.rounds, "delay_ms": DELAY_MS}
    plain = [ended(arguments.images) for _ in range(arguments.rounds)]
    hanging = [ended(arguments.images, hang=arguments.images - 5) for _ in range(arguments.rounds)]
    if arguments.json:
        print(json.dumps(about | {"to_reach_s": TARGET_S, "plain": plain, "hanging": hanging}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    print("conditions client on one core, stub on another, output on local disk")
    for name, what in (("table_s", "last table"), ("committed_s", "last row committed"), ("summary_s", "summary")):
        seconds = [each[name] for each in plain]
        target = f" (to reach: {TARGET_S:g} s)" if name == "committed_s" else ""
        print(
            f"{what:18} {statistics.median(seconds):.2f} s after the last answer "
            f"({min(seconds):.2f} to {max(seconds):.2f}){target}"
        )
    seconds = [each["hung_s"] for each in hanging]
    print(
        f"a call at the end that hangs: its image was answered {statistics.median(seconds):.2f} s after the call "
        f"({min(seconds):.2f} to {max(seconds):.2f}), by a second one beside it; the deadline alone is {DEADLINE_S} s"
    )
    print("not claimed: an output root on S3, where each write takes its time")


if __name__ == "__main__":
    main()
