"""The images: their lists and buckets, whether they can be read, and one real call for one of them."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Final

from batchcl.aws.detect import open_detector
from batchcl.aws.errors import INVALID_S3_OBJECT
from batchcl.doctor.context import Answer, CheckContext
from batchcl.doctor.findings import CheckStatus
from batchcl.errors import CallError, ImageError, ModelNotReadyError, RejectedError, ThrottledError, TransientError
from batchcl.events import Notice, SilentObserver
from batchcl.image_header import check_bytes
from batchcl.images import ImageRef, SkipReason, check_limits
from batchcl.loaders.open import open_reader
from batchcl.loaders.preflight import HEAD_BYTES, ProbeResult, misspelled, probe, refusals, refuse_unreadable, sample_of
from batchcl.scoring.source_checks import check_sources, closed_by, first_page

__all__ = ["check_call", "check_images", "check_sources_of"]

_JPEG: Final = b"\xff\xd8\xff"
_NO_SIZE: Final = "InvalidImageFormatException"
_LABELS: Final = 3


class _Counting(SilentObserver):
    def __init__(self) -> None:
        self.bad_lines: list[str] = []

    def notice(self, notice: Notice) -> None:
        if notice.kind == "bad-line":
            self.bad_lines.append(notice.text)


async def check_sources_of(case: CheckContext) -> Answer:
    """The job's lists to their end, and the buckets that they name."""
    observer = _Counting()
    listing = await check_sources(case.job, case.aws, case.model, case.files, case.begun_at, observer=observer)
    async with AsyncExitStack() as lists:
        pages = await first_page(closed_by(lists, listing.selection.pages()), listing, case.job)
        case.page = (await anext(pages)).images
    names = [case.job.results_root] if case.job.results_root is not None else case.job.source_names
    named = f"{len(names)} sources" if len(names) > 1 else names[0]
    lines = "" if listing.lines is None else f", {listing.lines:,} lines"
    regions = sorted({image.region or case.region for image in case.page if image.bucket})
    where = f", in S3 in {', '.join(regions)}" if regions else ""
    if observer.bad_lines:
        return (
            CheckStatus.WARN,
            f"{named}{lines}{where}; {listing.bad_lines:,} lines name no image: {observer.bad_lines[0]}",
        )
    return CheckStatus.OK, f"{named}{lines}{where}"


async def check_images(case: CheckContext) -> Answer:
    """A sample of the first images, from all over their page, read as far as their sizes in pixels."""
    fit = case.job.fit
    sample = sample_of(case.page, fit=fit)
    if not sample:
        why = Counter(reason.code for image in case.page if (reason := check_limits(image, fit=fit)) is not None)
        return CheckStatus.WARN, f"none of the first {len(case.page):,} images costs a call: {_listed(why)}"
    case.looked = await probe(case.aws, sample, region=case.region)
    refuse_unreadable(case.looked, hint=await misspelled(case.aws, case.looked, region=case.region))
    unreadable = refusals(case.looked)
    reasons = [None if each.code or fit else unfit_head(each) for each in case.looked]
    bad = unreadable + Counter(reason.code for reason in reasons if reason is not None)
    if bad:
        worst = next(each for each, reason in zip(case.looked, reasons, strict=True) if each.code or reason is not None)
        return CheckStatus.WARN, (
            f"{bad.total()} of {len(sample)} sampled images will fail: {_listed(bad)}, such as {worst.image.uri}; a "
            "run goes on without them"
        )
    return CheckStatus.OK, f"{_counted(len(sample))} can be read and fit the service's limits"


async def check_call(case: CheckContext) -> Answer:
    """One call for one image, where the model is RUNNING and so costs nothing more; a run's first call, in fact."""
    image = _to_try(case)
    if image is None:
        return CheckStatus.WARN, "no call was tried, as there is no image to try it with"
    if case.described is not None and case.described.status != "RUNNING":
        return CheckStatus.OK, f"no call was tried, as the model is {case.described.status}"
    job = case.job
    try:
        async with (
            open_reader(case.aws, region=case.region, connections=1) as reader,
            open_detector(
                case.aws,
                case.model,
                transport=job.transport,
                min_confidence=job.min_confidence,
                max_results=job.max_results,
                connections=1,
                reader=reader,
            ) as detector,
        ):
            found = await detector.detect(image)
    except (ThrottledError, TransientError, ModelNotReadyError) as error:
        return CheckStatus.WARN, f"the call for {image.uri} was not answered this time: {error.code}: {error}"
    except RejectedError as error:
        if error.code == INVALID_S3_OBJECT:
            return CheckStatus.FAIL, (
                f"the service can't read {image.uri}, which this identity can: {error}; look for a condition in its "
                "policies or the bucket's"
            )
        verdict = CheckStatus.FAIL if error.is_general else CheckStatus.WARN
        return verdict, f"the service rejects the call for {image.uri}: {error.code}: {error}"
    except ImageError as error:
        return CheckStatus.WARN, f"the service refuses {image.uri}: {error.code}: {error}"
    except CallError as error:
        return CheckStatus.FAIL, f"DetectCustomLabels refuses: {error.code}: {error}"
    labels = ", ".join(f"{label.name} {label.confidence:.1f}" for label in found.labels[:_LABELS]) or "no label"
    return CheckStatus.OK, f"DetectCustomLabels answers: {labels} for {image.uri}"


def _to_try(case: CheckContext) -> ImageRef | None:
    """An image that the service should take as it is."""
    return next((each.image for each in case.looked if not each.code and unfit_head(each) is None), None)


def unfit_head(looked: ProbeResult) -> SkipReason | None:
    """Why the service would refuse the image, as far as its first bytes tell."""
    head = looked.head
    found = check_bytes(head)
    cut = len(head) == HEAD_BYTES and head.startswith(_JPEG)  # before its size, behind long EXIF data
    return None if cut and found is not None and found.code == _NO_SIZE else found


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in reasons.most_common())


def _counted(number: int) -> str:
    return "the image" if number == 1 else f"{number} sampled images"
