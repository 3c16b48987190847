"""A data set, a model and a truth that need no network: real handwritten digits, and the emulator's own training.

The emulator learns from one part of the pictures and never sees the other, which is what the demo scores.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread
import orjson

from batchcl.emulator.bootstrap import ensure_model
from batchcl.emulator.digits import write_digits
from batchcl.emulator.process import running_emulator
from batchcl.emulator.settings import EmulatorSettings

__all__ = ["DemoData", "demo_data", "demo_model"]

_BUCKET: Final = "digits"
_TRAIN: Final = 1000
_TEST: Final = 300
_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class DemoData:
    """Pictures to score and what is on them.

    Attributes:
        images: a directory of pictures that no training has seen.
        truth: a Ground Truth manifest with paths relative to itself.
    """

    images: Path
    truth: Path


async def demo_model(state: Path) -> str:
    """The ARN of the demo's model in the emulator's `state`; it is trained there if it isn't yet."""
    buckets = await anyio.to_thread.run_sync(_pictures, state)
    settings = EmulatorSettings(state=state, buckets=buckets, exit_with_parent=True)
    async with running_emulator(settings) as emulator:
        return await ensure_model(emulator.endpoint, bucket=_BUCKET, test_manifest=None)


def demo_data(directory: Path, state: Path) -> DemoData:
    """Lay the unseen pictures and their truth into `directory`, the same ones each time. Blocks."""
    bucket = _pictures(state) / _BUCKET
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for line in (bucket / "test.manifest").read_bytes().splitlines():
        entry = orjson.loads(line)
        name = entry["source-ref"].rpartition("/")[2]
        shutil.copyfile(bucket / "test" / name, images / name)
        lines.append(orjson.dumps(entry | {"source-ref": f"{images.name}/{name}"}))
    truth = directory / "truth.manifest"
    truth.write_bytes(b"\n".join(lines) + b"\n")
    return DemoData(images, truth)


def _pictures(state: Path) -> Path:
    """The emulator's buckets below `state`, with the digits in them."""
    buckets = state / "buckets"
    if not (buckets / _BUCKET / "test.manifest").exists():
        being_made = state / f"buckets-{os.getpid()}"
        write_digits(being_made, bucket=_BUCKET, train=_TRAIN, test=_TEST, seed=_SEED)
        shutil.rmtree(buckets, ignore_errors=True)
        being_made.rename(buckets)
    return buckets
