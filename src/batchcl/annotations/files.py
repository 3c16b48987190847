"""Detects the format of an annotation file by its content, and reads it.

The contents are not trusted: sizes are limited, XML with a DTD is refused (so there are no entities to expand), and
names of images are only compared with names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

import orjson

from batchcl.annotations.base import AnnotatedImage, BadEntry
from batchcl.annotations.coco import is_coco, read_coco
from batchcl.annotations.cvat import read_cvat
from batchcl.annotations.label_studio import is_label_studio, read_label_studio
from batchcl.errors import ErrorCode, SourceError
from batchcl.sources.files import open_list, start_of

__all__ = ["FORMATS", "MAX_BYTES", "Format", "annotation_format", "read_annotations"]

Format: TypeAlias = Literal["coco", "label-studio", "cvat"]

FORMATS: Final[dict[Format, str]] = {"coco": "COCO", "label-studio": "Label Studio", "cvat": "CVAT"}

MAX_BYTES: Final = 512 * 1024 * 1024
"""Of a file, decompressed. JSON is parsed as a whole and needs about nine times its size in memory."""

_ZIP: Final = b"PK\x03\x04"
_COCO_KEY: Final = re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')
_MANIFEST_KEY: Final = b'"source-ref"'


def annotation_format(path: Path, name: str) -> Format | None:
    """The format of a file by its first 256 KB: XML is CVAT, a JSON list Label Studio, other JSON COCO.

    None for everything else, such as a manifest: JSON whose first line has a `source-ref`, or begins another object
    without the keys of COCO.

    Raises:
        SourceError: the file can't be read, is a ZIP archive, or is both a manifest and COCO.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise SourceError(
            f"reading {name} failed: {error.strerror}; check the path", code=ErrorCode.UNREADABLE_SOURCE
        ) from error
    if is_zip:
        raise SourceError(
            f"reading {name} failed: it is a ZIP archive; unpack it, and name the file in it, such as annotations.xml "
            "of CVAT, or instances_default.json of COCO",
            code=ErrorCode.INVALID_ANNOTATIONS,
        )
    start = start_of(path, name).lstrip()
    if start.startswith(b"<"):
        return "cvat"
    if start.startswith(b"["):
        return "label-studio"
    if not start.startswith(b"{"):
        return None
    first, _, following = start.partition(b"\n")
    try:
        entry = orjson.loads(first)
    except ValueError:
        entry = None
    if isinstance(entry, dict) and not following.lstrip().startswith(b"{"):
        is_manifest = "source-ref" in entry
        if is_manifest and is_coco(entry):
            raise SourceError(
                f"reading {name} failed: it can be a manifest or COCO, because it has the keys of both; remove its key "
                '"source-ref" if it is COCO',
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
        return "coco" if is_coco(entry) else "label-studio" if is_label_studio([entry]) else None
    if isinstance(entry, dict) or _MANIFEST_KEY in first:
        return None
    return "coco" if _COCO_KEY.search(start) else None


def read_annotations(path: Path, name: str, form: Format) -> Iterator[AnnotatedImage | BadEntry]:
    """The images of an annotation file, and the entries that can't be used. Blocks.

    Args:
        path: a local file.
        name: its name in messages.
        form: as returned by `annotation_format`.

    Raises:
        SourceError: the file can't be read, is too large, is truncated, or has another format.
    """
    with open_list(path, name) as file:
        bounded = _Bounded(file, name)
        if form == "cvat":
            yield from read_cvat(bounded, name)
        elif form == "coco":
            yield from read_coco(_json(bounded, name), name)
        else:
            yield from read_label_studio(_json(bounded, name), name)


class _Bounded:
    """A file that raises `SourceError` beyond `MAX_BYTES`."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._left = MAX_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left + 1 if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(
                f"reading {self._name} failed: it has more than {MAX_BYTES / 1024**2:,.0f} MB; split it into several "
                "files, or convert it to a manifest",
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
        return data


def _json(file: _Bounded, name: str) -> Any:
    data = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise SourceError(
            f"reading {name} failed: it is not valid JSON, or truncated: {error}; export it again",
            code=ErrorCode.INVALID_ANNOTATIONS,
        ) from error
