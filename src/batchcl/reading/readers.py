"""The reader of a run: one for all kinds of places."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from batchcl.reading.base import ImageReader
from batchcl.reading.files import FileReader

__all__ = ["open_reader"]


@asynccontextmanager
async def open_reader() -> AsyncIterator[ImageReader]:
    """A reader of every image that travels as bytes; what it opened is closed at the end of the block."""
    yield FileReader()
