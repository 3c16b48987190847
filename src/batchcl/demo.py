"""A data set, a model and a truth that need no network: real handwritten digits, and the emulator's own training.

The emulator learns from one part of the pictures and never sees the other, which is what the demo scores.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread
import orjson

from batchcl.emulator.bootstrap import ensure_model
from batchcl.emulator.digits import write_digits
from batchcl.emulator.process import running_emulator
from batchcl.emulator.settings import EmulatorSettings
from batchcl.errors import RefusedError

__all__ = ["DemoData", "demo_data", "demo_folders", "demo_model"]

_BUCKET: Final = "digits"
_TRAIN: Final = 1000
_TEST: Final = 300
_SEED: Final = 7
_LABELLED: Final = 400
_UNSEEN: Final = 40


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
    """The ARN of the demo's model in the emulator's `state`; it is trained there if it isn't yet.

    Raises:
        RefusedError: `state` can't be written, or the emulator doesn't start.
    """
    buckets = await anyio.to_thread.run_sync(_pictures, state)
    settings = EmulatorSettings(state=state, buckets=buckets, exit_with_parent=True)
    async with running_emulator(settings) as emulator:
        return await ensure_model(emulator.endpoint, bucket=_BUCKET, test_manifest=None)


def demo_data(directory: Path, state: Path) -> DemoData:
    """Lay the unseen pictures and their truth into `directory`, the same ones each time. Blocks.

    Raises:
        RefusedError: `directory` or `state` can't be written.
    """
    bucket = _pictures(state) / _BUCKET
    laid = DemoData(directory / "images", directory / "truth.manifest")
    with _writing(directory):
        _lay(laid, (bucket / "test").iterdir(), bucket / "test.manifest")
    return laid


def demo_folders(directory: Path) -> DemoData:
    """Lay pictures into `directory` for a model of one's own, the same ones each time. Blocks.

    `directory/labelled` has a folder for each digit, to learn from and test with; `directory/unseen` has other
    pictures to score, with their truth beside it.

    Raises:
        RefusedError: `directory` can't be written.
    """
    with tempfile.TemporaryDirectory() as temporary, _writing(directory):
        data = write_digits(Path(temporary), bucket=_BUCKET, train=_LABELLED, test=_UNSEEN, seed=_SEED)
        for picture in data.train:
            folder = directory / "labelled" / picture.labels[0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture.path, folder / picture.path.name)
        laid = DemoData(directory / "unseen", directory / "unseen.manifest")
        _lay(laid, (picture.path for picture in data.test), data.test_manifest)
    return laid


def _lay(data: DemoData, pictures: Iterable[Path], manifest: Path) -> None:
    """Copy the pictures, and their manifest with paths instead of S3 URIs, to where `data` says."""
    data.images.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        shutil.copyfile(path, data.images / path.name)
    data.truth.write_bytes(_relative(manifest, data.images.name))


def _relative(manifest: Path, folder: str) -> bytes:
    """The manifest's lines with paths instead of S3 URIs."""
    lines = []
    for line in manifest.read_bytes().splitlines():
        entry = orjson.loads(line)
        lines.append(orjson.dumps(entry | {"source-ref": f"{folder}/{entry['source-ref'].rpartition('/')[2]}"}) + b"\n")
    return b"".join(lines)


def _pictures(state: Path) -> Path:
    """The emulator's buckets below `state`, with the digits in them."""
    buckets = state / "buckets"
    if not (buckets / _BUCKET / "test.manifest").exists():
        being_made = state / f"buckets-{os.getpid()}"
        with _writing(state):
            write_digits(being_made, bucket=_BUCKET, train=_TRAIN, test=_TEST, seed=_SEED)
            shutil.rmtree(buckets, ignore_errors=True)
            being_made.rename(buckets)
    return buckets


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """What the system refuses in the block is a refusal that names `directory`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise RefusedError(f"can't write the demo's pictures to {directory}: {why}; name a writable one") from error
