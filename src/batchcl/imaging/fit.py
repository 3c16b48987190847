"""Makes an image fit what the service takes: PNG or JPEG, 8 bits of RGB, enough pixels and not too many, few bytes.

Width and height change by the same factor and nothing is cut off or added, so a box in the changed picture, as ratios
of its sides, is the same box in the original as people see it. The rules are those of the Custom Labels guide,
"Guidelines and quotas". CMYK and 16 bits are not in them: such files are changed as well, as nothing says that the
service knows them.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from batchcl.errors import ImageError
from batchcl.image_header import MAX_ASPECT, MAX_SIDE, MIN_SIDE, check_bytes, read_header
from batchcl.images import MAX_BYTES_INLINE
from batchcl.imaging.decode import DecodedImage, decode_upright, pixels_in

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FittedImage", "fit", "is_fine"]

_LARGE_PIXELS: Final = 30_000_000
_LARGE: Final = threading.Lock()
"""Pictures that take hundreds of megabytes while they are decoded do so in turn."""

_LOSSLESS: Final = frozenset({"PNG", "BMP", "GIF", "TIFF"})
_LOSSLESS_PIXELS: Final = 2_000_000
"""A picture without loss that is larger would rarely be small enough as a PNG, and takes seconds to try."""

_QUALITIES: Final = (95, 88, 80)
_SMALLER: Final = 0.8
_SAMPLES_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class FittedImage:
    """A changed image.

    Attributes:
        data: PNG or JPEG, upright and without EXIF.
        note: what was changed, for people, such as `WEBP to JPEG; 5000 x 3000 to 4096 x 2458 pixels`.
    """

    data: bytes
    note: str


def fit(data: bytes, *, limit_bytes: int = MAX_BYTES_INLINE) -> FittedImage | None:
    """`data` changed so that the service takes it; None where it does already, as far as the header tells.

    Blocks; call it from a worker thread. A small picture without loss stays without; a larger one becomes a JPEG of the
    best quality and, if need be, fewer pixels, that has at most `limit_bytes`.

    Raises:
        ImageError: it can't be decoded, or is longer than 20:1, which nothing mends without cutting or distorting.
    """
    if is_fine(data, limit_bytes=limit_bytes):
        return None
    if not data:
        raise ImageError("the file is empty", code="EmptyFile")
    with _LARGE if pixels_in(data) > _LARGE_PIXELS else nullcontext():
        picture = decode_upright(data, side=MAX_SIDE)
        size = _target(picture.width, picture.height)
        if picture.image.size != size:
            picture = replace(picture, image=_resized(picture.image, size))
    encoded, kind = _encoded(picture, limit_bytes)
    parts = [] if picture.kind == kind else [f"{picture.kind} to {kind}"]
    parts += picture.changes
    found = read_header(encoded)
    assert found is not None
    if (picture.width, picture.height) != (found.width, found.height):
        parts.append(f"{picture.width} x {picture.height} to {found.width} x {found.height} pixels")
    if len(data) > limit_bytes:
        parts.append(f"{len(data):,} to {len(encoded):,} bytes")
    return FittedImage(encoded, "; ".join(parts) or f"{kind} written anew")


def is_fine(data: bytes, *, limit_bytes: int) -> bool:
    """Whether the service takes `data`, as far as the header tells."""
    found = read_header(data)
    return (
        check_bytes(data, limit_bytes=limit_bytes) is None
        and found is not None
        and found.bits <= _SAMPLES_BITS
        and not found.is_cmyk
    )


def _target(width: int, height: int) -> tuple[int, int]:
    """The nearest size that the service takes."""
    longer, shorter = max(width, height), min(width, height)
    if longer > MAX_ASPECT * shorter:
        raise ImageError(
            f"{width} x {height} pixels, and the longest aspect ratio is {MAX_ASPECT}:1; cut the picture in parts",
            code="TooLong",
        )
    scale = MAX_SIDE / longer if longer > MAX_SIDE else max(1.0, MIN_SIDE / shorter)
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def _encoded(picture: DecodedImage, limit_bytes: int) -> tuple[bytes, str]:
    """The picture as a file within the limit, and its format; with fewer pixels where quality alone doesn't do."""
    image = picture.image
    if picture.kind in _LOSSLESS and image.width * image.height <= _LOSSLESS_PIXELS:
        png = _saved(image, "PNG", icc_profile=picture.icc_profile)
        if len(png) <= limit_bytes:
            return png, "PNG"
    for quality in _QUALITIES:
        jpeg = _saved(image, "JPEG", quality=quality, icc_profile=picture.icc_profile)
        if len(jpeg) <= limit_bytes:
            return jpeg, "JPEG"
    while len(jpeg) > limit_bytes:
        smaller = round(image.width * _SMALLER), round(image.height * _SMALLER)
        if min(smaller) < MIN_SIDE:
            raise ImageError(f"the picture doesn't fit into {limit_bytes:,} bytes", code="TooLarge")
        image = _resized(image, smaller)
        jpeg = _saved(image, "JPEG", quality=_QUALITIES[-1], icc_profile=picture.icc_profile)
    return jpeg, "JPEG"


def _resized(image: Image, size: tuple[int, int]) -> Image:
    from PIL import Image

    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _saved(image: Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()
