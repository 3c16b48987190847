"""Manifest lines for Custom Labels, as its console writes them.

Source: Custom Labels guide, "Image-level labels in manifest files". Several labels of an image are several attributes.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson

__all__ = ["manifest_line"]


def manifest_line(
    uri: str, *, labels: tuple[str, ...], attributes: dict[str, Any] | None, created: dt.datetime
) -> bytes:
    """One JSON line without its end.

    Args:
        uri: `s3://bucket/key`, exactly.
        labels: of the whole image.
        attributes: what an existing line says; taken as it is, instead of `labels`.
        created: when the labels were given.
    """
    if attributes is not None:
        return orjson.dumps({"source-ref": uri} | attributes)
    line: dict[str, Any] = {"source-ref": uri}
    for number, label in enumerate(labels):
        name = f"label-{number}"
        line[name] = 1
        line[f"{name}-metadata"] = {
            "class-name": label,
            "confidence": 1,
            "type": "groundtruth/image-classification",
            "job-name": f"labeling-job/{name}",
            "human-annotated": "yes",
            "creation-date": created.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds"),
        }
    return orjson.dumps(line)
