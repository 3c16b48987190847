"""What does one image cost in batchcl's own machinery, and where? CPU time on one core, without a call.

    python benchmarks/image_cost.py [--images 40000] [--rounds 3] [--json]

Each part is measured in this process with what it stands on: the engine with a detector that answers in memory after
one turn of the event loop, a sink that forgets, and no pace; the same with the pacer, at a rate that never makes it
wait; the whole of a run with work list, journal and tables on local disk; and the engine once more with a pace, which
makes each image wait for its turn. What a part adds is the difference. The call is `client_cost.py`'s figure, the
listing `listing.py`'s, and all of it together `end_to_end.py`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import anyio
from common import conditions, cores
from memory import StubDetector, StubSource, score

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the fakes of the tests

from batchcl.errors import ModelNotReadyError
from batchcl.events import Progress
from batchcl.images import ImageRef
from batchcl.outcomes import Outcome
from batchcl.pacing.controller import RateController
from batchcl.pacing.pacer import AdaptivePacer, Pacer
from batchcl.runs.worklist import Batch
from batchcl.scoring.engine import Engine
from sim.service import UnpacedPacer

PLENTY_TPS = 1e6
WAITING_TPS = 500
FEWER = 20
START_TPS = "batchcl.scoring.pace.START_TPS"


class Forgetful:
    """A sink that keeps nothing."""

    def record(self, shard: int, position: int, outcome: Outcome) -> None:
        """Forget it."""

    async def wait_for_capacity(self) -> None:
        """There is always."""

    async def keep(self) -> None:
        """Nothing to keep."""
        await anyio.sleep_forever()

    async def close(self) -> None:
        """Nothing to close."""

    async def save(self) -> None:
        """Nothing to save."""


class Absent:
    """No model stops here."""

    async def recover(self, error: ModelNotReadyError, *, pauses: int) -> None:
        """Nothing to recover from."""


async def batches(images: list[ImageRef]) -> AsyncIterator[Batch]:
    """Shards of 10,000."""
    for shard, first in enumerate(range(0, len(images), 10_000)):
        part = images[first : first + 10_000]
        yield Batch(shard, part, range(len(part)))


async def engine(count: int, pacer: Callable[[], Pacer]) -> float:
    """CPU seconds of the engine over so many images."""
    images = [image async for page in StubSource(count).pages() for image in page]
    progress = Progress()
    whole = Engine(StubDetector(), pacer(), Forgetful(), Absent(), progress=progress)
    begun_at = time.process_time()
    await whole.run(batches(images))
    assert progress.scored == count
    return time.process_time() - begun_at


async def run(count: int) -> float:
    """CPU seconds of a whole run."""
    begun_at = time.process_time()
    with tempfile.TemporaryDirectory() as out, patch(START_TPS, PLENTY_TPS):
        assert (await score(out, count))["scored"] == count
    return time.process_time() - begun_at


async def waiting(count: int) -> float:
    """CPU seconds of the engine over fewer images, each of which waits for its turn, as if they were all of them."""
    paced = AdaptivePacer(RateController(start_tps=WAITING_TPS, learned=True, ceiling_tps=WAITING_TPS))
    return FEWER * await engine(count // FEWER, lambda: paced)


PARTS: dict[str, Callable[[int], Awaitable[float]]] = {
    "engine": lambda count: engine(count, UnpacedPacer),
    "pacer": lambda count: engine(count, lambda: AdaptivePacer(RateController(start_tps=PLENTY_TPS))),
    "work list, journal and tables": run,
}
WAITS = f"a turn that is waited for, at {WAITING_TPS} a second"


def measured(images: int) -> dict[str, float]:
    """µs an image that each part adds to those before it."""
    found, before_us = {}, 0.0
    for name, part in PARTS.items():
        few, many = (anyio.run(partial(part, count)) for count in (images // 10, images))
        us = (many - few) / (images - images // 10) * 1e6
        found[name], before_us = us - before_us, us
    found[WAITS] = anyio.run(waiting, images) / images * 1e6 - found["engine"] - found["pacer"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about = conditions("anyio", "obstore", "pyarrow") | {"images": arguments.images, "rounds": arguments.rounds}
    os.sched_setaffinity(0, {cores()[0]})
    rounds = [measured(arguments.images) for _ in range(arguments.rounds)]
    us = {name: round(statistics.median(each[name] for each in rounds), 1) for name in (*PARTS, WAITS)}
    if arguments.json:
        print(json.dumps(about | {"cpu_us_per_image": us}))
        return
    for name, value in about.items():
        print(f"{name:10} {value}")
    for name, value in us.items():
        spread = f"{min(each[name] for each in rounds):.1f} to {max(each[name] for each in rounds):.1f}"
        print(f"{name:45} {value:5.1f} µs CPU an image ({spread})")
    print("not claimed: the call and the listing")


if __name__ == "__main__":
    main()
