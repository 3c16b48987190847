"""Checks a job's sources and buckets before anything is spent: the first step of `run`, `plan` and `doctor`."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import anyio.to_thread

from batchcl.arns import ModelArn
from batchcl.aws.buckets import BucketChecks
from batchcl.aws.session import Aws
from batchcl.errors import ErrorCode, SourceError, command
from batchcl.events import Notice, Observer
from batchcl.images import ImageRef
from batchcl.job import Job
from batchcl.loaders.preflight import SAMPLE_SIZE, check_images_readable, probe, sample_images, spelling_hint
from batchcl.quantities import confidence_hint, pluralize
from batchcl.runs.layout import output_root
from batchcl.sources.base import MEMBERS, NOT_FITTING, Source, SourceCheck
from batchcl.sources.filters import describe_filters
from batchcl.sources.open import is_read_once, open_sources
from batchcl.sources.select import SelectedPage, Selection
from batchcl.summary import SourceCounts

__all__ = [
    "CheckedSources",
    "ReadCheck",
    "chained",
    "check_sources",
    "checks_of_attempts",
    "closing_with",
    "first_page",
    "skip_read_check",
]


class ReadCheck(Protocol):
    """Raises `RefusedError` if a sample of the images can't be read, so that no call would succeed."""

    async def __call__(self, images: Sequence[ImageRef], /, *, is_all: bool) -> None:
        """`is_all`: `images` are all images of the sources, not only the first ones."""
        ...


async def skip_read_check(_: Sequence[ImageRef], *, is_all: bool) -> None:
    """Read nothing: for images that don't exist, in tests."""


@dataclass(frozen=True, slots=True)
class CheckedSources:
    """The selection from the job's sources, and what the checks counted.

    Attributes:
        selection: the images.
        bad_lines: number of lines that don't name an image.
        digests: digest of the images of each list file, by its name.
        lines: lines of all lists; None if a source is not a list.
        not_fitting: rows of earlier results (`from_results`) that don't match `where`.
        ignored: entries that are not an image to score: kind → count.
        bad: descriptions of the first bad lines of each list file, by its name.
        check_readable: raises if a sample of the first images can't be read.
    """

    selection: Selection
    bad_lines: int
    digests: dict[str, str]
    lines: int | None = None
    not_fitting: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)
    bad: Mapping[str, list[str]] = field(default_factory=dict)
    check_readable: ReadCheck = skip_read_check

    @property
    def filtered(self) -> dict[str, int]:
        """Images excluded so far, by filter."""
        return ({"where": self.not_fitting} if self.not_fitting else {}) | self.selection.filtered

    def counts(self, *, planned: int, already_scored: int, already_failed: int) -> SourceCounts:
        """Return the counts of all lines, after the selection was read."""
        selection = self.selection
        return SourceCounts(
            lines=self.lines,
            bad_lines=self.bad_lines,
            ignored=dict(self.ignored),
            duplicates=selection.duplicates,
            filtered=sum(self.filtered.values()),
            filtered_by=self.filtered,
            already_scored=already_scored,
            already_failed=already_failed,
            planned=planned,
        )


def checks_of_attempts(
    job: Job, aws: Aws, files: ExitStack, *, observer: Observer
) -> Callable[[ModelArn, dt.datetime], Awaitable[CheckedSources]]:
    """Return `check_sources` for several attempts at a run; stdin and pipes are read in the first one only."""
    reusable: CheckedSources | None = None

    async def check(model: ModelArn, at: dt.datetime) -> CheckedSources:
        nonlocal reusable
        if reusable is not None:
            return reusable
        checked = await check_sources(job, aws, model, files, at, observer=observer)
        if any([await anyio.to_thread.run_sync(is_read_once, name) for name in job.source_names]):
            reusable = checked
        return checked

    return check


async def check_sources(
    job: Job, aws: Aws, model: ModelArn, files: ExitStack, at: dt.datetime, *, observer: Observer
) -> CheckedSources:
    """Open and check the job's sources and their buckets.

    Args:
        job: the job.
        aws: its session.
        model: its model; images in buckets of other regions are downloaded.
        files: closes temporary copies of lists.
        at: start of the run; relative times in filters count from here.
        observer: receives notices about bad lines, other regions and excluded folders.
    """
    filters = job.filters(at)
    buckets = BucketChecks(aws, region=model.region, cross_region=job.cross_region)
    if job.results_root is not None:
        from batchcl.sources.from_results import open_published_images
        from batchcl.sources.where import Condition

        where = None if job.where is None else Condition(job.where)
        sources: list[Source] = [
            await open_published_images(job.results_root, aws=aws, where=where, exclude_run=job.run_id)
        ]
    else:
        sources = await open_sources(
            job.source_names,
            files,
            aws=aws,
            region=model.region,
            options=job.lists,
            transport=job.transport,
            out=output_root(job.root),
            buckets=buckets,
        )
    checks = [await source.check() for source in sources]
    for source, checked in zip(sources, checks, strict=True):
        if checked.excluded_folders:
            folders = " and ".join(checked.excluded_folders)
            text = f"excluded from {source.description}: {folders} of the output root"
            observer.notice(Notice("output-excluded", text))
        _report_bad_lines(source, checked, observer)
    await buckets.check(name for checked in checks for name in checked.buckets)
    for bucket, region in buckets.elsewhere.items():
        text = f"bucket {bucket} is in {region}: its images are downloaded and sent as bytes"
        observer.notice(Notice("cross-region", text, {"bucket": bucket, "region": region}))
    if (hint := confidence_hint(job.min_confidence)) is not None:
        observer.notice(Notice("min-confidence", hint, level="warning"))
    if job.where is not None and job.results_root is None:
        from batchcl.sources.where import Condition, condition_on

        filters = replace(filters, where=await condition_on(Condition(job.where), sources))
    ignored = sum((Counter(checked.ignored) for checked in checks), Counter[str]())
    return CheckedSources(
        Selection(sources, filters, elsewhere=buckets.elsewhere),
        sum(checked.bad_count for checked in checks),
        {source.description: checked.digest for source, checked in zip(sources, checks, strict=True) if checked.digest},
        lines=_total([checked.lines for checked in checks]),
        not_fitting=ignored.pop(NOT_FITTING, 0),
        ignored=dict(ignored),
        bad={
            source.description: [f"{line.place(source.description)}: {line.reason}" for line in checked.bad_lines]
            for source, checked in zip(sources, checks, strict=True)
            if checked.bad_lines
        },
        check_readable=partial(_check_readable, aws, model.region, fit=job.fit, observer=observer),
    )


async def _check_readable(
    aws: Aws, region: str, images: Sequence[ImageRef], *, is_all: bool, fit: bool, observer: Observer
) -> None:
    probes = await probe(aws, sample_images(images, fit=fit), region=region)
    hint = await spelling_hint(aws, probes, region=region)
    check_images_readable(probes, is_all=is_all, hint=hint)
    if hint:
        observer.notice(Notice("spelling-hint", hint))


def _total(lines: Sequence[int | None]) -> int | None:
    known = [count for count in lines if count is not None]
    return sum(known) if len(known) == len(lines) else None


def closing_with(stack: AsyncExitStack, pages: AsyncIterator[SelectedPage]) -> AsyncIterator[SelectedPage]:
    """Return `pages`; its connections are closed by `stack`, not by the garbage collector, which can't await."""
    if isinstance(pages, AsyncGenerator):
        stack.push_async_callback(pages.aclose)
    return pages


async def first_page(
    pages: AsyncIterator[SelectedPage],
    sources: CheckedSources,
    job: Job,
    *,
    check_readable: ReadCheck | None = None,
) -> AsyncIterator[SelectedPage]:
    """Read `pages` up to the first image, and return an iterator over all of them.

    `check_readable` is called with the first 20 images or more, if there are as many.

    Raises:
        SourceError: there is no image.
    """
    first: list[SelectedPage] = []
    images: list[ImageRef] = []
    async for page in pages:
        first.append(page)
        images += page.images
        if check_readable is None or len(images) >= SAMPLE_SIZE:
            break
    if first:
        if check_readable is not None:
            await check_readable(images, is_all=len(images) < SAMPLE_SIZE)
        return chained(first, pages)
    raise SourceError(_no_image_message(sources, job), code=ErrorCode.EMPTY_SOURCE)


def _no_image_message(sources: CheckedSources, job: Job) -> str:
    """Say why there is no image to score, and what to check."""
    names = job.results_root or ", ".join(job.source_names)
    filtered = [f"{count:,} by {describe_filters(name)}" for name, count in sources.filtered.items()]
    not_images = {**sources.ignored, "bad lines": sources.bad_lines}
    others = [f"{count:,} {what}" for what, count in not_images.items() if count]
    reasons = ([f"excluded: {', '.join(filtered)}"] if filtered else []) + (
        [f"not images to score: {', '.join(others)}"] if others else []
    )
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"there is no image to score in {names}{why}; {_what_to_check(sources, job)}"


def _what_to_check(sources: CheckedSources, job: Job) -> str:
    if job.results_root is None:
        return "check the filters" if sources.filtered else "check the prefix or path"
    if not sources.lines:
        return (
            "no run has published a row there; a stopped run publishes its rows when it is resumed: see "
            f"{command('runs', job.results_root)}"
        )
    return "name the archives themselves as SOURCE" if MEMBERS in sources.ignored else "check the filters"


async def chained(first: Sequence[SelectedPage], rest: AsyncIterator[SelectedPage]) -> AsyncIterator[SelectedPage]:
    """Yield the pages of both."""
    for page in first:
        yield page
    async for page in rest:
        yield page


def _report_bad_lines(source: Source, checked: SourceCheck, observer: Observer) -> None:
    for line in checked.bad_lines:
        text = f"bad line skipped: {line.place(source.description)}: {line.reason}"
        observer.notice(Notice("bad-line", text, {"line": line.number}, level="warning"))
    if more := checked.bad_count - len(checked.bad_lines):
        observer.notice(Notice("bad-line", f"{more:,} more bad lines skipped in {source.description}", level="warning"))
    if labels := checked.bad_labels.count:
        text = (
            f"{pluralize(labels, 'image')} of {source.description} {'has' if labels == 1 else 'have'} a label that "
            f"`batchcl evaluate` can't use: scored without it; the first: {checked.bad_labels.first}"
        )
        observer.notice(Notice("bad-label", text, {"images": labels}, level="warning"))
