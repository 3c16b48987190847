"""Checks images against the limits of the service, and decodes them.

Limits: Custom Labels guide, "Guidelines and quotas". The size in pixels is read from the file's header and checked
before the image is decoded, so a small file that claims to be huge costs nothing.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchcl import image_header
from batchcl.emulator.errors import ApiError, invalid_parameter
from batchcl.image_header import MAX_ASPECT, MAX_SIDE, MIN_SIDE
from batchcl.images import MAX_BYTES_INLINE, MAX_BYTES_S3

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "allowed_size", "check_bytes", "open_picture", "pixel_size"]

_ORIENTATION: Final = 0x0112
_SIDEWAYS: Final = frozenset({5, 6, 7, 8})
_DRAFT_SIDE: Final = 512


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image, upright.

    Attributes:
        image: RGB; may be smaller than the file's size, with the same aspect ratio.
        width: of the upright image, in pixels of the file.
        height: likewise.
    """

    image: Image
    width: int
    height: int


def check_bytes(data: bytes, *, inline: bool) -> None:
    """Check the size in bytes: at most 4 MB inline, 15 MB from S3.

    Raises:
        ApiError: ImageTooLargeException.
    """
    limit = MAX_BYTES_INLINE if inline else MAX_BYTES_S3
    if len(data) > limit:
        raise ApiError("ImageTooLargeException", f"Image size is too large. The limit is {limit} bytes.")


def open_picture(data: bytes) -> Picture:
    """Check and decode an image, and rotate it according to its EXIF orientation.

    Blocking; call it from a worker thread.

    Raises:
        ApiError: InvalidImageFormatException if it is not an intact PNG or JPEG, ImageTooLargeException for more than
            4096 pixels per side, InvalidParameterException for fewer than 64 or an aspect ratio above 20:1.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    width, height = allowed_size(data)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            image.draft("RGB", (_DRAFT_SIDE, _DRAFT_SIDE))  # a JPEG decodes faster at a half, a quarter or an eighth
            orientation = image.getexif().get(_ORIENTATION, 1)
            upright = ImageOps.exif_transpose(image) if orientation != 1 else image
            if upright.mode.startswith("I"):  # 16-bit grey would be clipped rather than scaled
                upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            rgb = upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, struct.error, zlib.error, UnidentifiedImageError):
        raise _bad_format() from None
    if orientation in _SIDEWAYS:
        width, height = height, width
    return Picture(rgb, width, height)


def allowed_size(data: bytes) -> tuple[int, int]:
    """`pixel_size` of an image within the limits; raises like `open_picture`."""
    width, height = pixel_size(data)
    _check_pixels(width, height)
    return width, height


def pixel_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a PNG or JPEG, before any rotation.

    Raises:
        ApiError: InvalidImageFormatException.
    """
    size = image_header.pixel_size(data)
    if size is None:
        raise _bad_format()
    return size


def _check_pixels(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise ApiError(
            "ImageTooLargeException", f"Image dimensions: {width} x {height} pixels exceed the maximum limit."
        )
    if width == 0 or height == 0:
        raise _bad_format()
    if min(width, height) < MIN_SIDE:
        raise invalid_parameter(
            f"Image dimensions: {width} x {height} pixels are under the minimum of {MIN_SIDE} x {MIN_SIDE} pixels."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise invalid_parameter(f"Image dimensions: {width} x {height} exceed the aspect ratio of {MAX_ASPECT}:1.")


def _bad_format() -> ApiError:
    return ApiError("InvalidImageFormatException", "Request has invalid image format")
