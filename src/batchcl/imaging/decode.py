"""Decodes images of common formats to upright RGB, with limits on memory."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchcl.cores import usable_cores
from batchcl.errors import HostError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FORMATS",
    "DecodedImage",
    "PixelBudget",
    "decode_upright",
    "upright_size",
    "within_pixel_budget",
]

FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's names of the supported formats; its less tested decoders are not used."""

_MAX_PIXELS: Final = 90_000_000
"""At least this many pixels may be decoded at the same time; a little more than the largest image has."""

_MAX_PIXELS_PER_CORE: Final = 30_000_000

_WARNING_FILTERS: Final = threading.Lock()
_FROM_16_BITS: Final = 1 / 256
_32_BIT_MODES: Final = frozenset({"I", "F"})
_ORIENTATION_TAG: Final = 0x0112
_SIDES_SWAPPED: Final = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright RGB image.

    Attributes:
        image: the pixels.
        kind: the file's format, one of `FORMATS`.
        width: of the file in pixels, upright; `image` may be smaller, with the same aspect ratio.
        height: of the file in pixels, upright.
        changes: what the conversion to RGB changed, as text.
        icc_profile: the colour profile of `image`; None for sRGB.
    """

    image: Image
    kind: str
    width: int
    height: int
    changes: tuple[str, ...] = ()
    icc_profile: bytes | None = None


def decode_upright(data: bytes, *, side: int | None = None) -> DecodedImage:
    """Decode `data` to upright RGB: the first frame or page, transparency on white.

    Blocks; call it in a worker thread.

    Args:
        data: a whole file.
        side: sufficient pixels for the longer side: a larger JPEG may be decoded at a half, a quarter or an eighth of
            its size, which is faster.

    Raises:
        ImageError: it is not one of `FORMATS`, corrupt, or too large to decode safely.
    """
    from PIL import ImageOps

    with _translated_errors(), _opened(data) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        changes = ["the first frame"] if getattr(image, "is_animated", False) else []
        size = image.size
        if side is not None:
            scale = min(1.0, side / max(size))
            image.draft(image.mode, (round(size[0] * scale), round(size[1] * scale)))
        image.load()  # which already rotates a TIFF
        is_swapped = image.getexif().get(_ORIENTATION_TAG) in _SIDES_SWAPPED
        ImageOps.exif_transpose(image, in_place=True)  # without a copy of an upright image
        rgb, profile, more = _rgb(image, kind)
    width, height = reversed(size) if is_swapped else size
    rgb.info = {}
    return DecodedImage(rgb, kind, width, height, (*changes, *more), profile)


class PixelBudget:
    """Limits the pixels that are decoded at the same time, and so their memory: up to 6 bytes each.

    Images wait in the order of their arrival, so that a large one is not overtaken again and again.
    """

    def __init__(self, pixels: int) -> None:
        self._limit = self._free = pixels
        self._freed = threading.Condition()
        self._first = threading.Lock()  # held by the image that waits for pixels

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` more may be decoded; an image over the limit waits until it is the only one. Blocks."""
        pixels = min(pixels, self._limit)
        with self._first, self._freed:
            self._freed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._free += pixels
                self._freed.notify_all()


_BUDGET: Final = PixelBudget(max(_MAX_PIXELS, _MAX_PIXELS_PER_CORE * usable_cores()))


@contextmanager
def within_pixel_budget(data: bytes) -> Iterator[None]:
    """Wait until `data` may be decoded; see `PixelBudget`. Blocks. Raises as `decode_upright` does."""
    with _translated_errors(), _opened(data) as image:
        pixels = image.width * image.height
    with _BUDGET.take(pixels):
        yield


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height after the EXIF rotation, by the header of `data`, which may be only the beginning of a file.

    Raises as `decode_upright` does.
    """
    with _translated_errors(), _opened(data) as image:
        is_swapped = image.getexif().get(_ORIENTATION_TAG) in _SIDES_SWAPPED
        return (image.height, image.width) if is_swapped else (image.width, image.height)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate exceptions of decoders into errors of the image."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"the file is not one of {', '.join(FORMATS)}, or corrupt", code="UnknownFormat") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "the image has more pixels than are safe to decode (89 million); shrink it first",
            code="TooManyPixels",
        ) from error
    except ImageError:
        raise
    except MemoryError as error:
        raise HostError("there is not enough memory to decode the image", code="OutOfMemory") from error
    except Exception as error:  # decoders raise any exception for corrupt files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"the image can't be decoded: {reason}", code="BrokenImage") from error


def _opened(data: bytes) -> Image:
    """Open a file and read its header; raises for more pixels than Pillow's limit (89 million)."""
    from PIL import Image

    with _WARNING_FILTERS, warnings.catch_warnings():  # which are global to the process
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _rgb(image: Image, kind: str) -> tuple[Image, bytes | None, list[str]]:
    """`image` as 8-bit RGB, its colour profile, and what was changed."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        grey = image.convert("I").point(lambda value: value * _FROM_16_BITS).convert("L")
        return grey.convert("RGB"), None, ["16 to 8 bits"]
    if image.mode in _32_BIT_MODES:
        raise ImageError(
            "the image has 32-bit pixels, whose range of values is not defined; convert it to 8 bits first",
            code="UnknownFormat",
        )
    profile = image.info.get("icc_profile") or None
    if image.mode == "CMYK":
        return _from_cmyk(image, profile), None, ["CMYK to RGB"]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), profile, ["transparency on white"]
    if image.mode == "RGB":
        return image, profile, []
    return image.convert("RGB"), None, []


def _from_cmyk(image: Image, profile: bytes | None) -> Image:
    """Convert CMYK to RGB: by the file's colour profile if it has a valid one, else by Pillow's formula."""
    from PIL import ImageCms

    if profile is not None:
        try:
            cmyk = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            rgb = ImageCms.profileToProfile(image, cmyk, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            rgb = None
        if rgb is not None:
            return rgb
    return image.convert("RGB")
