"""How calls travel. A module of its own, as the command line offers the choice before it loads the SDK."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Transport"]


class Transport(StrEnum):
    """How DetectCustomLabels and ListObjectsV2 travel: signed and sent by `http`, or by the SDK."""

    WIRE = "wire"
    AIOBOTO3 = "aioboto3"
