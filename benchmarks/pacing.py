"""How much of a capacity that nobody tells is used, and which share of the calls is throttled?

    python benchmarks/pacing.py [--trace NAME]… [--peer NAME]… [--seconds 3600] [--seeds 1 2]
                                [--held-out 101 102] [--jobs N] [--json]

Each trace is an hour of service in virtual time; a seed varies its rates, times, bursts and latencies by 20 %. The
controller's constants were chosen while looking at the first seeds; the held-out ones only report. Every client runs
on the same traces and seeds: batchcl's `RateController`, botocore's retry modes (its own classes on our clock), a
fixed number of workers with full-jitter backoff, AIMD on the calls in flight and on the rate, and an oracle that
knows the capacity. What a paced client refuses to lose is sent again; what botocore gives up is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from common import conditions
from pacing_peers.run import (
    BATCHCL,
    CLIENTS,
    DOLLARS_PER_UNIT_HOUR,
    ORACLE,
    TPS_PER_UNIT,
    WORKERS,
    Result,
    Shares,
    Start,
    start,
)
from pacing_peers.run import measure as measure_one
from pacing_peers.run import share as share_one
from pacing_peers.traces import TRACES

SHARED = ("constant 3", "constant 14", "constant 50")
LATER_S = 300.0
STARTS = ((3.0, None), (14.0, None), (50.0, None), (50.0, 50.0), (50.0, 25.0), (50.0, 100.0), (14.0, 28.0))
NAMES = {trace.name: trace for trace in TRACES}


def measure(task: tuple[str, str, int, int]) -> Result:
    trace, client, seed, seconds = task
    return measure_one(NAMES[trace], client, seed, seconds)


def share(task: tuple[str, int, int, float]) -> tuple[str, float, Shares]:
    trace, seed, seconds, later_s = task
    return trace, later_s, share_one(NAMES[trace], seed, seconds, later_s=later_s)


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def shown(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def line(name: str, results: Sequence[Result]) -> str:
    return (
        f"{name:20} {100 * statistics.mean(r.utilisation for r in results):7.2f} "
        f"{100 * min(r.utilisation for r in results):7.2f} "
        f"{100 * statistics.mean(r.throttled_share for r in results):8.2f} "
        f"{shown(mean(r.find_s for r in results), 7, 1)} {sum(r.lost for r in results):>9} "
        f"{statistics.mean(r.dollars for r in results):8.1f} {statistics.mean(r.score for r in results):8.1f} "
        f"{statistics.mean(r.latency_s for r in results):8.2f} {shown(mean(r.rival_share for r in results), 6, 2)}"
    )


HEAD = (
    f"{'':20} {'used %':>7} {'worst %':>7} {'throttl%':>8} {'find s':>7} {'lost':>9} "
    f"{'$/M':>8} {'score':>8} {'latency':>8} {'rival':>6}"
)


def table(title: str, results: Sequence[Result], clients: Sequence[str], traces: Sequence[str]) -> None:
    counted = [trace for trace in traces if NAMES[trace].counted]
    if counted:
        print(f"\n{title}: mean over {len({r.seed for r in results})} seeds and {len(counted)} traces")
        print(HEAD)
        for client in clients:
            print(line(client, [r for r in results if r.client == client and r.trace in counted]))
    if BATCHCL not in clients:
        return
    print(f"\n{title}: batchcl by trace")
    print(HEAD)
    for trace in traces:
        name = trace if trace in counted else f"({trace})"
        print(line(name, [r for r in results if r.client == BATCHCL and r.trace == trace]))


def print_shares(shares: Sequence[tuple[str, float, Shares]]) -> None:
    print("\ntwo batchcl runs on one model: the larger share over the last third, both together, and throttled")
    for trace in dict.fromkeys(one for one, _, _ in shares):
        for later_s in (0.0, LATER_S):
            found = [found for one, later, found in shares if (one, later) == (trace, later_s)]
            larger = sorted(100 * each.larger for each in found)
            used = statistics.mean(each.utilisation for each in found)
            throttled = statistics.mean(each.throttled_share for each in found)
            print(
                f"{trace:12} second run {later_s:3.0f} s later: {statistics.median(larger):5.1f} % "
                f"({larger[0]:.1f} to {larger[-1]:.1f}), used {100 * used:.1f} %, throttled {100 * throttled:.2f} %"
            )


def print_starts(starts: Sequence[Start]) -> None:
    print("\nhow a run starts: seconds until it takes 95 % of the capacity, and throttled calls of its first minute")
    for tps, learned_tps in STARTS:
        found = [one for one in starts if (one.tps, one.learned_tps) == (tps, learned_tps)]
        knows = "nothing" if learned_tps is None else f"{learned_tps:.0f} TPS"
        print(
            f"{tps:3.0f} TPS, the run knows {knows:8}: {statistics.median(one.found_s for one in found):4.1f} s "
            f"(at most {max(one.found_s for one in found):.0f}), "
            f"{statistics.median(one.throttled for one in found):3.0f} of about {60 * tps:.0f}"
        )


def main() -> None:
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", action="append", choices=sorted(NAMES), help="only this one; may be repeated")
    parser.add_argument("--peer", action="append", choices=list(CLIENTS), help="only this one; may be repeated")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--held-out", type=int, nargs="*", default=[101, 102])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    traces = arguments.trace or list(NAMES)
    clients = arguments.peer or list(CLIENTS)
    seeds = [*arguments.seeds, *arguments.held_out]
    tasks = [(trace, client, seed, arguments.seconds) for trace in traces for client in clients for seed in seeds]
    pairs = [
        (trace, seed, max(1800, arguments.seconds), later_s)
        for trace in SHARED
        if trace in traces and BATCHCL in clients
        for later_s in (0.0, LATER_S)
        for seed in seeds
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(measure, tasks))
        shares = list(pool.map(share, pairs))
    starts = [start(tps, seed, learned_tps=learned_tps) for tps, learned_tps in STARTS for seed in seeds]
    if arguments.json:
        found = [asdict(result) | {"score": result.score, "counted": NAMES[result.trace].counted} for result in results]
        fair = [asdict(each) | {"trace": trace, "later_s": later_s} for trace, later_s, each in shares]
        ramps = [asdict(each) for each in starts]
        said = {"conditions": conditions("botocore"), "seconds": arguments.seconds}
        print(json.dumps(said | {"results": found, "shares": fair, "starts": ramps}))
        return
    for name, value in conditions("botocore").items():
        print(f"{name:10} {value}")
    print(
        f"conditions {arguments.seconds} virtual seconds a trace; peers that have workers have {WORKERS}; "
        f"${DOLLARS_PER_UNIT_HOUR:.0f} a unit-hour, {TPS_PER_UNIT} images/s a unit, units follow the capacity"
    )
    print("list       as many images as fit into the trace: who gives images up is through it early")
    print("score      dollars a million scored images x (1 + throttled share)")
    print("(one token) is not in the means: network jitter alone keeps even the oracle from using that bucket")
    print(
        "rival      what the competing client of the trace `rival` got of half the capacity; used % counts its images"
    )
    for title, chosen in (("seeds that were looked at", arguments.seeds), ("held-out seeds", arguments.held_out)):
        if chosen:
            table(title, [result for result in results if result.seed in chosen], clients, traces)
    if shares:
        print_shares(shares)
    if starts and BATCHCL in clients and arguments.trace is None:
        print_starts(starts)
    oracle = f"; the {ORACLE} is no peer" if ORACLE in clients else ""
    print(f"\nnot claimed: that AWS limits by a token bucket or a queue like these{oracle}")
    print(f"took       {time.perf_counter() - begin:.0f} s with {arguments.jobs} processes")


if __name__ == "__main__":
    main()
