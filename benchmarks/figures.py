"""The figures of each benchmark that belong into the table over all of them, taken from its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["READERS", "Row"]

Figure = tuple[str, str] | tuple[str, str, str, bool]
"""What was measured, what was found, and where there is a target: what to reach, and whether that is met."""


USED, WORST, THROTTLED, SHARED = 0.992, 0.94, 0.013, 0.58
QUOTA_TPS = 50
HELP_S, FIRST_CALL_S = 0.15, 0.8
KEYS_TIMES = 12
PLANNED, PLAN_S = 1_000_000, 10
SOURCES_MB = 500
RUN_MB, RESUME_S = 320, 3
DUCKDB_TIMES, ANALYSIS_MB = 1.5, 2000


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    benchmark: str
    figure: str
    found: str
    to_reach: str = ""
    is_met: bool | None = None

    @property
    def verdict(self) -> str:
        """In a word."""
        return "" if self.is_met is None else "met" if self.is_met else "missed"


def startup(said: dict[str, Any]) -> Iterator[Figure]:
    """Median CPU seconds of each start."""
    targets = {"batchcl --help": HELP_S, "batchcl run, to its first call": FIRST_CALL_S}
    for each in said["starts"]:
        cpu_s, target_s = statistics.median(each["cpu_s"]), targets.get(each["name"])
        figure, found = f"CPU of {each['name']}", f"{cpu_s:.3f} s"
        yield (figure, found) if target_s is None else (figure, found, f"{target_s} s", cpu_s <= target_s)


def pacing(said: dict[str, Any]) -> Iterator[Figure]:
    """By client: means over all traces and seeds, the worst trace, and dollars times throttles beside batchcl's."""
    results = [each for each in said["results"] if each["counted"]]
    ours = [each for each in results if each["client"] == "batchcl"]
    traces = {
        trace: statistics.mean(each["utilisation"] for each in ours if each["trace"] == trace)
        for trace in dict.fromkeys(each["trace"] for each in ours)
    }
    used = statistics.mean(each["utilisation"] for each in ours)
    throttled = statistics.mean(each["throttled_share"] for each in ours)
    worst = min(traces, key=lambda trace: traces[trace])
    lost = sum(each["lost"] for each in ours)
    yield "capacity used, all traces", f"{100 * used:.2f} %", f"{100 * USED:g} %", used >= USED
    yield (
        "calls throttled, all traces (less is better)",
        f"{100 * throttled:.2f} %",
        f"{100 * THROTTLED:g} %",
        throttled <= THROTTLED,
    )
    yield (
        f"capacity used, worst trace ({worst})",
        f"{100 * traces[worst]:.2f} %",
        f"{100 * WORST:g} %",
        traces[worst] >= WORST,
    )
    yield "images lost", f"{lost}", "0", lost == 0
    scores = {
        client: statistics.mean(each["score"] for each in results if each["client"] == client)
        for client in dict.fromkeys(each["client"] for each in results)
        if client != "oracle"
    }
    mine = scores.pop("batchcl")
    for client, score in scores.items():
        figure = f"dollars x (1 + throttled) a million images, batchcl and {client}"
        yield figure, f"{mine:.1f} and {score:.1f}", "less", mine < score
    shares = [each["larger"] for each in said["shares"]]
    if shares:
        larger, largest = statistics.median(shares), max(shares)
        found = f"{100 * larger:.1f} % (at most {100 * largest:.1f})"
        yield "larger share of two runs on one model", found, f"{100 * SHARED:g} %", larger <= SHARED
    firsts = [each["found_s"] for each in said["starts"] if each["tps"] == QUOTA_TPS and each["learned_tps"] is None]
    yield f"from 5 to {QUOTA_TPS} TPS in a first run", f"{statistics.median(firsts):.0f} s"


def client_cost(said: dict[str, Any]) -> Iterator[Figure]:
    """Calls a CPU-second, and how many times as many aiohttp does."""
    for row in said["clients"]:
        yield f"calls a CPU-second, {row['client']}", f"{row['calls_per_cpu_second']:,}"
    for row in said["clients"]:
        if row["to_reach"] is not None:
            times, target = row["aiohttp_is_times"], row["to_reach"]
            yield f"aiohttp beside {row['client']}", f"{times} times", f"{target} times", times >= target


def listing(said: dict[str, Any]) -> Iterator[Figure]:
    """Keys a CPU-second, what ranges gain, and how long `plan` takes."""
    for row in said["cpu"]:
        found = f"{row['keys_per_cpu_second']:,} ({row['times_boto3']} times boto3)"
        figure = f"keys a CPU-second, {row['client']}"
        if row["client"] == "batchcl":
            yield figure, found, f"{KEYS_TIMES} times", row["times_boto3"] >= KEYS_TIMES
        else:
            yield figure, found
    for row in said["wall"]:
        yield f"key ranges beside page by page, {row['shape']}", f"{row['times']} times"
    for row in said["plan"]:
        figure, found = f"plan of {row['images']:,} images at {row['latency_ms']:g} ms a page", f"{row['wall_s']} s"
        if row["latency_ms"] or row["images"] != PLANNED:
            yield figure, found
        else:
            yield figure, found, f"{PLAN_S} s", row["wall_s"] <= PLAN_S


def end_to_end(said: dict[str, Any]) -> Iterator[Figure]:
    """What an image costs from its listing to its row."""
    for row in said["clients"]:
        found = f"{row['images_per_cpu_second']:,}; {row['cpu_us_per_image']:,} µs an image"
        yield f"images a CPU-second, {row['client']}", f"{found}, start-up {row['start_up_cpu_s']} s"
    for row in said["clients"]:
        if row["to_reach"] is not None:
            times, target = row["batchcl_is_times_without_start_up"], row["to_reach"]
            figure = f"batchcl run beside {row['client']}, start-up apart"
            yield figure, f"{times} times", f"{target} times", times >= target
            yield f"batchcl run beside {row['client']}, start-up included", f"{row['batchcl_is_times']} times"


def image_cost(said: dict[str, Any]) -> Iterator[Figure]:
    """µs an image, by part."""
    for part, us in said["cpu_us_per_image"].items():
        yield f"µs CPU an image, {part} (less is better)", f"{us:g}"


def tail(said: dict[str, Any]) -> Iterator[Figure]:
    """Seconds after the last answer."""
    committed = statistics.median(each["committed_s"] for each in said["plain"])
    target = said["to_reach_s"]
    yield "last row committed after the last answer", f"{committed:.2f} s", f"{target:g} s", committed <= target
    hung = statistics.median(each["hung_s"] for each in said["hanging"])
    yield "an image whose call hangs at the end is answered after", f"{hung:.2f} s"


def listing_beside_scoring(said: dict[str, Any]) -> Iterator[Figure]:
    """Calls a second beside nothing and beside a list, and their ratio."""
    for run in said["runs"]:
        found = f"{run['calls_per_second']:.1f}, event loop late by {run['late_p99_ms']:.1f} ms (p99)"
        yield f"calls a second of {said['max_tps']:g}, beside {run['beside']}", found
    share, target = said["share"], said["to_reach"]
    figure = f"calls beside a list of {said['keys']:,} images, of those beside nothing"
    yield figure, f"{share:.3f} x", f"{target:g} x", share >= target


def memory(said: dict[str, Any]) -> Iterator[Figure]:
    """Peaks, smallest run first, and the last one beside it."""
    for run in said["runs"]:
        peak_mb = run["peak_rss_mb"]
        yield f"peak RSS of a run over {run['images']:,} images", f"{peak_mb} MB", f"{RUN_MB} MB", peak_mb < RUN_MB
    times = said["runs"][-1]["peak_rss_mb"] / said["runs"][0]["peak_rss_mb"]
    yield "the last of them beside the first (less is better)", f"{times:.3f} x"


def resume(said: dict[str, Any]) -> Iterator[Figure]:
    """Seconds to the first call."""
    median_s = said["median_s"]
    figure = f"first call of a resumed run of {said['images']:,} images"
    yield figure, f"{median_s:.2f} s", f"{RESUME_S:g} s", median_s < RESUME_S


def sources(said: dict[str, Any]) -> Iterator[Figure]:
    """Rows a second and the peak, by way."""
    for run in said["runs"]:
        found = f"{run['rows_per_second']:,}, peak RSS {run['peak_rss_mb']} MB"
        figure = f"inventory rows a second, {run['kind']}, {run['way']}"
        if run["way"].startswith("batchcl"):
            yield figure, found, f"{SOURCES_MB} MB", run["peak_rss_mb"] < SOURCES_MB
        else:
            yield figure, found


def filters(said: dict[str, Any]) -> Iterator[Figure]:
    """Rows a second and the peak, by filter."""
    for run in said["runs"]:
        found = f"{run['rows_per_second']:,}, peak RSS {run['peak_rss_mb']} MB"
        yield f"rows filtered a second, {run['filter']}, {run['way']}", found


def incremental(said: dict[str, Any]) -> Iterator[Figure]:
    """CPU seconds of a whole list and the peak, by way and order."""
    for run in said["runs"]:
        figure = f"{said['images']:,} images beside {said['known']:,} known versions, {run['order']}, {run['way']}"
        yield figure, f"{run['cpu_seconds']} s CPU, peak RSS {run['peak_rss_mb']:.0f} MB"


def nights(said: dict[str, Any]) -> Iterator[Figure]:
    """Seconds and requests of each command, against the target for a thousand nights."""
    for run in said["commands"]:
        found = f"{run['seconds']} s, {run['requests']:,} requests"
        figure = f"{run['command']} beside {said['nights']:,} nights on S3"
        if run["target_s"] is None:
            yield figure, found
        else:
            yield figure, found, f"{run['target_s']:.0f} s", run["seconds"] < run["target_s"]


def emulator(said: dict[str, Any]) -> Iterator[Figure]:
    """Answers a second."""
    for name, rate in said["images_per_second"].items():
        yield f"images a second, {name}", f"{rate:,.0f}"


def analysis(said: dict[str, Any]) -> Iterator[Figure]:
    """Seconds and the peak of each question, and DuckDB's seconds."""
    for question, each in said["questions"].items():
        ours = each["batchcl"]
        found = f"{ours['seconds']:.1f} s, peak RSS {ours['peak_rss_mb']:.0f} MB"
        figure = f"{question} of {said['detections']:,} detections"
        if "ratio" in each:
            found += f", {each['ratio']:.2f} x DuckDB"
            yield figure, found, "1.5 x, 2000 MB", each["ratio"] <= DUCKDB_TIMES and ours["peak_rss_mb"] <= ANALYSIS_MB
        else:
            yield figure, found


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Figure]]] = {
    reader.__name__: reader
    for reader in (
        startup,
        pacing,
        client_cost,
        listing,
        end_to_end,
        image_cost,
        tail,
        listing_beside_scoring,
        memory,
        resume,
        sources,
        filters,
        incremental,
        nights,
        emulator,
        analysis,
    )
}
