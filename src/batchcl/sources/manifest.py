"""Ground Truth and Custom Labels manifests, and other JSON Lines that name an image in a field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line
from batchcl.images import ImageRef
from batchcl.sources.base import BadLabel, referred_image

__all__ = ["FieldParser", "ManifestParser"]


class ManifestParser:
    """Reads a manifest's lines.

    A `source-ref` that isn't in S3 is a path relative to the manifest, for offline work; one that leads out of the
    manifest's directory is refused, as a manifest may come from somebody else.
    """

    def __init__(self, folder: Path | None, *, attribute: str | None = None) -> None:
        self._folder = folder
        self._attribute = attribute

    def __call__(self, line: bytes) -> ImageRef | BadLabel:
        """The image of `line`, with the line's labels in `extra`. Raises `SourceError`. Blocks.

        Scoring needs the reference alone, so labels that can't be used make no line bad.
        """
        truth = parse_line(line, attribute=self._attribute)
        try:
            image = referred_image(truth.source_ref, self._folder, extra=truth.extra)
        except SourceError as error:
            raise SourceError(f"its source-ref: {error}") from error
        return BadLabel(image, truth.bad_labels[0]) if truth.bad_labels else image


class FieldParser:
    """Reads JSON Lines whose field `field` names the image; the others go to `extra`.

    `field` is the name of a key of the object, or, where there is no such key, a path into it: `image.uri`.
    """

    def __init__(self, field: str, folder: Path | None) -> None:
        self._field = field
        self._folder = folder

    def __call__(self, line: bytes) -> ImageRef:
        """The image of `line`. Raises `SourceError`. Blocks."""
        try:
            entry = orjson.loads(line)
        except ValueError as error:
            raise SourceError(f"it is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise SourceError("it is no JSON object")
        reference = self._taken(entry)
        if not isinstance(reference, str):
            raise SourceError(f"its field {self._field!r} is no string")
        try:
            extra = orjson.dumps(entry).decode() if entry else None
        except TypeError as error:  # orjson writes fewer levels than it reads
            raise SourceError(f"it can't be kept: {error}") from error
        return referred_image(reference, self._folder, extra=extra)

    def _taken(self, entry: dict[str, Any]) -> Any:
        """The field's value, which leaves the entry."""
        if self._field in entry:
            return entry.pop(self._field)
        *path, last = self._field.split(".")
        inner: Any = entry
        for step in path:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise SourceError(
                f"it has no field {self._field!r}; it has {', '.join(map(repr, list(entry)[:8])) or 'none'}"
            )
        return inner.pop(last)
