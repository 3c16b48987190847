"""Ground Truth and Custom Labels manifests: JSON Lines with a `source-ref` each."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line
from batchcl.images import ImageRef
from batchcl.sources.base import local_image, s3_image

__all__ = ["ManifestParser"]


class ManifestParser:
    """Reads a manifest's lines.

    A `source-ref` that isn't in S3 is a path relative to the manifest, for offline work; one that leads out of the
    manifest's directory is refused, as a manifest may come from somebody else.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def __call__(self, line: bytes) -> ImageRef:
        """The image of `line`, with the line's labels in `extra`. Raises `SourceError`. Blocks."""
        truth = parse_line(line)
        ref = truth.source_ref
        if ref.startswith("s3://"):
            return s3_image(ref, extra=truth.extra)
        path = PurePosixPath(ref)
        if self._folder is None or "://" in ref or "\0" in ref or path.is_absolute() or ".." in path.parts:
            raise SourceError(f"its source-ref {ref!r} is neither s3://bucket/key nor a path below the manifest")
        return local_image(os.fspath(self._folder / path), extra=truth.extra)
