"""`batchcl detect --annotate`: draws boxes and labels into copies of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchcl.cli.streams import write_line
from batchcl.errors import ErrorCode, ImageError, OutputError, UsageError
from batchcl.extras import require_extra
from batchcl.imaging.draw import annotate, drawing_format

if TYPE_CHECKING:
    from batchcl.scoring.detect import DetectResult, ImageInput

__all__ = ["Drawing"]


class Drawing:
    """Keeps the bytes of the images until their labels are known, then draws them.

    Args:
        out: OUT.png or OUT.jpg for one image; or a directory, which is created if missing.
        images: to draw.

    Raises:
        UsageError: `out` is neither.
    """

    def __init__(self, out: Path, images: Sequence[ImageInput]) -> None:
        require_extra("images", "--annotate")
        self._files = _files(out, images)
        self._numbers = {id(each): number for number, each in enumerate(images)}
        self._data: dict[int, bytes] = {}

    def keep(self, image: ImageInput, data: bytes) -> None:
        """Keep the bytes of `image`."""
        self._data[self._numbers[id(image)]] = data

    def draw(self, found: Sequence[DetectResult]) -> None:
        """Write the picture of each image that has a response.

        Raises:
            OutputError: a file can't be written.
        """
        for number, each in enumerate(found):
            if each.answer is None or number not in self._data:
                continue
            file = self._files[number]
            try:
                drawn = annotate(self._data[number], each.labels, kind=drawing_format(file.name) or "PNG")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(drawn)
            except ImageError as error:
                write_line(f"drawing {each.name} failed: {error}")
            except OSError as error:
                raise OutputError(
                    f"writing {file} failed: {error.strerror}; check --annotate", code=ErrorCode.WRITE_FAILED
                ) from error
            else:
                write_line(f"{each.name} is drawn to {file}")


def _files(out: Path, images: Sequence[ImageInput]) -> list[Path]:
    """A different file for each image."""
    if not out.is_dir():
        if drawing_format(out.name) is not None and len(images) == 1:
            return [out]
        if drawing_format(out.name) is not None or out.exists():
            raise UsageError(
                f"--annotate {out}: for {len(images)} images, name a directory"
                if len(images) > 1
                else f"--annotate {out}: this file is not a PNG or JPEG; name OUT.png, OUT.jpg or a directory",
                code=ErrorCode.INVALID_TARGET,
            )
        if out.suffix:
            raise UsageError(
                f"--annotate {out}: unknown format; name OUT.png, OUT.jpg or a directory", code=ErrorCode.INVALID_TARGET
            )
    names: list[str] = []
    for each in images:
        stem = "stdin" if each.name == "-" else Path(each.name.rpartition("/")[2]).stem or "image"
        name = stem
        while f"{name}.png" in names:
            name = f"{stem}-{sum(other.startswith(stem) for other in names) + 1}"
        names.append(f"{name}.png")
    return [out / name for name in names]
