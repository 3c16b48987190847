"""Draws labels into an image: bounding boxes and polygons at their position, image-level labels below the image."""

from __future__ import annotations

import io
import unicodedata
import zlib
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Final

from batchcl.imaging.decode import decode_upright, within_pixel_budget
from batchcl.outcomes import Label

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as PlainFont

__all__ = ["annotate", "drawing_format"]

_COLOURS: Final = ("#e6194b", "#1f77b4", "#2ca02c", "#9467bd", "#d95f02", "#008080", "#c51b8a", "#8c564b", "#5254a3")
"""Dark enough for white text."""

_PLAIN: Final = "#333333"
_LEAST_SIDE: Final = 480
_MOST_LINES: Final = 12
"""Image-level labels in a caption."""

_LONGEST_NAME: Final = 40
_FONTS: Final = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
"""The first one that is installed is used; Pillow's own font has ASCII only."""
_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def drawing_format(name: str) -> str | None:
    """Pillow's format for a file name: PNG or JPEG; None for another extension."""
    return next((kind for extension, kind in _FORMATS.items() if name.lower().endswith(extension)), None)


def annotate(
    data: bytes,
    labels: Sequence[Label],
    *,
    kind: str = "PNG",
    quality: int = 92,
    max_px: int | None = None,
    has_caption: bool = True,
    notes: Sequence[str] = (),
) -> bytes:
    """Draw `labels` into the upright image and encode it in the format `kind`.

    A small image is enlarged, so that text fits. Blocks; call it in a worker thread.

    Args:
        data: a whole file, of one of `decode.FORMATS`.
        labels: those with a box are drawn at their position; the others are in the caption below the image.
        kind: PNG or JPEG.
        quality: of a JPEG, 1 to 95.
        max_px: maximum of the longer side without the caption; a larger image is shrunk. None for the image's own size.
        has_caption: add the caption, if there is anything to write in it.
        notes: further lines of the caption.

    Raises:
        ImageError: the image can't be decoded.
    """
    with within_pixel_budget(data):
        decoded = decode_upright(data, side=max_px)
        canvas = _resized(decoded.image, max_px, is_drawn=bool(labels or notes))
        font = _Font(max(12, round(max(canvas.size) / 60)))
        _draw_boxes(canvas, [label for label in labels if label.box is not None], font)
        if has_caption:
            whole = [label for label in labels if label.box is None]
            canvas = _with_caption(canvas, _caption(whole, notes, font), font)
        buffer = io.BytesIO()
        options = {"quality": quality} if kind == "JPEG" else {}
        canvas.save(buffer, kind, icc_profile=decoded.icc_profile, **options)
    return buffer.getvalue()


def _resized(image: Image, max_px: int | None, *, is_drawn: bool) -> Image:
    """The image within `max_px`; if text is drawn into it, a small one is enlarged by a whole number."""
    from PIL import Image

    longer = max(image.size)
    if max_px is not None and longer > max_px:
        scale = max_px / longer
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    factor = -(-_LEAST_SIDE // longer) if is_drawn else 1
    if max_px is not None:
        factor = min(factor, max_px // longer)
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _draw_boxes(canvas: Image, labels: Sequence[Label], font: _Font) -> None:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(canvas)
    for label in reversed(labels):  # the highest confidence on top
        _draw_outline(pen, label, canvas.size, font)
    for label in reversed(labels):  # names on top of all lines
        assert label.box is not None
        _draw_name(pen, label, (label.box[0] * canvas.width, label.box[1] * canvas.height), canvas.size, font)


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


def _caption(labels: Sequence[Label], notes: Sequence[str], font: _Font) -> list[tuple[str, str]]:
    """The text and colour of each line."""
    lines = [(font.text(label), _colour(label)) for label in labels[:_MOST_LINES]]
    if len(labels) > _MOST_LINES:
        lines.append((f"and {len(labels) - _MOST_LINES} more labels", _PLAIN))
    return [*lines, *((font.drawable(note), _PLAIN) for note in notes)]


def _with_caption(canvas: Image, lines: Sequence[tuple[str, str]], font: _Font) -> Image:
    """`canvas` with lines of text below it; wider if they need it. `canvas` itself if there are none."""
    from PIL import Image, ImageDraw

    if not lines:
        return canvas
    pad = max(2, round(font.height / 2))
    step = font.height + pad
    text_width = max(ImageDraw.Draw(canvas).textlength(text, font=font.face) for text, _ in lines)
    size = max(canvas.width, ceil(text_width) + 2 * pad), canvas.height + pad + step * len(lines)
    captioned = Image.new("RGB", size, "white")
    captioned.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(captioned)
    for number, (text, colour) in enumerate(lines):
        place = pad, canvas.height + pad + number * step
        pen.text(place, text, fill=colour, font=font.face, anchor="lt")
    return captioned


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
        """Name and confidence; a long name is shortened."""
        name = self.drawable(label.name)
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 3]}..."
        return f"{name} {label.confidence:.1f}"

    def drawable(self, text: str) -> str:
        """`text` with the characters replaced that the font lacks, or that are not printable."""
        text = "".join(each if each.isprintable() else "?" for each in text)
        if not self._is_ascii_only:
            return text
        plain = (each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
        return "".join(each if each.isascii() else "?" for each in plain)
