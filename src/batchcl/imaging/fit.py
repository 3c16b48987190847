"""Converts and resizes an image to the service's limits: PNG or JPEG, 8-bit RGB, pixels and bytes within range.

Width and height change by the same factor and nothing is cropped or padded, so a box, as ratios of the sides, is the
same in the original as displayed. Source of the limits: Custom Labels guide, "Guidelines and quotas". They don't
mention CMYK and 16 bits; such files are converted too, because it is not documented that the service accepts them.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final

from batchcl.errors import ImageError
from batchcl.image_header import MAX_ASPECT, MAX_SIDE, MIN_SIDE, check_bytes, read_header
from batchcl.images import MAX_BYTES_INLINE
from batchcl.imaging.decode import DecodedImage, decode_upright, within_pixel_budget

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FittedImage", "fit", "is_within_limits"]

_LOSSLESS: Final = frozenset({"PNG", "BMP", "GIF", "TIFF"})
_LOSSLESS_PIXELS: Final = 2_000_000
"""A larger image is rarely small enough as a PNG, and trying takes seconds."""

_PNG_LEVELS: Final = (2, 6)
"""Compression levels, in this order until the file is small enough; the second takes eight times as long as the first,
and makes a photograph 15 % smaller."""

_QUALITIES: Final = (95, 88, 80)
_SHRINK_FACTOR: Final = 0.8
_SAMPLE_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class FittedImage:
    """A changed image.

    Attributes:
        data: PNG or JPEG, upright and without EXIF.
        note: what was changed, such as `WEBP to JPEG; 5000 x 3000 to 4096 x 2458 pixels`.
    """

    data: bytes
    note: str


def fit(data: bytes, *, limit_bytes: int = MAX_BYTES_INLINE) -> FittedImage | None:
    """Change `data` so that the service accepts it; None if its header shows that it is accepted unchanged.

    Blocks; call it in a worker thread. A small lossless image stays lossless; others become a JPEG of the highest
    quality, and if necessary with fewer pixels, that has at most `limit_bytes`.

    Raises:
        ImageError: it can't be decoded, or its aspect ratio is over 20:1, which would need cropping or distortion.
    """
    if is_within_limits(data, limit_bytes=limit_bytes):
        return None
    if not data:
        raise ImageError("the file is empty", code="EmptyFile")
    with within_pixel_budget(data):
        decoded = decode_upright(data, side=MAX_SIDE)
        size = _target_size(decoded.width, decoded.height)
        if decoded.image.size != size:
            decoded = replace(decoded, image=_resized(decoded.image, size))
    encoded, kind = _encoded(decoded, limit_bytes)
    changes = [] if decoded.kind == kind else [f"{decoded.kind} to {kind}"]
    changes += decoded.changes
    header = read_header(encoded)
    assert header is not None
    if (decoded.width, decoded.height) != (header.width, header.height):
        changes.append(f"{decoded.width} x {decoded.height} to {header.width} x {header.height} pixels")
    if len(data) > limit_bytes:
        changes.append(f"{len(data):,} to {len(encoded):,} bytes")
    return FittedImage(encoded, "; ".join(changes) or f"{kind} re-encoded")


def is_within_limits(data: bytes, *, limit_bytes: int) -> bool:
    """Whether the header of `data` shows that the service accepts it unchanged."""
    header = read_header(data)
    return (
        check_bytes(data, limit_bytes=limit_bytes) is None
        and header is not None
        and header.bits <= _SAMPLE_BITS
        and not header.is_cmyk
    )


def _target_size(width: int, height: int) -> tuple[int, int]:
    """The closest size that the service accepts."""
    longer, shorter = max(width, height), min(width, height)
    if longer > MAX_ASPECT * shorter:
        raise ImageError(
            f"{width} x {height} pixels; the maximum aspect ratio is {MAX_ASPECT}:1; split the image into parts",
            code="TooLong",
        )
    scale = MAX_SIDE / longer if longer > MAX_SIDE else max(1.0, MIN_SIDE / shorter)
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def _encoded(decoded: DecodedImage, limit_bytes: int) -> tuple[bytes, str]:
    """A file within the limit, and its format; with fewer pixels if a lower quality is not enough."""
    image = decoded.image
    if decoded.kind in _LOSSLESS and image.width * image.height <= _LOSSLESS_PIXELS:
        for level in _PNG_LEVELS:
            png = _saved(image, "PNG", compress_level=level, icc_profile=decoded.icc_profile)
            if len(png) <= limit_bytes:
                return png, "PNG"
    for quality in _QUALITIES:
        jpeg = _saved(image, "JPEG", quality=quality, icc_profile=decoded.icc_profile)
        if len(jpeg) <= limit_bytes:
            return jpeg, "JPEG"
    while len(jpeg) > limit_bytes:
        smaller = round(image.width * _SHRINK_FACTOR), round(image.height * _SHRINK_FACTOR)
        if min(smaller) < MIN_SIDE:
            raise ImageError(f"the image can't be shrunk to {limit_bytes:,} bytes", code="TooLarge")
        image = _resized(image, smaller)
        jpeg = _saved(image, "JPEG", quality=_QUALITIES[-1], icc_profile=decoded.icc_profile)
    return jpeg, "JPEG"


def _resized(image: Image, size: tuple[int, int]) -> Image:
    from PIL import Image

    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _saved(image: Image, kind: str, **options: object) -> bytes:
    with _memory_file() as file:
        image.save(file, kind, **options)
        file.seek(0)
        return file.read()


def _memory_file() -> BinaryIO:
    """A file in memory. Where possible it has a descriptor: Pillow then encodes JPEGs without holding the GIL."""
    try:
        return open(os.memfd_create("image"), "w+b", buffering=0)
    except (AttributeError, OSError):  # not Linux, or no more descriptors
        return io.BytesIO()
