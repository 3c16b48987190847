"""Images of real handwritten digits, with labels or boxes: a data set that needs no network.

The digits are scikit-learn's `load_digits` (UCI "Optical Recognition of Handwritten Digits", 1,797 scans of 8x8 grey
values). No digit is on both training and test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["DigitBox", "DigitPicture", "DigitsDataset", "write_digits"]

_CLASSIFICATION_SIZE: Final = (96, 96)
_OBJECTS_SIZE: Final = (192, 144)
_CREATED: Final = "2026-01-01T00:00:00.000000"
_INK_THRESHOLD: Final = 0.35
_MAX_PLACEMENTS: Final = 200


@dataclass(frozen=True, slots=True)
class DigitBox:
    """One digit on an image; the box, in pixels, encloses its ink."""

    label: str
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class DigitPicture:
    """One image: `uri` is its source-ref in the manifest, `path` the file."""

    uri: str
    path: Path
    boxes: tuple[DigitBox, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The digits on it, without duplicates."""
        return tuple(dict.fromkeys(box.label for box in self.boxes))


@dataclass(frozen=True, slots=True)
class DigitsDataset:
    """The files of `write_digits`; the keys of the manifests are `train.manifest` and `test.manifest`."""

    directory: Path
    bucket: str
    train: tuple[DigitPicture, ...]
    test: tuple[DigitPicture, ...]
    train_manifest: Path
    test_manifest: Path


def write_digits(
    directory: Path, *, bucket: str, train: int, test: int, seed: int, objects: bool = False
) -> DigitsDataset:
    """Write images and Ground Truth manifests to `directory/bucket`; the same ones for the same arguments.

    Args:
        directory: to be used as the emulator's `--buckets`.
        bucket: the sub-folder; created if it is missing.
        train: number of training images.
        test: number of test images.
        seed: of all random numbers.
        objects: False for 96x96 images of one large digit with an image-level label; True for 192x144 images of one
            to three digits with boxes.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scans.target))
    cut = round(len(order) * train / max(1, train + test))
    cut = min(max(cut, min(train, 1)), len(order) - min(test, 1))
    folder = directory / bucket
    written: dict[str, tuple[DigitPicture, ...]] = {}
    for name, count, pool in (("train", train, order[:cut]), ("test", test, order[cut:])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pictures = []
        used = 0
        for n in range(count):
            count_on_image = int(rng.integers(1, 4)) if objects else 1
            chosen = [int(pool[(used + k) % len(pool)]) for k in range(count_on_image)]
            used += count_on_image
            image, boxes = _compose(
                [(scans.images[i], str(scans.target[i])) for i in chosen],
                size=_OBJECTS_SIZE if objects else _CLASSIFICATION_SIZE,
                rng=rng,
            )
            path = folder / name / f"{n:05}.{'png' if n % 2 == 0 else 'jpg'}"
            image.save(path, quality=90)  # ignored for PNG
            pictures.append(DigitPicture(f"s3://{bucket}/{name}/{path.name}", path, tuple(boxes)))
        written[name] = tuple(pictures)
        line = _object_line if objects else _label_line
        (folder / f"{name}.manifest").write_bytes(b"".join(orjson.dumps(line(p)) + b"\n" for p in pictures))
    return DigitsDataset(
        directory, bucket, written["train"], written["test"], folder / "train.manifest", folder / "test.manifest"
    )


def _compose(
    digits: Sequence[tuple[NDArray[np.float64], str]], *, size: tuple[int, int], rng: Generator
) -> tuple[Image, list[DigitBox]]:
    """An image with the digits side by side; a digit that doesn't fit is left out."""
    from PIL import Image

    width, height = size
    canvas = _background(width, height, rng)
    large = len(digits) == 1 and width == height
    boxes: list[DigitBox] = []
    for scan, label in digits:
        for _ in range(_MAX_PLACEMENTS):
            side = int(rng.integers(68, 85)) if large else int(rng.integers(36, 68))
            x, y = (_random_offset(extent - side, rng, centred=large) for extent in (width, height))
            if all(_is_apart(x, y, side, box) for box in boxes):
                break
        else:
            continue
        ink = Image.fromarray((scan / 16 * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        cover = np.asarray(ink, np.float32)[..., None] / 255
        colour = np.asarray(rng.integers(190, 256, 3), np.float32)
        spot = canvas[y : y + side, x : x + side]
        spot[...] = spot * (1 - cover) + colour * cover
        rows, columns = (np.flatnonzero((cover[..., 0] > _INK_THRESHOLD).any(axis=axis)) for axis in (1, 0))
        boxes.append(
            DigitBox(
                label,
                x + int(columns[0]),
                y + int(rows[0]),
                int(columns[-1] - columns[0]) + 1,
                int(rows[-1] - rows[0]) + 1,
            )
        )
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)), boxes


def _random_offset(free: int, rng: Generator, *, centred: bool) -> int:
    """A random offset with `free` pixels of space; a centred one is at most six pixels off the middle."""
    span = min(free, 12) if centred else free
    return (free - span) // 2 + int(rng.integers(0, span + 1))


def _background(width: int, height: int, rng: Generator) -> NDArray[np.float32]:
    """A dark background of a random tint, with soft clouds and some grain."""
    from PIL import Image

    tint = rng.integers(20, 100, 3)
    clouds = rng.integers(0, 60, (max(2, height // 16), max(2, width // 16))).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 4, (height, width, 3))
    return np.asarray(tint + smooth[..., None] + grain, np.float32)


def _is_apart(x: int, y: int, side: int, box: DigitBox) -> bool:
    return x + side <= box.left or box.left + box.width <= x or y + side <= box.top or box.top + box.height <= y


def _label_line(picture: DigitPicture) -> dict[str, Any]:
    label = picture.boxes[0].label
    return {
        "source-ref": picture.uri,
        "digit": int(label),
        "digit-metadata": {
            "class-name": label,
            "confidence": 1,
            "type": "groundtruth/image-classification",
            "job-name": "labeling-job/digit",
            "human-annotated": "yes",
            "creation-date": _CREATED,
        },
    }


def _object_line(picture: DigitPicture) -> dict[str, Any]:
    from PIL import Image

    with Image.open(picture.path) as image:
        width, height = image.size
    return {
        "source-ref": picture.uri,
        "digits": {
            "image_size": [{"width": width, "height": height, "depth": 3}],
            "annotations": [
                {"class_id": int(b.label), "left": b.left, "top": b.top, "width": b.width, "height": b.height}
                for b in picture.boxes
            ],
        },
        "digits-metadata": {
            "objects": [{"confidence": 1} for _ in picture.boxes],
            "class-map": {label: label for label in sorted(picture.labels)},
            "type": "groundtruth/object-detection",
            "human-annotated": "yes",
            "creation-date": _CREATED,
            "job-name": "labeling-job/digits",
        },
    }
