"""Answers of HTTP/1.1, read as their bytes come in: what RFC 9112 asks of a client that sends one request at a time.

Without input and output, so that any broken answer can be tried byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Answer", "AnswerReader", "HeaderMap", "NoHttpError"]

LARGEST_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""No answer of AWS's on the wire comes near it: a page of 1,000 keys has at most some megabytes."""

_LARGEST_HEAD_BYTES: Final = 64 * 1024
_VERSION: Final = b"HTTP/1."
_DIGITS: Final = frozenset("0123456789")
_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")
_LONGEST_SIZE: Final = 16
_INTERIM: Final = range(100, 200)
_WITHOUT_BODY: Final = frozenset({204, 304})
_GOOD: Final = range(200, 300)


class NoHttpError(Exception):
    """What came is no HTTP, or more than anybody would send."""


class HeaderMap(Mapping[str, str]):
    """Header lines, found in any case of their names; repeated ones are joined by commas."""

    __slots__ = ("_lines",)

    def __init__(self, lines: dict[str, str]) -> None:
        """`lines` have lower-case names."""
        self._lines = lines

    def __getitem__(self, name: str) -> str:
        return self._lines[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __repr__(self) -> str:
        return repr(self._lines)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status. `headers` are found in any case of their names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class AnswerReader:
    """Reads one answer after the other from one connection; `expect` begins each.

    Attributes:
        began: whether a byte of the answer has come.
        keeps_alive: whether the connection may carry another request; told once the answer is whole.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_headers",
        "_missing",
        "_size",
        "_status",
        "_tunnel",
        "began",
        "keeps_alive",
    )

    def __init__(self) -> None:
        self.expect()

    def expect(self, *, tunnel: bool = False) -> None:
        """A new answer; that to CONNECT, for a `tunnel`, has no body when it is good."""
        self.began = False
        self.keeps_alive = False
        self._tunnel = tunnel
        self._buffer = b""
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._missing: int | None = None
        self._chunked = False

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes; the answer, once it is whole.

        Raises:
            NoHttpError: it is none.
        """
        self.began = True
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if not self._status:
            rest = self._read_head(data)
            if rest is None:
                return None
            data = rest
        if self._chunked:
            return self._read_chunks(data)
        return self._read_body(data)

    def end(self) -> Answer | None:
        """The connection has ended: the answer if that is what ends it, None where it was cut."""
        if self._status and self._missing is None and not self._chunked:
            self.keeps_alive = False
            return self._whole()
        return None

    def _read_head(self, data: bytes) -> bytes | None:
        """Take the head; what follows it, or None while it isn't whole."""
        while True:
            if data[:7] != _VERSION[: len(data)]:
                raise NoHttpError("it doesn't begin like HTTP/1.1")
            end = data.find(b"\r\n\r\n")
            if (end if end >= 0 else len(data)) > _LARGEST_HEAD_BYTES:
                raise NoHttpError(f"its headers have more than {_LARGEST_HEAD_BYTES:,} bytes")
            if end < 0:
                self._buffer = data
                return None
            self._take_head(data[:end].decode("latin-1"))
            data = data[end + 4 :]
            if self._status not in _INTERIM:
                return data
            self._status = 0
            if not data:
                return None

    def _take_head(self, head: str) -> None:
        first, _, rest = head.partition("\r\n")
        version, _, status = first.partition(" ")
        code = status[:3]
        if len(code) != 3 or not _DIGITS.issuperset(code) or status[3:4].strip():  # noqa: PLR2004 - "200 OK", "200"
            raise NoHttpError(f"it begins with {first[:80]!r}")
        lines: dict[str, str] = {}
        for line in rest.split("\r\n") if rest else ():
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise NoHttpError(f"{line[:80]!r} is no header")
            name, value = name.lower(), value.strip(" \t")
            lines[name] = f"{lines[name]}, {value}" if name in lines else value
        self._status, self._headers = int(code), lines
        said = lines.get("connection", "").lower()
        self.keeps_alive = "close" not in said if version == "HTTP/1.1" else "keep-alive" in said
        self._frame(lines)

    def _frame(self, lines: dict[str, str]) -> None:
        """How the body's end is known."""
        coding, length = lines.get("transfer-encoding"), lines.get("content-length")
        if self._status in _WITHOUT_BODY or (self._tunnel and self._status in _GOOD):
            self._missing = 0
        elif coding is not None:
            if coding.lower() != "chunked":
                raise NoHttpError(f"its transfer coding is {coding[:40]!r}")
            self._chunked = True
            self.keeps_alive = self.keeps_alive and length is None
        elif length is not None:
            first, *others = (each.strip() for each in length.split(","))
            if not first or not _DIGITS.issuperset(first) or any(each != first for each in others):
                raise NoHttpError(f"its length is {length[:40]!r}")
            self._missing = int(first[:18])
            if self._missing > LARGEST_ANSWER_BYTES:
                raise NoHttpError(f"{self._missing:,} bytes are no answer of AWS's")

    def _read_body(self, data: bytes) -> Answer | None:
        if self._missing is None:  # until the connection ends
            self._keep(data)
            return None
        if len(data) > self._missing:
            data = data[: self._missing]
            self.keeps_alive = False  # nobody asked for more
        self._missing -= len(data)
        self._body.append(data)
        return None if self._missing else self._whole()

    def _read_chunks(self, data: bytes) -> Answer | None:
        """Each chunk is its size in hex, its bytes and a line's end; one of size 0 and trailers end it."""
        at = 0
        while True:
            if self._missing:
                part = data[at : at + self._missing]
                at += len(part)
                self._missing -= len(part)
                self._keep(part)
                if self._missing:
                    return None
            size_at = at + 2 if self._missing == 0 else at  # the line's end after the last chunk
            line_end = data.find(b"\r\n", size_at)
            if line_end < 0:
                if len(data) - at > _LARGEST_HEAD_BYTES:
                    raise NoHttpError("a chunk's size doesn't end")
                self._buffer = data[at:]
                return None
            if data[at:size_at] not in {b"", b"\r\n"}:
                raise NoHttpError("a chunk is longer than it said")
            size = data[size_at:line_end].partition(b";")[0].strip()
            if not 0 < len(size) <= _LONGEST_SIZE or not _HEX_DIGITS.issuperset(size):
                raise NoHttpError(f"a chunk has the size {size[:20]!r}")
            if size.strip(b"0"):
                self._missing = int(size, 16)
                at = line_end + 2
                continue
            ended = data.startswith(b"\r\n", line_end + 2)
            trailers = line_end + 2 if ended else data.find(b"\r\n\r\n", line_end + 2)
            if trailers < 0:
                if len(data) - at > _LARGEST_HEAD_BYTES:
                    raise NoHttpError("its trailers don't end")
                self._buffer = data[at:]
                return None
            if len(data) > trailers + (2 if ended else 4):
                self.keeps_alive = False
            return self._whole()

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > LARGEST_ANSWER_BYTES:
            raise NoHttpError(f"more than {LARGEST_ANSWER_BYTES:,} bytes are no answer of AWS's")
        self._body.append(part)

    def _whole(self) -> Answer:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Answer(self._status, HeaderMap(self._headers), body)
