"""CVAT for images 1.1: one XML file with an `image` element for each image.

Source: CVAT's documentation, "CVAT XML annotation format". Boxes are the corners in pixels, labels of the whole image
are `tag` elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol
from xml.parsers import expat
from xml.sax.saxutils import escape

from batchcl.annotations.base import AnnotatedImage, BadEntry, BadLabelError, annotated, make_box, pixels, shown
from batchcl.annotations.scored import ScoredImage, check_xml, xml
from batchcl.errors import ErrorCode, SourceError
from batchcl.groundtruth import TruthBox

__all__ = ["CvatWriter", "read_cvat"]

_CHUNK_BYTES: Final = 256 * 1024
_SHAPES: Final = frozenset({"polygon", "polyline", "points", "ellipse", "mask", "cuboid", "skeleton"})


class _Reader(Protocol):
    def read(self, size: int = -1) -> bytes: ...


def read_cvat(file: _Reader, name: str) -> Iterator[AnnotatedImage | BadEntry]:
    """The images of an export; memory does not grow with the file.

    An image without shapes and tags is labelled as empty, because the file has all images of a task. Other shapes than
    boxes, and rotated boxes, are reported as bad labels.

    Raises:
        SourceError: it is not well-formed, has a DTD, or is another format.
    """
    handler = _Handler(name)
    parser = expat.ParserCreate()
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    parser.StartDoctypeDeclHandler = handler.refuse_dtd
    try:
        while data := file.read(_CHUNK_BYTES):
            parser.Parse(data, False)  # noqa: FBT003 - its only signature
            yield from handler.finished()
        parser.Parse(b"", True)  # noqa: FBT003
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
        raise SourceError(
            f"reading {name} failed: it is not well-formed XML, or truncated: {error}; export it again",
            code=ErrorCode.INVALID_ANNOTATIONS,
        ) from error
    yield from handler.finished()


class _Handler:
    """Collects the images of one document."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path: list[str] = []
        self._images: list[AnnotatedImage | BadEntry] = []
        self._count = 0
        self._image: dict[str, str] | None = None
        self._boxes: list[TruthBox] = []
        self._labels: list[str] = []
        self._bad: list[str] = []

    def finished(self) -> list[AnnotatedImage | BadEntry]:
        """The images that were complete since the last call."""
        images, self._images = self._images, []
        return images

    def refuse_dtd(self, *_: Any) -> NoReturn:
        raise SourceError(
            f"reading {self._name} failed: it has a DTD, which no export of CVAT has; remove it",
            code=ErrorCode.INVALID_ANNOTATIONS,
        )

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        depth = len(self._path)
        if depth == 1 and tag != "annotations":
            raise SourceError(
                f"reading {self._name} failed: it is not CVAT's XML: its root is {shown(tag)}, not 'annotations'; "
                "export the task in the format CVAT for images",
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
        if self._path == ["annotations", "track"]:
            raise SourceError(
                f"reading {self._name} failed: it has the tracks of a video; export the task in the format CVAT for "
                "images",
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
        if self._path == ["annotations", "image"]:
            self._image, self._boxes, self._labels, self._bad = attributes, [], [], []
        elif self._image is not None and self._path[:-1] == ["annotations", "image"]:
            try:
                self._add(tag, attributes)
            except BadLabelError as error:
                self._bad.append(f"{self._location}: {error}")

    def end(self, _: str) -> None:
        if self._path == ["annotations", "image"] and self._image is not None:
            width, height = (_number(self._image.get(side)) for side in ("width", "height"))
            image = annotated(
                self._location,
                [self._image.get("name")],
                boxes=self._boxes,
                labels=self._labels,
                size=pixels(width, height),
                task="detection" if self._boxes else "classification",
                bad_labels=self._bad,
            )
            self._images.append(image)
            self._image = None
            self._count += 1
        self._path.pop()

    @property
    def _location(self) -> str:
        image_id = (self._image or {}).get("id", "")
        return f"image {image_id if image_id.isdecimal() else self._count}"

    def _add(self, tag: str, attributes: dict[str, str]) -> None:
        label = attributes.get("label")
        if tag in _SHAPES:
            raise BadLabelError(f"the shape {tag} is not supported; use boxes")
        if tag not in {"box", "tag"}:
            return
        if not label:
            raise BadLabelError(f"a {tag} has no label")
        if tag == "tag":
            self._labels.append(label)
            return
        if _number(attributes.get("rotation", "0")) != 0:
            raise BadLabelError(f"a box of {shown(label)} is rotated; boxes must be upright")
        left, top, right, bottom = (_number(attributes.get(side)) for side in ("xtl", "ytl", "xbr", "ybr"))
        if left is None or top is None or right is None or bottom is None:
            raise BadLabelError(f"a box of {shown(label)} has a side that is not a number")
        self._boxes.append(make_box(label, left, top, right - left, bottom - top))


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


class CvatWriter:
    """Writes an XML file; the confidence of a label is an attribute, which CVAT ignores if its label has none."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        check_xml(labels)
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._count = 0
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        self._file.write("  <meta><task><labels>\n")
        for label in labels:
            self._file.write(
                f"    <label><name>{escape(label)}</name><type>any</type><attributes><attribute><name>confidence"
                "</name><mutable>False</mutable><input_type>text</input_type><default_value></default_value><values>"
                "</values></attribute></attributes></label>\n"
            )
        self._file.write("  </labels></task></meta>\n")

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """See `ImageWriter`."""
        (image,) = rows
        assert image.size is not None
        width, height = image.size
        lines = [f'  <image id="{self._count}" name={xml(image.name)} width="{width}" height="{height}">\n']
        for label in image.labels:
            confidence = f'<attribute name="confidence">{label.confidence:.2f}</attribute>'
            if label.box is None:
                lines.append(f'    <tag label={xml(label.name)} source="auto">{confidence}</tag>\n')
                continue
            left, top, wide, high = label.box.scaled(image.size)
            corners = f'xtl="{left:.2f}" ytl="{top:.2f}" xbr="{left + wide:.2f}" ybr="{top + high:.2f}"'
            start = f'<box label={xml(label.name)} source="auto" occluded="0" {corners} z_order="0">'
            lines.append(f"    {start}{confidence}</box>\n")
        self._file.writelines([*lines, "  </image>\n"])
        self._count += 1

    def close(self) -> None:
        """See `ImageWriter`."""
        self._file.write("</annotations>\n")
        self._file.close()
