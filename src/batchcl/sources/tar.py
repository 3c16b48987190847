"""The members of a tar archive: where the bytes of each one lie, told from the headers alone.

POSIX ustar and pax, GNU's and the seventh edition's formats (tar(5) of libarchive, "pax Interchange Format" in POSIX's
page on pax). The standard library decodes a header block; it is not used for the walk, as it takes a damaged header
for the end of the archive, and reads headers of any length into memory. Names are only names: nothing is unpacked.
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
"""Longer than the longest name by far."""

_ZERO: Final = bytes(BLOCK)
_EXTENDED_AT: Final = 482
_MORE_AT: Final = 504
_PAX: Final = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
_GNU_LONG: Final = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
_LARGEST: Final = 1 << 62

Read = Callable[[int, int], bytes]
"""So many bytes from an offset on; fewer at the end."""


class TarError(Exception):
    """The archive is cut or damaged, so that what follows can't be found."""


class MemberKind(StrEnum):
    """What a member is; the values are what they are counted by."""

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
        name: as the archive has it; bytes that are no UTF-8 as surrogates.
        kind: what it is.
        offset: of its first byte in the archive.
        size: of its bytes.
    """

    name: str
    kind: MemberKind
    offset: int
    size: int


@dataclass(slots=True)
class _HeaderFields:
    """What headers in front of a member's own say of it."""

    path: str | None = None
    size: int | None = None
    is_sparse: bool = False


@dataclass(slots=True)
class _Walk:
    read: Read
    at: int = 0
    count: int = 0
    always: _HeaderFields = field(default_factory=_HeaderFields)
    said: _HeaderFields = field(default_factory=_HeaderFields)


def is_tar(start: bytes) -> bool:
    """Whether a file that begins so is a tar archive: its first header has the right checksum."""
    if len(start) < BLOCK or start[:1] == b"\0":
        return False
    try:
        tarfile.TarInfo.frombuf(start[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def walk(read: Read) -> Iterator[Member]:
    """Every member in order, with each whose bytes are there in full.

    Raises:
        TarError: the archive is cut or damaged here, or has no end; all members before have come.
    """
    state = _Walk(read)
    held: Member | None = None
    while True:
        block = read(state.at, BLOCK)
        if held is not None:
            if not block and held.size and not read(held.offset + held.size - 1, 1):
                raise TarError(f"it is cut in the middle of {held.name!r}, its member {state.count}")
            yield held
            held = None
        if block == _ZERO:
            return
        if len(block) < BLOCK:
            raise TarError(
                f"it is cut at byte {state.at + len(block):,}, behind {state.count} members: it has no mark of its end"
            )
        held = _member(state, block)


def _member(state: _Walk, block: bytes) -> Member | None:
    """The member of a header; None for a header that only tells of the next one."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damaged(state, str(error)) from error
    state.at += BLOCK
    if info.type in _PAX | _GNU_LONG | {tarfile.XGLTYPE}:
        _take_header(state, info)
        return None
    name = state.said.path or state.always.path or info.name
    size = state.said.size if state.said.size is not None else state.always.size
    is_sparse = state.said.is_sparse or info.type == tarfile.GNUTYPE_SPARSE
    state.said = _HeaderFields()
    if info.type == tarfile.GNUTYPE_SPARSE:
        _pass_sparse_headers(state, block)
    size = info.size if size is None else size
    if not 0 <= size < _LARGEST:
        raise _damaged(state, f"the size {size:,}")
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


def _take_header(state: _Walk, info: tarfile.TarInfo) -> None:
    """A long name, or pax's records."""
    if not 0 <= info.size <= MAX_HEADER_BYTES:
        raise _damaged(state, f"a header of {info.size:,} bytes, and {MAX_HEADER_BYTES:,} are read")
    data = state.read(state.at, info.size)
    if len(data) < info.size:
        raise TarError(f"it is cut at byte {state.at + len(data):,}, behind {state.count} members")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        state.said.path = _text(data.partition(b"\0")[0])
    elif info.type not in _GNU_LONG:
        _take_records(state, data, state.always if info.type == tarfile.XGLTYPE else state.said)
    state.at += _padded(info.size)


def _take_records(state: _Walk, data: bytes, said: _HeaderFields) -> None:
    """Pax's records, each of which is `LENGTH KEYWORD=VALUE` and a line's end."""
    while data.strip(b"\0"):
        digits, space, _ = data[:21].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        keyword, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not space or not equals or length > len(data) or not record.endswith(b"\n"):
            raise _damaged(state, "a pax record that is none")
        if keyword == b"path":
            said.path = _text(value) or None
        elif keyword == b"size":
            if not value.isdigit():
                raise _damaged(state, f"the size {value[:40]!r}")
            said.size = int(value[:20])
        elif keyword.startswith(b"GNU.sparse."):
            said.is_sparse = True
        data = data[length:]


def _pass_sparse_headers(state: _Walk, block: bytes) -> None:
    """Blocks that go on with the map of an old GNU sparse file."""
    more = block[_EXTENDED_AT]
    while more:
        block = state.read(state.at, BLOCK)
        if len(block) < BLOCK:
            raise TarError(f"it is cut at byte {state.at + len(block):,}, behind {state.count} members")
        state.at += BLOCK
        more = block[_MORE_AT]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _damaged(state: _Walk, what: str) -> TarError:
    return TarError(f"it is damaged at byte {state.at:,}, behind {state.count} members: {what}")
