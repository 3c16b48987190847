"""Pictures of any common format as upright RGB pixels, with bounds on what a file may ask of memory."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchcl.errors import HostError, ImageError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "DecodedImage", "decode_upright", "pixels_in", "require_pillow"]

FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""As Pillow names them; its rarer decoders stay shut."""

_FILTERS: Final = threading.Lock()
_FROM_16_BITS: Final = 1 / 256
_DEEP: Final = frozenset({"I", "F"})
_ORIENTATION: Final = 0x0112
_TURNED: Final = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture as people see it.

    Attributes:
        image: RGB.
        kind: the file's format, one of `FORMATS`.
        width: in pixels of the file, upright; `image` may be smaller, in the same proportions.
        height: likewise.
        changes: what was lost or turned on the way to RGB, in words.
        icc_profile: that `image`'s colours go by; None for sRGB.
    """

    image: Image
    kind: str
    width: int
    height: int
    changes: tuple[str, ...] = ()
    icc_profile: bytes | None = None


def require_pillow(what: str) -> None:
    """Raise `UsageError` where the extra that `what`, such as a flag, needs isn't installed."""
    try:
        import PIL  # noqa: F401 - an extra that most runs do without
    except ImportError as error:
        raise UsageError(f"{what} needs Pillow; pip install 'batchcl[images]'") from error


def decode_upright(data: bytes, *, side: int | None = None) -> DecodedImage:
    """The picture in `data`, upright and RGB; of several frames or pages the first, transparent ones on white.

    Blocks; call it from a worker thread.

    Args:
        data: a whole file.
        side: pixels that will do for the longer side: a JPEG is then decoded at a half, a quarter or an eighth where
            that leaves as many.

    Raises:
        ImageError: it is none of `FORMATS`, broken, or so large that decoding it could fill the memory.
    """
    from PIL import ImageOps

    with _explained(), _opened(data) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        changes = ["the first frame"] if getattr(image, "is_animated", False) else []
        size = image.size
        if side is not None:
            shrink = min(1.0, side / max(size))
            image.draft(image.mode, (round(size[0] * shrink), round(size[1] * shrink)))
        image.load()  # which turns a TIFF already
        is_turned = image.getexif().get(_ORIENTATION) in _TURNED
        rgb, profile, more = _rgb(ImageOps.exif_transpose(image), kind)
    width, height = reversed(size) if is_turned else size
    rgb.info = {}
    return DecodedImage(rgb, kind, width, height, (*changes, *more), profile)


def pixels_in(data: bytes) -> int:
    """How many pixels the picture in `data` says that it has; raises as `decode_upright` does."""
    with _explained(), _opened(data) as image:
        return image.width * image.height


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what decoders raise into errors of the image."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        named = ", ".join(FORMATS)
        raise ImageError(f"the bytes are none of {named}, or broken", code="UnknownFormat") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "the picture has more pixels than are safe to decode here (89 million); shrink it yourself",
            code="TooManyPixels",
        ) from error
    except ImageError:
        raise
    except MemoryError as error:
        raise HostError("the memory is too short to decode the picture", code="OutOfMemory") from error
    except Exception as error:  # decoders meet hostile bytes with errors of any kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"the picture can't be decoded: {said}", code="BrokenImage") from error


def _opened(data: bytes) -> Image:
    """The file with its header read, whose size Pillow's own bound lets pass (89 million pixels)."""
    from PIL import Image

    with _FILTERS, warnings.catch_warnings():  # the filters are the whole process's
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _rgb(image: Image, kind: str) -> tuple[Image, bytes | None, list[str]]:
    """`image` in 8-bit RGB, the profile that its colours go by, and what was lost."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        grey = image.convert("I").point(lambda value: value * _FROM_16_BITS).convert("L")
        return grey.convert("RGB"), None, ["16 to 8 bits"]
    if image.mode in _DEEP:
        raise ImageError(
            "the picture's pixels are 32-bit numbers, of which nobody says what is white; convert it yourself",
            code="UnknownFormat",
        )
    profile = image.info.get("icc_profile") or None
    if image.mode == "CMYK":
        return _from_ink(image, profile), None, ["CMYK to RGB"]
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB"), profile, ["transparency on white"]
    if image.mode == "RGB":
        return image, profile, []
    return image.convert("RGB"), None, []


def _from_ink(image: Image, profile: bytes | None) -> Image:
    """By the colour profile of the file, where it has a good one; else by the simple formula."""
    from PIL import ImageCms

    if profile is not None:
        try:
            ink = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            seen = ImageCms.profileToProfile(image, ink, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            seen = None
        if seen is not None:
            return seen
    return image.convert("RGB")
