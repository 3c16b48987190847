"""Draws labels into an image: bounding boxes and polygons at their position, image-level labels below the image."""

from __future__ import annotations

import io
import unicodedata
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from batchcl.imaging.decode import decode_upright
from batchcl.outcomes import Label

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as PlainFont

__all__ = ["annotate", "drawing_format"]

_COLOURS: Final = ("#e6194b", "#1f77b4", "#2ca02c", "#9467bd", "#d95f02", "#008080", "#c51b8a", "#8c564b", "#5254a3")
"""Dark enough for white text."""

_LEAST_SIDE: Final = 480
_LONGEST_NAME: Final = 40
_FONTS: Final = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
"""The first one that is installed is used; Pillow's own font has ASCII only."""
_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def drawing_format(name: str) -> str | None:
    """Pillow's format for a file name: PNG or JPEG; None for another extension."""
    return next((kind for extension, kind in _FORMATS.items() if name.lower().endswith(extension)), None)


def annotate(data: bytes, labels: Sequence[Label], *, kind: str = "PNG") -> bytes:
    """Draw `labels` into the upright image and encode it in the format `kind`.

    A small image is enlarged, so that text fits. Blocks; call it in a worker thread.

    Raises:
        ImageError: the image can't be decoded.
    """
    from PIL import Image, ImageDraw

    image = decode_upright(data).image
    factor = max(1, -(-_LEAST_SIDE // max(image.size)))
    canvas = image.resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST if factor > 1 else None
    )
    font = _Font(max(12, round(max(canvas.size) / 60)))
    pen = ImageDraw.Draw(canvas)
    for label in reversed(labels):  # the highest confidence on top
        if label.box is not None:
            _draw_outline(pen, label, canvas.size, font)
    for label in reversed(labels):  # names on top of all lines
        if label.box is not None:
            left, top = label.box[0] * canvas.width, label.box[1] * canvas.height
            _draw_name(pen, label, (left, top), canvas.size, font)
    image_labels = [label for label in labels if label.box is None]
    if image_labels:
        canvas = _with_caption(canvas, image_labels, font)
    buffer = io.BytesIO()
    canvas.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _draw_outline(pen: ImageDraw, label: Label, size: tuple[int, int], font: _Font) -> None:
    """Draw the box, and the polygon if there is one."""
    assert label.box is not None
    left, top, wide, high = label.box
    width, height = size
    line = max(2, round(font.height / 7))
    corners = [left * width, top * height, max(left, left + wide) * width - 1, max(top, top + high) * height - 1]
    pen.rectangle(
        [*corners[:2], max(corners[0], corners[2]), max(corners[1], corners[3])], outline=_colour(label), width=line
    )
    if label.polygon is not None and len(label.polygon) > 1:
        points = [(x * width, y * height) for x, y in label.polygon]
        pen.line([*points, points[0]], fill=_colour(label), width=line, joint="curve")


def _draw_name(
    pen: ImageDraw,
    label: Label,
    corner: tuple[float, float],
    size: tuple[int, int],
    font: _Font,
) -> None:
    """Draw name and confidence above the box, or inside it if there is no space above."""
    text = font.text(label)
    pad = max(2, round(font.height / 5))
    wide, high = pen.textlength(text, font=font.face) + 2 * pad, font.height + 2 * pad
    left = min(max(0.0, corner[0]), max(0.0, size[0] - wide))
    top = corner[1] - high if corner[1] >= high else min(max(0.0, corner[1]), max(0.0, size[1] - high))
    pen.rectangle([left, top, left + wide, top + high], fill=_colour(label))
    pen.text((left + pad, top + pad), text, fill="white", font=font.face, anchor="lt")


def _with_caption(canvas: Image, labels: Sequence[Label], font: _Font) -> Image:
    """`canvas` with one line of text for each label below it."""
    from PIL import Image, ImageDraw

    pad = max(2, round(font.height / 2))
    step = font.height + pad
    wide = Image.new("RGB", (canvas.width, canvas.height + pad + step * len(labels)), "white")
    wide.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(wide)
    for number, label in enumerate(labels):
        pen.text(
            (pad, canvas.height + pad + number * step),
            font.text(label),
            fill=_colour(label),
            font=font.face,
            anchor="lt",
        )
    return wide


def _colour(label: Label) -> str:
    """The label's colour, which depends on its name only."""
    return _COLOURS[zlib.crc32(label.name.encode("utf-8", "replace")) % len(_COLOURS)]


class _Font:
    """A font in one size, and text that it can draw."""

    def __init__(self, size: int, names: Sequence[str] = _FONTS) -> None:
        from PIL import ImageFont

        self._is_ascii_only = True
        self.face: FreeTypeFont | PlainFont = ImageFont.load_default(size)
        for name in names:
            try:
                self.face = ImageFont.truetype(name, size)
            except OSError:
                continue
            self._is_ascii_only = False
            break
        _, top, _, bottom = self.face.getbbox("Ag")
        self.height = round(bottom - top)

    def text(self, label: Label) -> str:
        """Name and confidence; long names are shortened, and characters that the font lacks are replaced."""
        name = "".join(each if each.isprintable() else "?" for each in label.name)
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 3]}..."
        if self._is_ascii_only:
            plain = (each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each))
            name = "".join(each if each.isascii() else "?" for each in plain)
        return f"{name} {label.confidence:.1f}"
