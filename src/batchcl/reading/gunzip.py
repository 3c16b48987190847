"""A gzip file as bytes that can be read from anywhere in them, in the memory of some windows.

Gzip has no index, so what lies before has to be decompressed too. The state of the decompressor is kept every so often
(zlib's `inflateCopy`, some 40 KB), and one window of what came last: whoever reads forwards decompresses everything
once, and whoever goes back decompresses what lies behind the state before it.
"""

from __future__ import annotations

import threading
import zlib
from typing import Any, Final

from batchcl.reading.blobs import Blob

__all__ = ["CutError", "GrowsError", "Gunzipped", "is_gzip"]

MAX_EXPANSION: Final = 250
"""Images hardly shrink; a file that grows more than this is made to keep machines busy."""

_EXPANSION_FROM_BYTES: Final = 64 * 1024 * 1024
_WINDOW_BYTES: Final = 8 * 1024 * 1024
_FEED_BYTES: Final = 32 * 1024
_STEP_BYTES: Final = 1024 * 1024
_FIRST_SPACING_BYTES: Final = 8 * 1024 * 1024
_MOST_STATES: Final = 64
_GZIP: Final = 16 + zlib.MAX_WBITS
_MAGIC: Final = b"\x1f\x8b"


class CutError(EOFError):
    """The file ends in the middle."""


class GrowsError(Exception):
    """It grows like a decompression bomb."""


def is_gzip(start: bytes) -> bool:
    """Whether a file that begins so is a gzip file."""
    return start.startswith(_MAGIC)


class Gunzipped:
    """The decompressed bytes of a gzip `blob`, which may have several members. See `Blob`.

    Its `read` also raises `CutError`, `GrowsError`, and `zlib.error` where the file is damaged.
    """

    block_bytes = 64 * 1024

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._lock = threading.Lock()
        self._block = b""
        self._block_at = 0
        self._begin = self._taken = 0
        self._window = bytearray()
        self._spacing = _FIRST_SPACING_BYTES
        self._states: list[tuple[int, int, Any]] = [(0, 0, _inflater())]
        self._rewind(0)

    def read(self, offset: int, size: int) -> bytes:
        """As `Blob` has it; one thread at a time, the others wait."""
        with self._lock:
            if offset < self._begin:
                self._rewind(offset)
            while self._end < offset + size and self._step(keep_from=offset):
                pass
            begin = offset - self._begin
            return bytes(self._window[max(begin, 0) : begin + size])

    @property
    def _end(self) -> int:
        return self._begin + len(self._window)

    def _rewind(self, offset: int) -> None:
        """Go back to the last state at or before `offset`."""
        at, self._taken, state = next(each for each in reversed(self._states) if each[0] <= offset)
        self._inflater = state.copy()
        self._window = bytearray()
        self._begin = at
        self._is_over = False

    def _step(self, *, keep_from: int) -> bool:
        """Decompress some more; False at the end."""
        if self._is_over:
            return False
        data = self._compressed()
        if self._inflater.eof:
            data = data.lstrip(b"\0") if data else data  # tapes are padded, and gzip passes over it
            if not data:
                return self._next_block_or_end()
            self._taken += self._ahead() - len(data)
            self._inflater = _inflater()
        if not data:
            raise CutError(f"its gzip stream ends in the middle, at byte {self._taken:,}")
        found = self._inflater.decompress(data, _STEP_BYTES)
        self._taken += len(data) - len(self._inflater.unconsumed_tail) - len(self._inflater.unused_data)
        self._window += found
        if self._end > _EXPANSION_FROM_BYTES and self._end > MAX_EXPANSION * self._taken:
            raise GrowsError(f"it grows to more than {MAX_EXPANSION} times its size when it is decompressed")
        self._forget(keep_from)
        self._remember()
        return True

    def _ahead(self) -> int:
        """How much of the file is at hand behind what was taken, at most a feed."""
        return min(self._block_at + len(self._block) - self._taken, _FEED_BYTES)

    def _compressed(self) -> bytes:
        """The next bytes of the file; none at its end."""
        begin = self._taken - self._block_at
        if not 0 <= begin < len(self._block):
            self._block_at, begin = self._taken, 0
            self._block = self._blob.read(self._taken, max(self._blob.block_bytes, _FEED_BYTES))
        return self._block[begin : begin + _FEED_BYTES]

    def _next_block_or_end(self) -> bool:
        """Behind a member there is nothing but padding so far."""
        self._taken += self._ahead()
        self._is_over = not self._compressed()
        return not self._is_over

    def _forget(self, keep_from: int) -> None:
        """Drop what lies a window back, now and then rather than each time."""
        if len(self._window) > 2 * _WINDOW_BYTES:
            drop = min(max(keep_from - self._begin, 0), len(self._window) - _WINDOW_BYTES)
            if drop > 0:
                del self._window[:drop]
                self._begin += drop

    def _remember(self) -> None:
        if self._end < self._states[-1][0] + self._spacing or self._inflater.eof:
            return
        self._states.append((self._end, self._taken, self._inflater.copy()))
        if len(self._states) > _MOST_STATES:
            self._states[1:] = self._states[2::2]
            self._spacing *= 2


def _inflater() -> Any:
    return zlib.decompressobj(_GZIP)
