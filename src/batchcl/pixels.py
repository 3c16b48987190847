"""What the first bytes of an image tell: whether it is a PNG or JPEG, and its size in pixels.

Rules: Custom Labels guide, "Guidelines and quotas". Nothing is decoded, so a small file that claims to be huge costs
nothing, and a file that is cut behind its header passes.
"""

from __future__ import annotations

import struct
from typing import Final

from batchcl.images import MAX_BYTES_S3, Unfit

__all__ = ["MAX_ASPECT", "MAX_SIDE", "MIN_SIDE", "pixel_size", "unfit_bytes"]

MIN_SIDE: Final = 64
MAX_SIDE: Final = 4096
MAX_ASPECT: Final = 20

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"


def pixel_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the header of a PNG or JPEG states them, before any turn; None for anything else."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:  # noqa: PLR2004 - the IHDR's end
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    return _jpeg_size(data) if data.startswith(_JPEG) else None


def unfit_bytes(data: bytes, *, limit_bytes: int = MAX_BYTES_S3) -> Unfit | None:
    """Why the service would surely refuse an image of these bytes, or None.

    Args:
        data: the whole file.
        limit_bytes: how large it may be.
    """
    if not data:
        return Unfit("EmptyFile", "the file is empty")
    if len(data) > limit_bytes:
        return Unfit("TooLarge", f"{len(data):,} bytes, and the limit is {limit_bytes:,}")
    size = pixel_size(data)
    if size is None:
        return Unfit("NoPngOrJpeg", "the bytes are no PNG or JPEG")
    width, height = size
    if max(size) > MAX_SIDE:
        return Unfit("TooManyPixels", f"{width} x {height} pixels, and the limit is {MAX_SIDE} a side")
    if min(size) < MIN_SIDE:
        return Unfit("TooFewPixels", f"{width} x {height} pixels, and the least is {MIN_SIDE} a side")
    if max(size) > MAX_ASPECT * min(size):
        return Unfit("TooLong", f"{width} x {height} pixels, and the longest aspect ratio is {MAX_ASPECT}:1")
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk the segments to the first start of frame (ITU T.81, B.1.1.3 and B.2.2)."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:  # noqa: PLR2004 - every marker starts so
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:  # noqa: PLR2004 - SOF0 to SOF15
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # noqa: PLR2004 - markers without a length
            at += 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
