"""Images of any size and format, as bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int) -> Image.Image:
    """Return deterministic noise."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the file's bytes; options are Pillow's."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def resized(path: Path, kind: str, size: tuple[int, int]) -> bytes:
    """Return the image at `path` in another format and size."""
    with Image.open(path) as image:
        return encoded(image.convert("RGB").resize(size), kind)
