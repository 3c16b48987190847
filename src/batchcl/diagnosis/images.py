"""Checks of the sources and buckets, of a sample of images, and one call for an image."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Final

from batchcl.aws.detect import open_detector
from batchcl.aws.errors import INVALID_S3_OBJECT
from batchcl.diagnosis.context import CheckContext, CheckResult
from batchcl.diagnosis.findings import CheckStatus
from batchcl.errors import CallError, ImageError, ModelNotReadyError, RejectedError, ThrottledError, TransientError
from batchcl.events import Notice, SilentObserver
from batchcl.image_header import check_bytes
from batchcl.images import ImageRef, SkipReason, check_limits
from batchcl.loaders.open import open_reader
from batchcl.loaders.preflight import (
    HEAD_BYTES,
    ProbeResult,
    check_images_readable,
    count_errors,
    probe,
    sample_images,
    spelling_hint,
)
from batchcl.quantities import pluralize
from batchcl.scoring.source_checks import check_sources, closing_with, first_page

__all__ = ["check_call", "check_images", "check_job_sources"]

_JPEG: Final = b"\xff\xd8\xff"
_NO_SIZE: Final = "InvalidImageFormatException"
_MAX_LABELS: Final = 3


class _BadLines(SilentObserver):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, notice: Notice) -> None:
        if notice.kind == "bad-line":
            self.texts.append(notice.text)


async def check_job_sources(context: CheckContext) -> CheckResult:
    """Whether the job's lists and buckets can be read."""
    bad_lines = _BadLines()
    sources = await check_sources(
        context.job, context.aws, context.model, context.files, context.begun_at, observer=bad_lines
    )
    async with AsyncExitStack() as stack:
        pages = await first_page(closing_with(stack, sources.selection.pages()), sources, context.job)
        context.page = (await anext(pages)).images
    names = [context.job.results_root] if context.job.results_root is not None else context.job.source_names
    text = f"{len(names)} sources" if len(names) > 1 else names[0]
    if sources.lines is not None:
        text += f", {pluralize(sources.lines, 'line')}"
    regions = sorted({image.region or context.region for image in context.page if image.bucket})
    if regions:
        text += f", in S3 in {', '.join(regions)}"
    if bad_lines.texts:
        return CheckStatus.WARN, f"{text}; {pluralize(sources.bad_lines, 'bad line')}; first {bad_lines.texts[0]}"
    return CheckStatus.OK, text


async def check_images(context: CheckContext) -> CheckResult:
    """Whether a sample of the first images can be read and fits the service's limits; reads only their headers."""
    fit = context.job.fit
    sample = sample_images(context.page, fit=fit)
    if not sample:
        skipped = Counter(reason.code for image in context.page if (reason := check_limits(image, fit=fit)) is not None)
        return CheckStatus.WARN, f"none of the first {len(context.page):,} images needs a call: {_listed(skipped)}"
    context.probes = await probe(context.aws, sample, region=context.region)
    check_images_readable(context.probes, hint=await spelling_hint(context.aws, context.probes, region=context.region))
    reasons = [None if each.code or fit else _violated_limit(each) for each in context.probes]
    bad = count_errors(context.probes) + Counter(reason.code for reason in reasons if reason is not None)
    if bad:
        example = next(
            each for each, reason in zip(context.probes, reasons, strict=True) if each.code or reason is not None
        )
        return CheckStatus.WARN, (
            f"{bad.total()} of {len(sample)} sampled images will fail: {_listed(bad)}; for example "
            f"{example.image.uri}; a run continues without them"
        )
    return CheckStatus.OK, f"{pluralize(len(sample), 'sampled image')} readable and within the service's limits"


async def check_call(context: CheckContext) -> CheckResult:
    """Call the model for one image if it is RUNNING, which costs nothing extra. A run makes the same call."""
    image = _image_to_call(context)
    if image is None:
        return CheckStatus.WARN, "no call was made: no sampled image is readable and within the service's limits"
    if context.described is not None and context.described.status != "RUNNING":
        return CheckStatus.OK, f"no call was made: the model is {context.described.status}"
    job = context.job
    try:
        async with (
            open_reader(context.aws, region=context.region, connections=1) as reader,
            open_detector(
                context.aws,
                context.model,
                transport=job.transport,
                min_confidence=job.min_confidence,
                max_results=job.max_results,
                connections=1,
                reader=reader,
            ) as detector,
        ):
            detection = await detector.detect(image)
    except (ThrottledError, TransientError, ModelNotReadyError) as error:
        return CheckStatus.WARN, f"the call for {image.uri} failed this time: {error.code}: {error}"
    except RejectedError as error:
        if error.code == INVALID_S3_OBJECT:
            return CheckStatus.FAIL, (
                f"the service can't read {image.uri}, but these credentials can: {error}; check the conditions in "
                "their policies and in the bucket's policy"
            )
        status = CheckStatus.FAIL if error.is_general else CheckStatus.WARN
        return status, f"the service rejected the call for {image.uri}: {error.code}: {error}"
    except ImageError as error:
        return CheckStatus.WARN, f"the service refused {image.uri}: {error.code}: {error}"
    except CallError as error:
        return CheckStatus.FAIL, f"DetectCustomLabels failed: {error.code}: {error}"
    labels = ", ".join(f"{label.name} {label.confidence:.1f}" for label in detection.labels[:_MAX_LABELS]) or "no label"
    return CheckStatus.OK, f"DetectCustomLabels returned {labels} for {image.uri}"


def _image_to_call(context: CheckContext) -> ImageRef | None:
    """Return a sampled image that the service accepts without changes."""
    return next((each.image for each in context.probes if not each.code and _violated_limit(each) is None), None)


def _violated_limit(result: ProbeResult) -> SkipReason | None:
    """Return the limit that the image violates according to its first bytes, or None."""
    head = result.head
    reason = check_bytes(head)
    is_cut = len(head) == HEAD_BYTES and head.startswith(_JPEG)  # its size may come later, after long EXIF data
    return None if is_cut and reason is not None and reason.code == _NO_SIZE else reason


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in reasons.most_common())
