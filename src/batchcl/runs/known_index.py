"""What the small files of a table were read to, in one object, so that a thousand nights aren't a thousand reads.

A hint, never the truth: an entry counts for the file that the listing shows under the same path, size and entity tag,
and for no other. Files without an entry are read, and entries without a file are dropped. An index that is missing,
damaged, or made from other rows counts nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Final

import anyio.to_thread
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.runs.layout import known_path
from batchcl.runs.store import Store, StoredFile

__all__ = ["read_index", "write_index"]

_FORMAT: Final = b"batchcl known 1\n"
_SUM_BYTES: Final = 32
_COLUMNS: Final = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("digests", pa.large_binary(), nullable=False),
    ]
)


async def read_index(store: Store, about: str) -> dict[StoredFile, bytes]:
    """File → the digests of its rows. `about` says from which rows: two that differ have indexes of their own."""
    data = await store.get(known_path(about))
    return {} if data is None else await anyio.to_thread.run_sync(_decode, data, about)


async def write_index(store: Store, about: str, digests: Mapping[StoredFile, bytes]) -> None:
    """Keep `digests` for the next run; the last writer wins. Files without an entity tag are left out."""
    await store.put(known_path(about), await anyio.to_thread.run_sync(_encode, digests, about))


def _encode(digests: Mapping[StoredFile, bytes], about: str) -> bytes:
    known = {file: found for file, found in digests.items() if file.etag is not None}
    columns = [
        [file.path for file in known],
        [file.size_bytes for file in known],
        [file.etag for file in known],
        list(known.values()),
    ]
    table = pa.table([pa.array(*column) for column in zip(columns, _COLUMNS.types, strict=True)], schema=_COLUMNS)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    body = sink.getvalue()
    return _FORMAT + _checksum(body, about) + body


def _decode(data: bytes, about: str) -> dict[StoredFile, bytes]:
    begin = len(_FORMAT) + _SUM_BYTES
    body = data[begin:]
    if data[:begin] != _FORMAT + _checksum(body, about):
        return {}
    columns = pq.read_table(io.BytesIO(body), schema=_COLUMNS).to_pydict()
    files = map(StoredFile, columns["path"], columns["size_bytes"], columns["etag"])
    return dict(zip(files, columns["digests"], strict=True))


def _checksum(body: bytes, about: str) -> bytes:
    return hashlib.blake2b(body, digest_size=_SUM_BYTES, key=hashlib.sha256(about.encode()).digest()).digest()
