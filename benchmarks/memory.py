"""Does memory grow with the number of images? Peak RSS of runs over 10,000 to 1,000,000 stub images.

    python benchmarks/memory.py [--images 10000 100000 1000000] [--json]

Each run has a process of its own and goes the way of `batchcl run` (lister, work list, engine, ledger, output root on
local disk), except that the images are names without files, the detector answers in memory, and no model is started.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import anyio
from common import conditions, cost_of, said_by

from batchcl.arns import ModelArn
from batchcl.events import SilentObserver
from batchcl.images import ImageRef, Position
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.outcomes import Detection, Label
from batchcl.runs.store import Store
from batchcl.scoring.run import execute, find_resume_state
from batchcl.scoring.session import RunContext
from batchcl.scoring.source_checks import CheckedSources
from batchcl.sources.base import PAGE, SourceCheck
from batchcl.sources.deduplication import NO_NAMES
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from batchcl.stop_signal import StopSignal

MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/stub/version/v1/1700000000000"
LISTED_AT = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
LIBRARIES = ("anyio", "obstore", "polars", "pyarrow")
LABELS = (Label("crack", 97.5), Label("dent", 61.25))


class StubSource:
    """So many local images that have a name, a size and a time, but no file."""

    description = "stub"
    repeats = NO_NAMES
    exhaustive = False
    is_explicit = False

    def __init__(self, images: int) -> None:
        self._images = images

    async def check(self) -> SourceCheck:
        """Nothing to look at."""
        return SourceCheck()

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """There is no other source."""
        return [False] * len(images)

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """Names, a page at a time."""
        for first in range(0 if after is None else after.count, self._images, PAGE):
            await anyio.lowlevel.checkpoint()
            yield [_image(number) for number in range(first, min(first + PAGE, self._images))]


def _image(number: int) -> ImageRef:
    path = f"/data/camera-{number // 10_000:05}/2026-11-01/frame-{number:09}.jpg"
    return ImageRef(uri=path, bucket="", key=path, size_bytes=200_000 + number % 1000, last_modified=LISTED_AT)


class StubDetector:
    """Answers each call after one turn of the event loop; `on_call` hears of it."""

    def __init__(self, on_call: Callable[[ImageRef], None] = lambda _: None) -> None:
        self._on_call = on_call
        self._calls = 0

    async def detect(self, image: ImageRef) -> Detection:
        """The same labels for every image."""
        self._on_call(image)
        self._calls += 1
        await anyio.lowlevel.checkpoint()
        return Detection(LABELS, f"00000000-0000-4000-8000-{self._calls:012x}")


class StubControl:
    """The control plane of a model that runs; nobody here starts or stops it."""

    async def describe_projects(self, **_: object) -> dict[str, object]:
        """One project."""
        return {"ProjectDescriptions": [{"ProjectArn": "stub"}]}

    def get_paginator(self, _: str) -> StubControl:
        """Of its versions."""
        return self

    async def paginate(self, **_: object) -> AsyncIterator[dict[str, object]]:
        """One version."""
        yield {"ProjectVersionDescriptions": [{"ProjectVersionArn": MODEL, "Status": "RUNNING"}]}


async def score(out: str, images: int, *, detector: StubDetector | None = None, run_id: str = "r") -> dict[str, object]:
    """Do the run, or go on with it; its summary."""
    job = Job(sources=("stub",), model=MODEL, out=out, run_id=run_id)
    observer, stop_signal, model = SilentObserver(), StopSignal(), ModelArn.parse(MODEL)
    model_manager = ModelManager(
        StubControl(), model, units=None, keep=False, observer=observer, stop_signal=stop_signal
    )

    async def check(_: dt.datetime) -> CheckedSources:
        return CheckedSources(Selection([StubSource(images)], Filters()), 0, {})

    store = Store.open(out, create=True)
    await store.check_writable()
    state = await find_resume_state(job, model, store, check=check, observer=observer)
    context = RunContext(
        model_manager=model_manager,
        detector=detector or StubDetector(),
        observer=observer,
        stop_signal=stop_signal,
        ends_at=math.inf,
    )
    summary = await execute(job, state, context)
    return summary.as_dict()


def _measured(images: int) -> dict[str, Any]:
    """A run in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        return said_by([__file__, "--one", images, "--out", out])


def _one(images: int, out: str) -> None:
    summary, cost = cost_of(partial(anyio.run, partial(score, out, images)))
    figures = {
        "images": images,
        "scored": summary["scored"],
        "peak_rss_mb": round(cost["peak_rss_mb"], 1),
        "seconds": round(cost["seconds"], 1),
        "images_per_second": summary["images_per_second"],
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=(10_000, 100_000, 1_000_000))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        _one(arguments.one, arguments.out)
        return
    runs = [_measured(images) for images in arguments.images]
    if arguments.json:
        print(json.dumps(conditions(*LIBRARIES) | {"runs": runs}))
        return
    for name, value in conditions(*LIBRARIES).items():
        print(f"{name:10} {value}")
    print("conditions stub images and detector, no model; shards of 10,000, output root on local disk; Linux VmHWM")
    for each in runs:
        print(
            f"{each['images']:>9,} images: peak RSS {each['peak_rss_mb']:.1f} MB, {each['scored']:,} scored in "
            f"{each['seconds']:.1f} s; the last run took {runs[-1]['peak_rss_mb'] / each['peak_rss_mb']:.3f} of that"
        )
    print("10,000 images are one shard, which is published when nothing else is left to do; with more images, listing,")
    print("journalling and publishing overlap, so that smaller runs say little of larger ones")
    print("not claimed: the memory of TLS, of image bytes in flight (up to 4 MB a call), or the speed against AWS")


if __name__ == "__main__":
    main()
