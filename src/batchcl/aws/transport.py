"""The ways in which calls travel."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Transport"]


class Transport(StrEnum):
    """How DetectCustomLabels and ListObjectsV2 travel."""

    WIRE = "wire"
    AIOBOTO3 = "aioboto3"
