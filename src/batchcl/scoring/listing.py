"""The job's sources, looked at before anything is spent: what `run` and `plan` both begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from batchcl.aws.arn import ModelArn
from batchcl.aws.buckets import check_buckets
from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.job import Job
from batchcl.scoring.events import Notice, Observer
from batchcl.sources.base import Checked, Source
from batchcl.sources.recognise import open_sources
from batchcl.sources.select import Filters, Selected, Selection

__all__ = ["Listing", "check_sources", "first_page"]


@dataclass(frozen=True, slots=True)
class Listing:
    """The job's sources, looked at: the selection from them, and what was found on the way."""

    selection: Selection
    bad_lines: int
    digests: dict[str, str]


async def check_sources(job: Job, aws: Aws, model: ModelArn, files: ExitStack, observer: Observer) -> Listing:
    """Look at the job's sources and at their buckets before a call is spent."""
    out = None if "://" in job.out else await anyio.to_thread.run_sync(Path(job.out).absolute)
    sources = await open_sources(
        job.sources,
        files,
        aws=aws,
        region=model.region,
        options=job.lists,
        leave_out=out,
    )
    found = [await source.check() for source in sources]
    for source, checked in zip(sources, found, strict=True):
        _tell_bad_lines(source, checked, observer)
    buckets = frozenset[str]().union(*(checked.buckets for checked in found))
    if buckets:
        await check_buckets(aws, buckets, region=model.region)
    filters = Filters(include=job.include, exclude=job.exclude, limit=job.limit)
    return Listing(
        Selection(sources, filters),
        sum(checked.bad_count for checked in found),
        {source.description: checked.digest for source, checked in zip(sources, found, strict=True) if checked.digest},
    )


async def first_page(pages: AsyncIterator[list[Selected]], job: Job) -> AsyncIterator[list[Selected]]:
    """`pages` unchanged, but read up to the first image: `SourceError` if there is none."""
    async for first in pages:
        return _chained(first, pages)
    named = ", ".join(job.sources)
    why = " that --include and --exclude let through" if job.include or job.exclude else ""
    raise SourceError(f"there is no image in {named}{why}; check the prefix or path, or run `batchcl plan`")


async def _chained(first: list[Selected], rest: AsyncIterator[list[Selected]]) -> AsyncIterator[list[Selected]]:
    yield first
    async for page in rest:
        yield page


def _tell_bad_lines(source: Source, checked: Checked, observer: Observer) -> None:
    for line in checked.bad_lines:
        text = f"left out: {line.place(source.description)}: {line.reason}"
        observer.notice(Notice("bad-line", text, {"line": line.number}))
    if unseen := checked.bad_count - len(checked.bad_lines):
        observer.notice(Notice("bad-line", f"left out: {unseen} more lines of {source.description}"))
