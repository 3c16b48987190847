"""The members of a tar archive with the offsets of their content, from the headers alone.

Reads POSIX ustar and pax, GNU and Unix V7 archives (tar(5) of libarchive; "pax Interchange Format" in POSIX, pax).
`tarfile` decodes header blocks, but does not iterate over them: it takes a corrupt header for the end of the archive
and reads headers of any length into memory. Nothing is unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

__all__ = ["BLOCK", "Member", "MemberKind", "TarError", "is_tar", "walk"]

BLOCK: Final = 512
MAX_HEADER_BYTES: Final = 1024 * 1024
"""Largest extended header that is read; names are much shorter."""

_ZERO: Final = bytes(BLOCK)
_SPARSE_FLAG_OFFSET: Final = 482
_SPARSE_MORE_OFFSET: Final = 504
_PAX: Final = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
_GNU_LONG: Final = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
_MAX_SIZE: Final = 1 << 62

Read = Callable[[int, int], bytes]
"""(offset, size) → `size` bytes from `offset` on; fewer at the end."""


class TarError(Exception):
    """The archive is truncated or corrupt, so that the following members can't be found."""


class MemberKind(StrEnum):
    """The type of a member; the values name it in counts of excluded members."""

    FILE = "files"
    FOLDER = "folders"
    LINK = "links"
    DEVICE = "devices and pipes"
    SPARSE = "sparse files"
    OTHER = "members of unknown types"


@dataclass(frozen=True, slots=True)
class Member:
    """One member.

    Attributes:
        name: exactly as in the archive; bytes that are not UTF-8 are surrogates.
        kind: its type.
        offset: of its content in the archive, in bytes.
        size: of its content, in bytes.
    """

    name: str
    kind: MemberKind
    offset: int
    size: int


@dataclass(slots=True)
class _HeaderFields:
    """Fields of a member from extended headers, which precede its own header."""

    path: str | None = None
    size: int | None = None
    is_sparse: bool = False


@dataclass(slots=True)
class _WalkState:
    read: Read
    at: int = 0
    count: int = 0
    for_all: _HeaderFields = field(default_factory=_HeaderFields)
    for_next: _HeaderFields = field(default_factory=_HeaderFields)


def is_tar(start: bytes) -> bool:
    """Whether a file that begins with `start` is a tar archive: its first header has a valid checksum."""
    if len(start) < BLOCK or start[:1] == b"\0":
        return False
    try:
        tarfile.TarInfo.frombuf(start[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def walk(read: Read) -> Iterator[Member]:
    """Every member whose content is complete, in order.

    Raises:
        TarError: the archive is truncated or corrupt, after all complete members have been yielded.
    """
    state = _WalkState(read)
    member: Member | None = None
    while True:
        block = read(state.at, BLOCK)
        if member is not None:
            if not block and member.size and not read(member.offset + member.size - 1, 1):
                raise TarError(f"the archive is truncated in member {state.count}, {member.name!r}")
            yield member
            member = None
        if block == _ZERO:
            return
        if len(block) < BLOCK:
            raise _truncated(state, block, ": it has no end-of-archive marker")
        member = _member(state, block)


def _member(state: _WalkState, block: bytes) -> Member | None:
    """The member of a header; None for an extended header."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _corrupt(state, str(error)) from error
    state.at += BLOCK
    if info.type in _PAX | _GNU_LONG | {tarfile.XGLTYPE}:
        _read_extended_header(state, info)
        return None
    name = state.for_next.path or state.for_all.path or info.name
    size = state.for_next.size if state.for_next.size is not None else state.for_all.size
    is_sparse = state.for_next.is_sparse or info.type == tarfile.GNUTYPE_SPARSE
    state.for_next = _HeaderFields()
    if info.type == tarfile.GNUTYPE_SPARSE:
        _skip_sparse_headers(state, block)
    size = info.size if size is None else size
    if not 0 <= size < _MAX_SIZE:
        raise _corrupt(state, f"invalid size {size:,}")
    kind = MemberKind.SPARSE if is_sparse else _kind(info)
    offset = state.at
    if info.isreg() or kind is MemberKind.OTHER:
        state.at += _padded(size)
    else:
        size = 0
    state.count += 1
    return Member(name, kind, offset, size)


def _kind(info: tarfile.TarInfo) -> MemberKind:
    if info.isreg():
        return MemberKind.FILE
    if info.isdir():
        return MemberKind.FOLDER
    if info.islnk() or info.issym():
        return MemberKind.LINK
    return MemberKind.DEVICE if info.isdev() else MemberKind.OTHER


def _read_extended_header(state: _WalkState, info: tarfile.TarInfo) -> None:
    """Read a GNU long name or pax records."""
    if not 0 <= info.size <= MAX_HEADER_BYTES:
        raise _corrupt(state, f"a header of {info.size:,} bytes, at most {MAX_HEADER_BYTES:,} are supported")
    data = state.read(state.at, info.size)
    if len(data) < info.size:
        raise _truncated(state, data)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        state.for_next.path = _text(data.partition(b"\0")[0])
    elif info.type not in _GNU_LONG:
        _read_pax_records(state, data, state.for_all if info.type == tarfile.XGLTYPE else state.for_next)
    state.at += _padded(info.size)


def _read_pax_records(state: _WalkState, data: bytes, fields: _HeaderFields) -> None:
    """Read pax records, lines of `LENGTH KEYWORD=VALUE`, into `fields`."""
    while data.strip(b"\0"):
        digits, space, _ = data[:21].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        keyword, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not space or not equals or length > len(data) or not record.endswith(b"\n"):
            raise _corrupt(state, "invalid pax record")
        if keyword == b"path":
            fields.path = _text(value) or None
        elif keyword == b"size":
            if not value.isdigit():
                raise _corrupt(state, f"invalid size {value[:40]!r}")
            fields.size = int(value[:20])
        elif keyword.startswith(b"GNU.sparse."):
            fields.is_sparse = True
        data = data[length:]


def _skip_sparse_headers(state: _WalkState, block: bytes) -> None:
    """Skip the continuation blocks of an old GNU sparse header."""
    more = block[_SPARSE_FLAG_OFFSET]
    while more:
        block = state.read(state.at, BLOCK)
        if len(block) < BLOCK:
            raise _truncated(state, block)
        state.at += BLOCK
        more = block[_SPARSE_MORE_OFFSET]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _truncated(state: _WalkState, data: bytes, what: str = "") -> TarError:
    return TarError(f"the archive is truncated at byte {state.at + len(data):,}, after {state.count} members{what}")


def _corrupt(state: _WalkState, what: str) -> TarError:
    return TarError(f"the archive is corrupt at byte {state.at:,}, after {state.count} members: {what}")
