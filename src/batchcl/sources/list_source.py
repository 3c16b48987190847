"""List files of any format as a source: looked at once before a call is spent, then read in pages.

A format provides its files as `ListPart`s, which yield `ListChunk`s. What all formats have in common is here: bad
lines, duplicate images, resuming a list where it stopped, and the check that it is still the same list.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import anyio.to_thread
import orjson
import polars as pl

from batchcl.concurrency import gather
from batchcl.errors import SourceError
from batchcl.images import ImageRef, Position
from batchcl.sources.base import NO_BAD_LABELS, PAGE, BadLabels, BadLine, SourceCheck, name_of
from batchcl.sources.repeats import NO_NAMES, HashLog, HashSet

__all__ = ["FrameChunk", "ImageChunk", "ListChunk", "ListPart", "ListSource"]

BAD_LINES_SHOWN: Final = 100
_MOST_WORKERS: Final = 4
_VERSION: Final = r"(?s)\x00.*"


class ListChunk(Protocol):
    """Some lines of a list file, in order.

    Attributes:
        lines: how many that aren't blank.
        bad: those that name no image.
        left_out: those that name something that is no image to score.
        bad_labels: those whose image can be scored, but a label of which can't be used.
    """

    @property
    def lines(self) -> int: ...  # noqa: D102 - the class tells
    @property
    def bad(self) -> Sequence[BadLine]: ...  # noqa: D102
    @property
    def left_out(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def bad_labels(self) -> BadLabels: ...  # noqa: D102

    def __len__(self) -> int:
        """Images in the chunk."""
        ...

    def names(self) -> pl.Series:
        """What makes each image the same image: its URI and version."""
        ...

    def buckets(self) -> set[str]:
        """The buckets of the images; an empty one for local files."""
        ...

    def images(self, begin: int, end: int) -> list[ImageRef]:
        """The images from `begin` up to, but not with, `end`."""
        ...


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """Images of a list whose lines are read one by one."""

    found: Sequence[ImageRef]
    bad: Sequence[BadLine] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad_labels: BadLabels = NO_BAD_LABELS

    @property
    def lines(self) -> int:
        """Images, bad lines and left out ones."""
        return len(self.found) + len(self.bad) + sum(self.left_out.values())

    def __len__(self) -> int:
        return len(self.found)

    def names(self) -> pl.Series:
        """As `ListChunk` has it."""
        return pl.Series([name_of(image) for image in self.found], dtype=pl.String)

    def buckets(self) -> set[str]:
        """As `ListChunk` has it."""
        return {image.bucket for image in self.found}

    def images(self, begin: int, end: int) -> list[ImageRef]:
        """As `ListChunk` has it."""
        return list(self.found[begin:end])


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """Images in S3 of a list that is read by columns.

    `frame` has the columns `bucket` and `key`, and may have `version_id`, `etag`, `size_bytes`, `last_modified`,
    `extra` and `any_name`, under the names and types of `ImageRef`.
    """

    frame: pl.DataFrame
    lines: int
    bad: Sequence[BadLine] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad_labels: BadLabels = NO_BAD_LABELS

    def __len__(self) -> int:
        return self.frame.height

    def names(self) -> pl.Series:
        """As `ListChunk` has it."""
        uri = pl.concat_str(pl.lit("s3://"), "bucket", pl.lit("/"), "key")
        if "version_id" in self.frame.columns:
            versioned = pl.concat_str(uri, pl.lit("\0"), "version_id")
            uri = pl.when(pl.col("version_id").is_null()).then(uri).otherwise(versioned)
        return self.frame.select(uri.alias("name"))["name"]

    def buckets(self) -> set[str]:
        """As `ListChunk` has it."""
        return set(self.frame["bucket"].unique())

    def images(self, begin: int, end: int) -> list[ImageRef]:
        """As `ListChunk` has it."""
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
                any_name=bool(any_name),
            )
            for bucket, key, version_id, etag, size_bytes, last_modified, extra, any_name in zip(
                columns["bucket"],
                columns["key"],
                *(
                    columns.get(name, nothing)
                    for name in ("version_id", "etag", "size_bytes", "last_modified", "extra", "any_name")
                ),
                strict=True,
            )
        ]


class ListPart(Protocol):
    """A file of a list. Reading it twice gives the same chunks."""

    @property
    def name(self) -> str:
        """The file as messages call it."""
        ...

    def chunks(self) -> Iterator[ListChunk]:
        """The file from its start, in order. Blocks. Raises `SourceError` where it can't be read at all."""
        ...


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a look at one file told."""

    images: int
    lines: int
    buckets: frozenset[str]
    bad: tuple[BadLine, ...]
    bad_count: int
    left_out: Mapping[str, int]
    digest: str
    bad_labels: BadLabels = NO_BAD_LABELS


class ListSource:
    """The images that list files name, file by file.

    A bad line refuses the source, or is left out and reported with `skip_bad_lines`. Memory is that of a chunk for each
    file that is read at once, however long the list.
    """

    exhaustive = False

    def __init__(
        self, description: str, parts: Sequence[ListPart], *, skip_bad_lines: bool = False, is_explicit: bool = True
    ) -> None:
        self.is_explicit = is_explicit
        self.description = description
        self._parts = parts
        self._skip_bad_lines = skip_bad_lines
        self._facts: list[_Facts | None] = [None] * len(parts)
        self.repeats = NO_NAMES
        self._names: HashSet | None = None

    async def check(self) -> SourceCheck:
        """Read the whole list once, several files at a time; raises `SourceError` for a bad line to be mended.

        Of several files with bad lines, the one is told that was found first.
        """
        log = HashLog()

        async def look(number: int) -> _Facts:
            return await anyio.to_thread.run_sync(self._look, number, log, abandon_on_cancel=True)

        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        facts = await gather(look, range(len(self._parts)), at_once=workers)
        self._facts[:] = facts
        self.repeats = await anyio.to_thread.run_sync(log.repeats)
        return self._checked(facts)

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        """The images in pages; bad lines are left out, having been counted by `check`."""
        pages = self._pages(0 if after is None else after.count)
        while page := await anyio.to_thread.run_sync(lambda: next(pages, None), abandon_on_cancel=True):
            yield page

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        """As `Source` has it. The first call reads the list once more; then it costs 8 bytes an image of the list."""
        return await anyio.to_thread.run_sync(self._may_name, images)

    def _may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        if self._names is None:
            self._names = HashSet.of(
                chunk.names().str.replace(_VERSION, "") for part in self._parts for chunk in part.chunks()
            )
        found = [False] * len(images)
        uris = (image.uri.partition("\0")[0] for image in images)
        for at in self._names.among(pl.Series(list(uris), dtype=pl.String)):
            found[at] = True
        return found

    def _look(self, number: int, log: HashLog) -> _Facts:
        part = self._parts[number]
        several = part.name if len(self._parts) > 1 else ""
        total = _Facts(0, 0, frozenset(), (), 0, Counter(), "")
        content = hashlib.sha256()
        for chunk in part.chunks():
            if chunk.bad and not self._skip_bad_lines:
                bad = replace(chunk.bad[0], file=several)
                what = "the line, or leave such lines" if bad.number else "the file, or leave what can't be read"
                raise SourceError(f"{bad.place(self.description)}: {bad.reason}; mend {what} out with --skip-bad-lines")
            names = chunk.names()
            log.add(names)
            content.update(orjson.dumps(names.to_list())[1:-1] + b",")
            room = BAD_LINES_SHOWN - len(total.bad)
            total = _Facts(
                images=total.images + len(chunk),
                lines=total.lines + chunk.lines,
                buckets=total.buckets | chunk.buckets(),
                bad=total.bad + tuple(replace(bad, file=several) for bad in chunk.bad[:room]),
                bad_count=total.bad_count + len(chunk.bad),
                left_out=Counter(total.left_out) + Counter(chunk.left_out),
                digest="",
                bad_labels=total.bad_labels + chunk.bad_labels,
            )
        return replace(total, digest=content.hexdigest())

    def _checked(self, facts: Sequence[_Facts]) -> SourceCheck:
        digests = "".join(each.digest for each in facts)
        left_out: Counter[str] = Counter()
        for each in facts:
            left_out.update(each.left_out)
        return SourceCheck(
            buckets=frozenset[str]().union(*(each.buckets for each in facts)) - {""},
            bad_lines=tuple(bad for each in facts for bad in each.bad)[:BAD_LINES_SHOWN],
            bad_count=sum(each.bad_count for each in facts),
            digest=hashlib.sha256(digests.encode()).hexdigest()[:16],
            lines=sum(each.lines for each in facts),
            left_out=dict(left_out),
            bad_labels=sum((each.bad_labels for each in facts), NO_BAD_LABELS),
        )

    def _pages(self, skip: int) -> Iterator[list[ImageRef]]:
        """Pages of the images behind the first `skip`; files that lie before it whole are not opened."""
        due = None if None in self._facts else sum(facts.images for facts in self._facts if facts)
        count = skip
        for page in self._pages_read(skip):
            count += len(page)
            yield page
        if due is not None and count != due:
            raise SourceError(
                f"{self.description} has changed while it was read: it named {due:,} images and has {count:,} now; "
                "leave it alone during a run, and begin another one"
            )

    def _pages_read(self, skip: int) -> Iterator[list[ImageRef]]:
        for part, facts in zip(self._parts, self._facts, strict=True):
            if facts is not None and skip >= facts.images:
                skip -= facts.images
                continue
            for chunk in part.chunks():
                for begin in range(min(skip, len(chunk)), len(chunk), PAGE):
                    yield chunk.images(begin, min(begin + PAGE, len(chunk)))
                skip = max(skip - len(chunk), 0)
