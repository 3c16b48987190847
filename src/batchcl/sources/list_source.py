"""List files of any format as a source: checked once before any call, then read in pages.

A format provides its files as `ListPart`s, which yield `ListChunk`s. This module handles what all formats share: bad
lines, duplicates, resuming in the middle of a list, and detecting that a list has changed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import anyio.to_thread
import orjson
import polars as pl

from batchcl.concurrency import gather
from batchcl.cores import usable_cores
from batchcl.errors import ErrorCode, SourceError
from batchcl.images import ImageRef, Position
from batchcl.sources.base import NO_BAD_LABELS, PAGE, BadLabels, BadLine, SourceCheck, image_key
from batchcl.sources.deduplication import NO_NAMES, HashLog, HashSet

__all__ = ["FrameChunk", "ImageChunk", "ListChunk", "ListPart", "ListSource"]

BAD_LINES_SHOWN: Final = 100
_MAX_WORKERS: Final = 4
_VERSION_SUFFIX: Final = r"(?s)\x00.*"


class ListChunk(Protocol):
    """Consecutive lines of a list file.

    Attributes:
        lines: number of lines that aren't blank.
        bad: lines that don't name an image.
        ignored: lines that name something other than an image to score: kind → count.
        bad_labels: images with an unusable label, which are scored nevertheless.
    """

    @property
    def lines(self) -> int: ...  # noqa: D102 - described in the class
    @property
    def bad(self) -> Sequence[BadLine]: ...  # noqa: D102
    @property
    def ignored(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def bad_labels(self) -> BadLabels: ...  # noqa: D102

    def __len__(self) -> int:
        """Number of images in the chunk."""
        ...

    def names(self) -> pl.Series:
        """The `image_key` of each image."""
        ...

    def buckets(self) -> set[str]:
        """The buckets of the images; empty for local files."""
        ...

    def images(self, begin: int, end: int) -> list[ImageRef]:
        """The images from `begin` up to, but not including, `end`."""
        ...


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """A chunk of a list that is parsed line by line."""

    parsed: Sequence[ImageRef]
    bad: Sequence[BadLine] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    bad_labels: BadLabels = NO_BAD_LABELS

    @property
    def lines(self) -> int:
        """See `ListChunk`."""
        return len(self.parsed) + len(self.bad) + sum(self.ignored.values())

    def __len__(self) -> int:
        return len(self.parsed)

    def names(self) -> pl.Series:
        """See `ListChunk`."""
        return pl.Series([image_key(image) for image in self.parsed], dtype=pl.String)

    def buckets(self) -> set[str]:
        """See `ListChunk`."""
        return {image.bucket for image in self.parsed}

    def images(self, begin: int, end: int) -> list[ImageRef]:
        """See `ListChunk`."""
        return list(self.parsed[begin:end])


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """A chunk of a columnar list of objects in S3.

    `frame` has the columns `bucket` and `key`, and optionally `version_id`, `etag`, `size_bytes`, `last_modified`,
    `extra` and `any_extension`, with the types of the fields of `ImageRef`.
    """

    frame: pl.DataFrame
    lines: int
    bad: Sequence[BadLine] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    bad_labels: BadLabels = NO_BAD_LABELS

    def __len__(self) -> int:
        return self.frame.height

    def names(self) -> pl.Series:
        """See `ListChunk`."""
        uri = pl.concat_str(pl.lit("s3://"), "bucket", pl.lit("/"), "key")
        if "version_id" in self.frame.columns:
            versioned = pl.concat_str(uri, pl.lit("\0"), "version_id")
            uri = pl.when(pl.col("version_id").is_null()).then(uri).otherwise(versioned)
        return self.frame.select(uri.alias("name"))["name"]

    def buckets(self) -> set[str]:
        """See `ListChunk`."""
        return set(self.frame["bucket"].unique())

    def images(self, begin: int, end: int) -> list[ImageRef]:
        """See `ListChunk`."""
        part = self.frame.slice(begin, end - begin)
        columns = {name: part[name].to_list() for name in part.columns}
        nothing = [None] * part.height
        return [
            ImageRef(
                uri=f"s3://{bucket}/{key}",
                bucket=bucket,
                key=key,
                version_id=version_id,
                etag=etag,
                size_bytes=size_bytes,
                last_modified=last_modified,
                extra=extra,
                any_extension=bool(any_extension),
            )
            for bucket, key, version_id, etag, size_bytes, last_modified, extra, any_extension in zip(
                columns["bucket"],
                columns["key"],
                *(
                    columns.get(name, nothing)
                    for name in ("version_id", "etag", "size_bytes", "last_modified", "extra", "any_extension")
                ),
                strict=True,
            )
        ]


class ListPart(Protocol):
    """A file of a list. Reading it again yields the same chunks."""

    @property
    def name(self) -> str:
        """The file's name in messages."""
        ...

    def chunks(self) -> Iterator[ListChunk]:
        """The file from its start, in order. Blocks. Raises `SourceError` if it can't be read at all."""
        ...


@dataclass(frozen=True, slots=True)
class _PartSummary:
    """The result of checking one file."""

    images: int
    lines: int
    buckets: frozenset[str]
    bad: tuple[BadLine, ...]
    bad_count: int
    ignored: Mapping[str, int]
    digest: str
    bad_labels: BadLabels = NO_BAD_LABELS


class ListSource:
    """The images that list files name, file by file.

    A bad line is an error; with `skip_bad_lines` it is skipped and reported. Memory is bounded by one chunk for each
    file that is read concurrently.
    """

    exhaustive = False

    def __init__(
        self, description: str, parts: Sequence[ListPart], *, skip_bad_lines: bool = False, is_explicit: bool = True
    ) -> None:
        self.is_explicit = is_explicit
        self.description = description
        self._parts = parts
        self._skip_bad_lines = skip_bad_lines
        self._summaries: list[_PartSummary | None] = [None] * len(parts)
        self.repeats = NO_NAMES
        self._names: HashSet | None = None

    async def check(self) -> SourceCheck:
        """Read the whole list once, several files at a time. Raises `SourceError` for the first bad line found."""
        log = HashLog()

        async def check_part(number: int) -> _PartSummary:
            return await anyio.to_thread.run_sync(self._check_part, number, log, abandon_on_cancel=True)

        workers = min(_MAX_WORKERS, usable_cores())
        summaries = await gather(check_part, range(len(self._parts)), at_once=workers)
        self._summaries[:] = summaries
        self.repeats = await anyio.to_thread.run_sync(log.repeats)
        return _source_check(summaries)

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """See `Source`; skips bad lines, which `check` has counted."""
        pages = self._pages(0 if after is None else after.count)
        while page := await anyio.to_thread.run_sync(lambda: next(pages, None), abandon_on_cancel=True):
            yield page

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """See `Source`. The first call reads the list again and then keeps 8 bytes per image of the list."""
        return await anyio.to_thread.run_sync(self._may_name, images)

    def _may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        if self._names is None:
            self._names = HashSet.of(
                chunk.names().str.replace(_VERSION_SUFFIX, "") for part in self._parts for chunk in part.chunks()
            )
        may_name = [False] * len(images)
        uris = [image.uri.partition("\0")[0] for image in images]
        for at in self._names.positions(pl.Series(uris, dtype=pl.String)):
            may_name[at] = True
        return may_name

    def _check_part(self, number: int, log: HashLog) -> _PartSummary:
        part = self._parts[number]
        file = part.name if len(self._parts) > 1 else ""
        total = _PartSummary(0, 0, frozenset(), (), 0, Counter(), "")
        content = hashlib.sha256()
        for chunk in part.chunks():
            if chunk.bad and not self._skip_bad_lines:
                bad = replace(chunk.bad[0], file=file)
                advice = "the line, or skip such lines" if bad.number else "the file, or skip what can't be read"
                raise SourceError(f"{bad.place(self.description)}: {bad.reason}; fix {advice} with --skip-bad-lines")
            names = chunk.names()
            log.add(names)
            content.update(orjson.dumps(names.to_list())[1:-1] + b",")
            total = _PartSummary(
                images=total.images + len(chunk),
                lines=total.lines + chunk.lines,
                buckets=total.buckets | chunk.buckets(),
                bad=total.bad + tuple(replace(bad, file=file) for bad in chunk.bad[: BAD_LINES_SHOWN - len(total.bad)]),
                bad_count=total.bad_count + len(chunk.bad),
                ignored=Counter(total.ignored) + Counter(chunk.ignored),
                digest="",
                bad_labels=total.bad_labels + chunk.bad_labels,
            )
        return replace(total, digest=content.hexdigest())

    def _pages(self, skip: int) -> Iterator[list[ImageRef]]:
        """Pages of the images after the first `skip`, compared with the number of images that `check` counted."""
        summaries = [summary for summary in self._summaries if summary is not None]
        expected = sum(summary.images for summary in summaries)
        count = skip
        for page in self._read_pages(skip):
            count += len(page)
            yield page
        if len(summaries) == len(self._parts) and count != expected:
            raise SourceError(
                f"{self.description} changed while it was read: it had {expected:,} images and now has {count:,}; "
                "don't change it during a run, and start a new run",
                code=ErrorCode.SOURCE_CHANGED,
            )

    def _read_pages(self, skip: int) -> Iterator[list[ImageRef]]:
        """Pages of the images after the first `skip`; files that are skipped entirely are not opened."""
        for part, summary in zip(self._parts, self._summaries, strict=True):
            if summary is not None and skip >= summary.images:
                skip -= summary.images
                continue
            for chunk in part.chunks():
                for begin in range(min(skip, len(chunk)), len(chunk), PAGE):
                    yield chunk.images(begin, min(begin + PAGE, len(chunk)))
                skip = max(skip - len(chunk), 0)


def _source_check(summaries: Sequence[_PartSummary]) -> SourceCheck:
    digests = "".join(summary.digest for summary in summaries)
    ignored: Counter[str] = Counter()
    for summary in summaries:
        ignored.update(summary.ignored)
    return SourceCheck(
        buckets=frozenset[str]().union(*(summary.buckets for summary in summaries)) - {""},
        bad_lines=tuple(bad for summary in summaries for bad in summary.bad)[:BAD_LINES_SHOWN],
        bad_count=sum(summary.bad_count for summary in summaries),
        digest=hashlib.sha256(digests.encode()).hexdigest()[:16],
        lines=sum(summary.lines for summary in summaries),
        ignored=dict(ignored),
        bad_labels=sum((summary.bad_labels for summary in summaries), NO_BAD_LABELS),
    )
