"""What a source may be."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["SourceKind"]


class SourceKind(StrEnum):
    """What `--source-kind` may say."""

    PREFIX = "prefix"
    DIRECTORY = "directory"
    KEYS = "keys"
    MANIFEST = "manifest"
    IMAGE = "image"
    INVENTORY = "inventory"
    BATCH_CSV = "batch-csv"
    LABEL_CSV = "label-csv"
    JSON_LINES = "json-lines"
    TABLE = "table"
    TAR = "tar"
