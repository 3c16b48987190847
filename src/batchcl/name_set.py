"""A set of names in 16 bytes each, which never takes one name for another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

__all__ = ["DIGEST_BYTES", "NameSet", "digests_of"]

DIGEST_BYTES: Final = 16
_BUCKETS: Final = 65_536


class NameSet:
    """A growing set of names, each kept as 128 bits of BLAKE2.

    That any two of 10 million names have the same digest has a probability of 10^-25: a name that is found was added.

    It is a hash table whose buckets are byte strings, chosen by the first two bytes of a digest; Python's own sets take
    a hundred bytes a name. With 10 million names a bucket holds 150, and to search it costs no more than the digest.
    """

    def __init__(self) -> None:
        self._buckets = [b""] * _BUCKETS
        self._count = 0

    def update(self, names: Iterable[str | bytes]) -> None:
        """Add `names`; bytes are a name's UTF-8. Blocks for about a microsecond each."""
        self.add(digests_of(names))

    def add(self, digests: bytes) -> None:
        """Add the names that have these digests, as from `digests_of`."""
        for at in range(0, len(digests), DIGEST_BYTES):
            digest = digests[at : at + DIGEST_BYTES]
            bucket = digest[0] << 8 | digest[1]
            if not _holds(self._buckets[bucket], digest):
                self._buckets[bucket] += digest
                self._count += 1

    def __contains__(self, name: str | bytes) -> bool:
        digest = _digest(name)
        return _holds(self._buckets[digest[0] << 8 | digest[1]], digest)

    def __len__(self) -> int:
        return self._count


def digests_of(names: Iterable[str | bytes]) -> bytes:
    """16 bytes for each of `names`, one after the other."""
    return b"".join(map(_digest, names))


def _digest(name: str | bytes) -> bytes:
    data = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _holds(bucket: bytes, digest: bytes) -> bool:
    at = bucket.find(digest)
    while at % DIGEST_BYTES and at >= 0:  # the end of one digest and the beginning of the next
        at = bucket.find(digest, at + 1)
    return at >= 0
