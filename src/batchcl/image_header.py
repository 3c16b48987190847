"""Reads the header of a PNG or JPEG: format, size in pixels, colour depth. Checks it against the service's limits.

Source of the limits: Custom Labels guide, "Guidelines and quotas". Nothing is decoded: a small file that states a huge
size costs no memory, and a file that is truncated after its header passes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

from batchcl.images import MAX_BYTES_S3, SkipReason

__all__ = ["MAX_ASPECT", "MAX_SIDE", "MIN_SIDE", "ImageHeader", "check_bytes", "pixel_size", "read_header"]

MIN_SIDE: Final = 64
MAX_SIDE: Final = 4096
MAX_ASPECT: Final = 20

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of a PNG or JPEG.

    Attributes:
        kind: the format.
        width: in pixels, before the EXIF rotation.
        height: in pixels, before the EXIF rotation.
        bits: per sample.
        is_cmyk: the colour space is CMYK.
    """

    kind: Literal["PNG", "JPEG"]
    width: int
    height: int
    bits: int = 8
    is_cmyk: bool = False


def read_header(data: bytes) -> ImageHeader | None:
    """The header of a PNG or JPEG; None for another format or a truncated header."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 25:  # up to the bit depth
        width, height, bits = struct.unpack(">IIB", data[16:25])
        return ImageHeader("PNG", width, height, bits)
    return _jpeg_header(data) if data.startswith(_JPEG) else None


def pixel_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or JPEG, before the EXIF rotation; None for another format."""
    header = read_header(data)
    return None if header is None else (header.width, header.height)


def check_bytes(data: bytes, *, limit_bytes: int = MAX_BYTES_S3) -> SkipReason | None:
    """Check an image against the service's limits: why it would be refused, or None.

    Args:
        data: the whole file.
        limit_bytes: the maximum size.
    """
    if not data:
        return SkipReason("EmptyFile", "the file is empty")
    if len(data) > limit_bytes:
        return SkipReason("TooLarge", f"{len(data):,} bytes; the limit is {limit_bytes:,}")
    size = pixel_size(data)
    if size is None:
        return SkipReason("InvalidImageFormatException", "the file is not a PNG or JPEG")
    width, height = size
    if max(size) > MAX_SIDE:
        return SkipReason("TooManyPixels", f"{width} x {height} pixels; the maximum is {MAX_SIDE} a side")
    if min(size) < MIN_SIDE:
        return SkipReason("TooFewPixels", f"{width} x {height} pixels; the minimum is {MIN_SIDE} a side")
    if max(size) > MAX_ASPECT * min(size):
        return SkipReason("TooLong", f"{width} x {height} pixels; the maximum aspect ratio is {MAX_ASPECT}:1")
    return None


def _jpeg_header(data: bytes) -> ImageHeader | None:
    """Skip the segments before the first start of frame (ITU T.81, B.1.1.3 and B.2.2)."""
    at = 2
    while at + 10 <= len(data):
        if data[at] != 0xFF:  # the first byte of every marker
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:  # SOF0 to SOF15
            bits, height, width, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return ImageHeader("JPEG", width, height, bits, is_cmyk=components == 4)  # C, M, Y and K
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
