"""Draws what the service saw: boxes where they lie, labels of the whole image below it."""

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
"""Dark enough for white letters."""

_LEAST_SIDE: Final = 480
_LONGEST_NAME: Final = 40
_FONTS: Final = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
"""Tried in turn, as Pillow finds the system's: its own font knows ASCII only."""
_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def drawing_format(name: str) -> str | None:
    """The format of a file of this name, as Pillow has it; None for an ending that is no PNG's or JPEG's."""
    return next((kind for ending, kind in _FORMATS.items() if name.lower().endswith(ending)), None)


def annotate(data: bytes, labels: Sequence[Label], *, kind: str = "PNG") -> bytes:
    """The picture in `data`, upright, with `labels` drawn into it, as a file of the format `kind`.

    A small picture is enlarged, so that there is room for letters. Blocks; call it from a worker thread.

    Raises:
        ImageError: the picture can't be decoded.
    """
    from PIL import Image, ImageDraw

    picture = decode_upright(data)
    times = max(1, -(-_LEAST_SIDE // max(picture.image.size)))
    canvas = picture.image.resize(
        (picture.image.width * times, picture.image.height * times),
        Image.Resampling.NEAREST if times > 1 else None,
    )
    font = _Font(max(12, round(max(canvas.size) / 60)))
    pen = ImageDraw.Draw(canvas)
    for label in reversed(labels):  # the surest on top
        if label.box is not None:
            _draw_place(pen, label, canvas.size, font)
    for label in reversed(labels):  # names above all lines
        if label.box is not None:
            left, top = label.box[0] * canvas.width, label.box[1] * canvas.height
            _draw_name(pen, label, (left, top), canvas.size, font)
    whole = [label for label in labels if label.box is None]
    if whole:
        canvas = _with_caption(canvas, whole, font)
    sink = io.BytesIO()
    canvas.save(sink, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return sink.getvalue()


def _draw_place(pen: ImageDraw, label: Label, size: tuple[int, int], font: _Font) -> None:
    """The outline: the polygon where the service gave one, and the box."""
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
    """Name and confidence above the box; inside it, where there is no room above."""
    text = font.text(label)
    pad = max(2, round(font.height / 5))
    wide, high = pen.textlength(text, font=font.face) + 2 * pad, font.height + 2 * pad
    left = min(max(0.0, corner[0]), max(0.0, size[0] - wide))
    top = corner[1] - high if corner[1] >= high else min(max(0.0, corner[1]), max(0.0, size[1] - high))
    pen.rectangle([left, top, left + wide, top + high], fill=_colour(label))
    pen.text((left + pad, top + pad), text, fill="white", font=font.face, anchor="lt")


def _with_caption(canvas: Image, labels: Sequence[Label], font: _Font) -> Image:
    """`canvas` with a line a label below."""
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
    """The same for a name on every picture."""
    return _COLOURS[zlib.crc32(label.name.encode("utf-8", "replace")) % len(_COLOURS)]


class _Font:
    """The letters of one size, and what they can say."""

    def __init__(self, size: int) -> None:
        from PIL import ImageFont

        self._knows_ascii_only = True
        self.face: FreeTypeFont | PlainFont = ImageFont.load_default(size)
        for name in _FONTS:
            try:
                self.face = ImageFont.truetype(name, size)
            except OSError:
                continue
            self._knows_ascii_only = False
            break
        _, top, _, bottom = self.face.getbbox("Ag")
        self.height = round(bottom - top)

    def text(self, label: Label) -> str:
        """Name and confidence; a long name is cut, and letters that can't be drawn give way to similar ones."""
        name = "".join(each if each.isprintable() else "?" for each in label.name)
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 3]}..."
        if self._knows_ascii_only:
            plain = (each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each))
            name = "".join(each if each.isascii() else "?" for each in plain)
        return f"{name} {label.confidence:.1f}"
