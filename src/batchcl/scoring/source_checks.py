"""The job's sources, looked at before anything is spent: what `run` and `plan` both begin with."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from batchcl.arns import ModelArn
from batchcl.aws.buckets import BucketChecks
from batchcl.aws.session import Aws
from batchcl.errors import SourceError, command
from batchcl.events import Notice, Observer
from batchcl.images import ImageRef
from batchcl.job import Job
from batchcl.loaders.preflight import SAMPLE, misspelled, probe, refuse_unreadable, sample_of
from batchcl.quantities import confidence_hint, counted
from batchcl.runs.layout import output_root
from batchcl.scoring.source_counts import SourceCounts
from batchcl.sources.base import Source, SourceCheck
from batchcl.sources.filters import describe_filters
from batchcl.sources.from_results import MEMBERS, NOT_FITTING, open_outcomes
from batchcl.sources.open import open_sources
from batchcl.sources.select import SelectedPage, Selection
from batchcl.sources.where import Condition, condition_on

__all__ = ["CheckedSources", "TryReading", "check_sources", "closed_by", "first_page", "trust"]


class TryReading(Protocol):
    """Raises `RefusedError` where images like these can't be read, so that no call could succeed."""

    async def __call__(self, images: Sequence[ImageRef], /, *, is_all: bool) -> None:
        """`is_all`: there are no others."""
        ...


async def trust(_: Sequence[ImageRef], *, is_all: bool) -> None:
    """Nothing is read of images that a test makes up."""


@dataclass(frozen=True, slots=True)
class CheckedSources:
    """The job's sources, looked at: the selection from them, and what was found on the way.

    Attributes:
        selection: the images.
        bad_lines: how many lines name no image.
        digests: list file → digest of its images.
        lines: of all lists; None where a source is no list.
        not_fitting: rows of earlier results that `where` passes over.
        left_out: what lists name that is no image to score, and how many.
        bad: list file → its first bad lines, in words.
        try_reading: raises where images like these, the first ones or all, can't be read at all.
    """

    selection: Selection
    bad_lines: int
    digests: dict[str, str]
    lines: int | None = None
    not_fitting: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad: Mapping[str, list[str]] = field(default_factory=dict)
    try_reading: TryReading = trust

    @property
    def filtered(self) -> dict[str, int]:
        """Images left out so far: by which filter → how many."""
        return ({"where": self.not_fitting} if self.not_fitting else {}) | self.selection.filtered

    def tally(self, *, planned: int, known: int, known_failed: int) -> SourceCounts:
        """How the lines add up, now that the selection was read."""
        selection = self.selection
        return SourceCounts(
            lines=self.lines,
            bad=self.bad_lines,
            left_out=self.left_out,
            repeated=selection.repeated,
            filtered=sum(self.filtered.values()),
            filtered_by=self.filtered,
            known=known,
            known_failed=known_failed,
            planned=planned,
        )


async def check_sources(
    job: Job, aws: Aws, model: ModelArn, files: ExitStack, at: dt.datetime, *, observer: Observer
) -> CheckedSources:
    """Look at the job's sources and at their buckets before a call is spent; the run began, or begins, `at`."""
    filters = job.filters(at)
    buckets = BucketChecks(aws, region=model.region, cross_region=job.cross_region)
    if job.results_root is not None:
        where = None if job.where is None else Condition(job.where)
        sources: list[Source] = [await open_outcomes(job.results_root, aws=aws, where=where, leave_out_run=job.run_id)]
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
    found = [await source.check() for source in sources]
    for source, checked in zip(sources, found, strict=True):
        if checked.left_out_folders:
            folders = " and ".join(checked.left_out_folders)
            text = f"left out of {source.description}, as they are the output root's: {folders}"
            observer.notice(Notice("output-left-out", text))
        _report_bad_lines(source, checked, observer)
    await buckets.check(name for checked in found for name in checked.buckets)
    for bucket, region in buckets.elsewhere.items():
        text = f"bucket {bucket} lies in {region}: its images are fetched from there and sent as bytes"
        observer.notice(Notice("cross-region", text, {"bucket": bucket, "region": region}))
    if (question := confidence_hint(job.min_confidence)) is not None:
        observer.notice(Notice("min-confidence", question, level="warning"))
    if job.where is not None and job.results_root is None:
        filters = replace(filters, where=await condition_on(Condition(job.where), sources))
    left_out = sum((Counter(checked.left_out) for checked in found), Counter[str]())
    return CheckedSources(
        Selection(sources, filters, elsewhere=buckets.elsewhere),
        sum(checked.bad_count for checked in found),
        {source.description: checked.digest for source, checked in zip(sources, found, strict=True) if checked.digest},
        lines=_total([checked.lines for checked in found]),
        not_fitting=left_out.pop(NOT_FITTING, 0),
        left_out=dict(left_out),
        bad={
            source.description: [f"{line.place(source.description)}: {line.reason}" for line in checked.bad_lines]
            for source, checked in zip(sources, found, strict=True)
            if checked.bad_lines
        },
        try_reading=partial(_try_reading, aws, model.region, fit=job.fit, observer=observer),
    )


async def _try_reading(
    aws: Aws, region: str, images: Sequence[ImageRef], *, is_all: bool, fit: bool, observer: Observer
) -> None:
    looked = await probe(aws, sample_of(images, fit=fit), region=region)
    hint = await misspelled(aws, looked, region=region)
    refuse_unreadable(looked, is_all=is_all, hint=hint)
    if hint:
        observer.notice(Notice("misspelled", hint))


def _total(lines: Sequence[int | None]) -> int | None:
    known = [count for count in lines if count is not None]
    return sum(known) if len(known) == len(lines) else None


def closed_by(lists: AsyncExitStack, pages: AsyncIterator[SelectedPage]) -> AsyncIterator[SelectedPage]:
    """`pages`, whose connections close with `lists` rather than when nobody can wait for them any more."""
    if isinstance(pages, AsyncGenerator):
        lists.push_async_callback(pages.aclose)
    return pages


async def first_page(
    pages: AsyncIterator[SelectedPage],
    listing: CheckedSources,
    job: Job,
    *,
    look: TryReading | None = None,
) -> AsyncIterator[SelectedPage]:
    """`pages` of the listing unchanged, but read up to the first image: `SourceError` if there is none.

    `look` is awaited with the first images, twenty or more where there are as many, and may raise.
    """
    first: list[SelectedPage] = []
    images: list[ImageRef] = []
    async for page in pages:
        first.append(page)
        images += page.images
        if look is None or len(images) >= SAMPLE:
            break
    if first:
        if look is not None:
            await look(images, is_all=len(images) < SAMPLE)
        return _chained(first, pages)
    raise SourceError(_without_image(listing, job))


def _without_image(listing: CheckedSources, job: Job) -> str:
    """Why there is none, and what to do."""
    named = job.results_root or ", ".join(job.source_names)
    return f"there is no image in {named}{_why_none(listing)}; {_what_to_check(listing, job)}"


def _why_none(listing: CheckedSources) -> str:
    away = [f"{count:,} by {describe_filters(name)}" for name, count in listing.filtered.items()]
    left_out = {**listing.left_out, "bad lines": listing.bad_lines}
    others = [f"{count:,} {what}" for what, count in left_out.items() if count]
    why = f" that the filters let through (taken away: {', '.join(away)})" if away else ""
    return why + (f" that can be scored (left out: {', '.join(others)})" if others else "")


def _what_to_check(listing: CheckedSources, job: Job) -> str:
    if job.results_root is None:
        return "check the filters" if listing.filtered else "check the prefix or path"
    if not listing.lines:
        return (
            "no run has published a row there yet, and a run that was stopped does so when it goes on: "
            f"see {command('runs', job.results_root)}"
        )
    return "give the archives themselves as SOURCE" if MEMBERS in listing.left_out else "check the filters"


async def _chained(first: Sequence[SelectedPage], rest: AsyncIterator[SelectedPage]) -> AsyncIterator[SelectedPage]:
    for page in first:
        yield page
    async for page in rest:
        yield page


def _report_bad_lines(source: Source, checked: SourceCheck, observer: Observer) -> None:
    for line in checked.bad_lines:
        text = f"left out: {line.place(source.description)}: {line.reason}"
        observer.notice(Notice("bad-line", text, {"line": line.number}, level="warning"))
    if unseen := checked.bad_count - len(checked.bad_lines):
        observer.notice(Notice("bad-line", f"left out: {unseen} more lines of {source.description}", level="warning"))
    if labels := checked.bad_labels.count:
        text = (
            f"{counted(labels, 'image')} of {source.description} will be scored without a label that can't be used "
            f"for evaluate; the first: {checked.bad_labels.first}"
        )
        observer.notice(Notice("bad-label", text, {"images": labels}, level="warning"))
