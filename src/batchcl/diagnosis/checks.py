"""The checks of `batchcl doctor`; `diagnose` runs them."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio.to_thread

from batchcl.aws.account import DEFAULTS, Quotas, caller_identity, read_quotas
from batchcl.aws.detect import open_detector
from batchcl.aws.errors import INVALID_S3_OBJECT
from batchcl.aws.models import IN_USE, describe, list_models
from batchcl.aws.tags import list_tags
from batchcl.diagnosis.context import CheckContext, CheckResult, CheckStatus
from batchcl.errors import (
    CallError,
    CredentialsError,
    ImageError,
    ModelNotReadyError,
    RefusedError,
    RejectedError,
    ThrottledError,
    TransientError,
    UnreachableError,
)
from batchcl.events import Notice, SilentObserver
from batchcl.image_header import check_bytes
from batchcl.images import ImageRef, SkipReason, check_limits
from batchcl.lifetime.manager import ModelManager
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
from batchcl.monitoring import Targets
from batchcl.monitoring.otel import check_settings
from batchcl.monitoring.targets import site
from batchcl.monitoring.textfile import check_folder_writable
from batchcl.quantities import AutoUnits, Units, pluralize
from batchcl.scoring.connections import start_units
from batchcl.scoring.run import open_store
from batchcl.scoring.source_checks import check_sources, closing_with, first_page
from batchcl.stop_signal import StopSignal

__all__ = [
    "check_account",
    "check_call",
    "check_clock",
    "check_control",
    "check_credentials",
    "check_images",
    "check_job_sources",
    "check_model",
    "check_monitoring",
    "check_output",
    "check_quotas",
    "check_region",
]

_TAIL = 4


async def check_credentials(context: CheckContext) -> CheckResult:
    """Whether credentials are found."""
    credentials = context.aws.credentials_of("rekognition")
    keys = await credentials.current()
    source = {"env": "the environment", "explicit": "the emulator"}.get(credentials.method, credentials.method)
    profile = f", profile {context.job.profile}" if context.job.profile else ""
    return CheckStatus.OK, f"access key …{keys.access_key[-_TAIL:]} from {source}{profile}"


async def check_account(context: CheckContext) -> CheckResult:
    """Whether the credentials belong to the model's account: DetectCustomLabels works in no other."""
    try:
        async with context.aws.auxiliary_client("sts", region=context.region) as client:
            context.clock.listen(client)
            identity = await caller_identity(client)
    except UnreachableError as error:
        return CheckStatus.WARN, str(error)
    except CredentialsError as error:
        if not context.is_amazon:
            return CheckStatus.WARN, str(error)
        raise
    if context.target.has_model and identity.account != context.model.account:
        return CheckStatus.FAIL, (
            f"the credentials are {identity.arn} of account {identity.account}, and the model is in account "
            f"{context.model.account}; assume a role there, or copy the model with `batchcl model copy`"
        )
    return CheckStatus.OK, f"{identity.account}, as {identity.arn}"


async def check_region(context: CheckContext) -> CheckResult:
    """Which region is used: the model's, regardless of the settings."""
    session = context.aws.region
    if not context.target.has_model:
        if context.aws.has_region:
            return CheckStatus.OK, f"{context.region}, from the AWS settings"
        return CheckStatus.WARN, f"no region is configured: {context.region} is used; set AWS_REGION or pass --region"
    if context.aws.has_region and session != context.region:
        return CheckStatus.OK, f"{context.region}, the model's region; {session} from the AWS settings is not used"
    return CheckStatus.OK, f"{context.region}, the model's region"


_MAX_OFFSET_S: Final = 300.0
"""From this offset on AWS refuses signed requests (IAM user guide, "Troubleshoot signed requests for AWS APIs")."""

_WARN_OFFSET_S: Final = 60.0


async def check_clock(context: CheckContext) -> CheckResult:
    """Compare the clock with the `Date` headers of the responses so far."""
    ahead = context.clock.ahead
    if ahead is None:
        return CheckStatus.WARN, "no response had a Date header to compare the clock with"
    offset_s = ahead.total_seconds()
    text = f"this machine's clock is {abs(offset_s):,.0f} s {'behind' if offset_s > 0 else 'ahead of'} the service's"
    if abs(offset_s) >= _MAX_OFFSET_S:
        return CheckStatus.FAIL, f"{text}; AWS refuses requests from 300 s on; set the clock (chrony, ntpd)"
    if abs(offset_s) >= _WARN_OFFSET_S:
        return CheckStatus.WARN, f"{text}; AWS refuses requests from 300 s on; set the clock (chrony, ntpd)"
    return CheckStatus.OK, "this machine's clock differs from the service's by less than a minute"


_NOT_TESTED = "permissions to tag, start and stop the model can't be tested without doing so"


async def check_control(context: CheckContext) -> CheckResult:
    """Whether the read-only calls of a run to the control plane succeed."""
    try:
        models = await list_models(
            context.rekognition, project=context.model.project if context.target.has_model else None
        )
    except CredentialsError as error:
        if context.job.units is not None or not error.is_access_denied:
            raise
        return CheckStatus.WARN, f"{error}; a model that is RUNNING can be used nevertheless"
    if not context.target.has_model:
        found = f"{pluralize(len(models), 'model')} in {context.region}"
        return CheckStatus.OK, f"DescribeProjects and DescribeProjectVersions succeed: {found}"
    if context.job.units is None:
        return CheckStatus.OK, "DescribeProjects and DescribeProjectVersions succeed"
    if context.job.lease_s is not None and context.model.text in [each.arn for each in models]:
        await list_tags(context.rekognition, context.model.text)
        return (
            CheckStatus.OK,
            f"DescribeProjects, DescribeProjectVersions and ListTagsForResource succeed; {_NOT_TESTED}",
        )
    return CheckStatus.OK, f"DescribeProjects and DescribeProjectVersions succeed; {_NOT_TESTED}"


async def check_model(context: CheckContext) -> CheckResult:
    """Whether a run can use the model: it is RUNNING, or the job may start it."""
    model_manager = ModelManager(
        context.rekognition,
        context.model,
        units=_units(context),
        keep=True,
        observer=SilentObserver(),
        stop_signal=StopSignal(),
    )
    await model_manager.check()
    try:
        model = await describe(context.rekognition, context.model)
    except CredentialsError as error:
        return CheckStatus.WARN, f"finding the state of {context.model.name} failed: {error}"
    context.described = model
    quality = "" if model.f1 is None else f", F1 {model.f1:.4f}"
    if model.status == "RUNNING":
        units = "" if model.min_units is None else f" with {Units(model.min_units, model.max_units).words}"
        return CheckStatus.OK, f"{model.name} is RUNNING{units}{quality}"
    if model.status == "STARTING":
        return CheckStatus.OK, f"{model.name} is STARTING{quality}; a run waits for it"
    to_start = _units(context)
    how = "" if to_start is None else f" with {to_start.words}"
    return CheckStatus.OK, f"{model.name} is {model.status}{quality}; a run starts it{how}"


async def check_quotas(context: CheckContext) -> CheckResult:
    """Whether the account's quotas allow what the job asks for."""
    try:
        async with context.aws.auxiliary_client("service-quotas", region=context.region) as client:
            context.clock.listen(client)
            quotas = await read_quotas(client)
    except RefusedError as error:
        problem = await _problem(context, DEFAULTS)
        return CheckStatus.WARN, f"{error}; AWS's defaults are {DEFAULTS}" + (f"; {problem}" if problem else "")
    if (problem := await _problem(context, quotas)) is not None:
        return CheckStatus.FAIL, f"the quotas are {quotas}; {problem}, or request an increase in Service Quotas"
    if context.job.max_tps is not None and context.job.max_tps > quotas.calls_tps:
        return (
            CheckStatus.WARN,
            f"the quotas are {quotas}; --max-tps {context.job.max_tps:g} is more than the quota",
        )
    return CheckStatus.OK, str(quotas)


async def _problem(context: CheckContext, quotas: Quotas) -> str | None:
    """Return why the model can't be started within `quotas`; None if it can, or does not have to be started."""
    units = _units(context)
    if units is None or context.described is None or context.described.status in IN_USE:
        return None
    if units.highest > quotas.units:
        return f"--start-model {units} needs {pluralize(units.highest, 'unit')}; use fewer"
    others = [each.name for each in await list_models(context.rekognition) if each.status in IN_USE]
    if others and len(others) >= quotas.running:
        running = f"{pluralize(len(others), 'model')} already running ({', '.join(others)})"
        return f"{running}; stop one with `batchcl model stop {others[0]}`"
    return None


def _units(context: CheckContext) -> Units | AutoUnits | None:
    return start_units(context.job, is_emulator=context.aws.settings.is_emulator)


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


async def check_output(context: CheckContext) -> CheckResult:
    """Whether the output root can be written and refuses to create an object twice; the test object is removed."""
    new_folders = await anyio.to_thread.run_sync(_missing_folders, context.job.root)
    try:
        store = await open_store(context.job, context.aws)
    finally:
        await anyio.to_thread.run_sync(_remove_empty, new_folders)
    if context.job.single_writer:
        return CheckStatus.OK, f"{store.root} can be written; other writers are not detected (--single-writer)"
    return CheckStatus.OK, f"{store.root} can be written, and refuses to create an object twice"


async def check_monitoring(context: CheckContext) -> CheckResult:
    """Whether the metrics file can be written and OpenTelemetry's settings are valid; nothing is sent."""
    targets = Targets.of(context.job)
    ready = []
    if targets.metrics_file is not None:
        try:
            await anyio.to_thread.run_sync(check_folder_writable, targets.metrics_file)
        except OSError as error:
            return CheckStatus.FAIL, f"{targets.metrics_file} can't be written: {error.strerror}; check its directory"
        ready.append(f"{targets.metrics_file} can be written")
    if targets.otel:
        check_settings()
        ready.append("OpenTelemetry is installed")
    untried = [site(url) for url in (targets.ping, targets.webhook) if url is not None]
    if targets.sns_topic is not None:
        untried.append(targets.sns_topic)
    if untried:
        ready.append(f"nothing was sent to {', '.join(untried)}")
    return CheckStatus.OK, "; ".join(ready)


def _missing_folders(out: str) -> list[Path]:
    """Return the directories that the check will create, the innermost first. Blocks."""
    if "://" in out:
        return []
    root = Path(out).absolute()
    return [path for path in (root / "runs", root, *root.parents) if not path.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """Remove the directories that the check has created. Blocks."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
