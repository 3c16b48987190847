"""Text files, line by line and as bytes: local, from S3, or from standard input.

Standard input and S3 objects are first copied to a temporary file, as a source is read twice: once to check it before
a call is spent, once to score it.
"""

from __future__ import annotations

import codecs
import hashlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Final, TypeVar

import anyio.to_thread
import polars as pl
import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain
from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import PAGE, BadLine, Checked, Position, parse_s3_uri

__all__ = ["LineSource", "fetch_text", "first_line", "spool_pipe", "spool_stdin"]

MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""A manifest line with ten thousand boxes has about 1 MB; a longer line than this isn't one."""

_BAD_LINES_SHOWN: Final = 100
_DIGEST_BYTES: Final = 16
_COPY_BYTES: Final = 1024 * 1024

_T = TypeVar("_T")


def spool_stdin() -> Path:
    """Copy standard input to a temporary file. Blocks; the caller removes the file."""
    return _spool(lambda sink: shutil.copyfileobj(sys.stdin.buffer, sink))


def spool_pipe(path: Path) -> Path:
    """Copy a named pipe, such as the shell's `<(…)`, which can be read once only. Blocks; likewise."""
    with path.open("rb") as pipe:
        return _spool(lambda sink: shutil.copyfileobj(pipe, sink))


async def fetch_text(uri: str, aws: Aws, *, region: str) -> Path:
    """Copy the S3 object at `uri` to a temporary file, which the caller removes."""
    bucket, key = parse_s3_uri(uri)
    path = _spool(lambda _: None)
    try:
        async with aws.s3(region=region) as client, await anyio.open_file(path, "wb") as sink:
            answer = await client.get_object(Bucket=bucket, Key=key)
            while chunk := await answer["Body"].read(_COPY_BYTES):
                await sink.write(chunk)
    except (ClientError, BotoCoreError) as error:
        path.unlink()
        if isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404"}:
            raise SourceError(f"there is no {uri}; check the key") from error
        raise explain(error, f"reading {uri}", bucket) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def first_line(path: Path) -> bytes:
    """The first line that isn't blank, without its line end, cut at the longest allowed. Blocks."""
    with path.open("rb") as file:
        _skip_mark(file)
        while line := file.readline(MAX_LINE_BYTES + 1):
            if stripped := _strip(line):
                return stripped
    return b""


class LineSource:
    """A text file with one image a line; `parse` turns a line into its image or raises `SourceError`.

    Blank lines count for the numbering and are passed over. A bad line refuses the source, or is left out and
    reported with `skip_bad_lines`.
    """

    def __init__(
        self,
        description: str,
        path: Path,
        parse: Callable[[bytes], ImageRef],
        *,
        skip_bad_lines: bool = False,
    ) -> None:
        self.description = description
        self._path = path
        self._parse = parse
        self._skip_bad_lines = skip_bad_lines
        self._repeated_digests: frozenset[bytes] = frozenset()
        self._digests: frozenset[bytes] | None = None
        self.repeated = 0

    async def check(self) -> Checked:
        """Read the whole list once; raises `SourceError` for its first bad line unless those may be skipped."""
        return await anyio.to_thread.run_sync(self._check)

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The images in pages; bad lines and repeated images are left out, having been counted by `check`."""
        images = islice(self._images(), 0 if after is None else after.count, None)
        while page := await anyio.to_thread.run_sync(lambda: list(islice(images, PAGE))):
            yield page

    async def contains(self, image: ImageRef) -> bool:
        """Whether a line names `image`. The first call reads the list once more; then it costs 90 bytes a line."""
        if self._digests is None:
            self._digests = await anyio.to_thread.run_sync(lambda: frozenset(map(_digest, self._images())))
        return _digest(image) in self._digests

    def _images(self) -> Iterator[ImageRef]:
        seen: set[bytes] = set()
        for _, entry in self._entries():
            if not isinstance(entry, ImageRef):
                continue
            if self._repeated_digests and (digest := _digest(entry)) in self._repeated_digests:
                if digest in seen:
                    continue
                seen.add(digest)
            yield entry

    def _find_repeated(self, digests: bytes) -> None:
        """Remember which digests occur twice: few, where the list as a whole may be long."""
        count = len(digests) // _DIGEST_BYTES
        column = pl.from_arrow(
            pa.Array.from_buffers(pa.binary(_DIGEST_BYTES), count, [None, pa.py_buffer(digests)]).cast(pa.binary())
        )
        assert isinstance(column, pl.Series)
        repeated = column.value_counts().filter(pl.col("count") > 1)
        self.repeated = int(repeated["count"].sum()) - repeated.height
        self._repeated_digests = frozenset(repeated[column.name])

    def _check(self) -> Checked:
        digests = bytearray()
        buckets: set[str] = set()
        bad: list[BadLine] = []
        bad_count = 0
        for number, entry in self._entries():
            if isinstance(entry, ImageRef):
                buckets.add(entry.bucket)
                digests += _digest(entry)
                continue
            if not self._skip_bad_lines:
                raise SourceError(
                    f"{self.description} line {number}: {entry}; mend the line, or leave such lines out with "
                    "--skip-bad-lines"
                )
            bad_count += 1
            if len(bad) < _BAD_LINES_SHOWN:
                bad.append(BadLine(number, str(entry)))
        self._find_repeated(bytes(digests))
        return Checked(
            frozenset(buckets - {""}), tuple(bad), bad_count, digest=hashlib.sha256(digests).hexdigest()[:16]
        )

    def _entries(self) -> Iterator[tuple[int, ImageRef | SourceError]]:
        try:
            with self._path.open("rb") as file:
                _skip_mark(file)
                for number, line in _numbered(file):
                    yield number, self._entry(line)
        except OSError as error:
            raise SourceError(f"can't read {self.description}: {error.strerror}; check the path") from error

    def _entry(self, line: bytes) -> ImageRef | SourceError:
        if len(line) > MAX_LINE_BYTES:
            return SourceError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
        try:
            return self._parse(line)
        except SourceError as error:
            return error


def _digest(image: ImageRef) -> bytes:
    """What makes an image the same image, in 16 bytes: 128 bits of BLAKE2 don't collide in practice."""
    named = f"{image.uri}\0{image.version_id or ''}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(named, digest_size=_DIGEST_BYTES).digest()


def _numbered(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; the rest of an overlong one is passed over, so that memory stays bounded."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
            pass
        if stripped := _strip(line):
            yield number, stripped


def _skip_mark(file: IO[bytes]) -> None:
    """Pass over the byte order mark that Windows' editors write; it belongs to no key."""
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)


def _strip(line: bytes) -> bytes:
    """`line` without its line end; other white space may belong to a key."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _spool(fill: Callable[[IO[bytes]], _T]) -> Path:
    with tempfile.NamedTemporaryFile(prefix="batchcl-", delete=False) as sink:
        fill(sink)
    return Path(sink.name)
