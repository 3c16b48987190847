"""What the first bytes of an image tell: whether it is a PNG or JPEG, its size in pixels, and how pixels are stored.

Rules: Custom Labels guide, "Guidelines and quotas". Nothing is decoded, so a small file that claims to be huge costs
nothing, and a file that is cut behind its header passes.
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
    """What the header of a PNG or JPEG states.

    Attributes:
        kind: which of them it is.
        width: in pixels, before any turn that EXIF asks for.
        height: likewise.
        bits: of one sample of one pixel.
        is_cmyk: the colours are those of ink, as printers want them.
    """

    kind: Literal["PNG", "JPEG"]
    width: int
    height: int
    bits: int = 8
    is_cmyk: bool = False


def read_header(data: bytes) -> ImageHeader | None:
    """The header of a PNG or JPEG; None for anything else, and where the bytes end before it does."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 25:  # up to the bit depth
        width, height, bits = struct.unpack(">IIB", data[16:25])
        return ImageHeader("PNG", width, height, bits)
    return _jpeg_header(data) if data.startswith(_JPEG) else None


def pixel_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the header of a PNG or JPEG states them, before any turn; None for anything else."""
    found = read_header(data)
    return None if found is None else (found.width, found.height)


def check_bytes(data: bytes, *, limit_bytes: int = MAX_BYTES_S3) -> SkipReason | None:
    """Why the service would surely refuse an image of these bytes, or None.

    Args:
        data: the whole file.
        limit_bytes: how large it may be.
    """
    if not data:
        return SkipReason("EmptyFile", "the file is empty")
    if len(data) > limit_bytes:
        return SkipReason("TooLarge", f"{len(data):,} bytes, and the limit is {limit_bytes:,}")
    size = pixel_size(data)
    if size is None:
        return SkipReason("InvalidImageFormatException", "the bytes are no PNG or JPEG")
    width, height = size
    if max(size) > MAX_SIDE:
        return SkipReason("TooManyPixels", f"{width} x {height} pixels, and the limit is {MAX_SIDE} a side")
    if min(size) < MIN_SIDE:
        return SkipReason("TooFewPixels", f"{width} x {height} pixels, and the least is {MIN_SIDE} a side")
    if max(size) > MAX_ASPECT * min(size):
        return SkipReason("TooLong", f"{width} x {height} pixels, and the longest aspect ratio is {MAX_ASPECT}:1")
    return None


def _jpeg_header(data: bytes) -> ImageHeader | None:
    """Walk the segments to the first start of frame (ITU T.81, B.1.1.3 and B.2.2)."""
    at = 2
    while at + 10 <= len(data):
        if data[at] != 0xFF:  # every marker starts so
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
