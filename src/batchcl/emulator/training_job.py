"""One training: read the manifests and images, learn, write the results, settle the version."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import anyio.to_thread

from batchcl.emulator.arns import owner
from batchcl.emulator.faults import ServiceError
from batchcl.emulator.image_rules import check_bytes, open_picture
from batchcl.emulator.learning import reports
from batchcl.emulator.learning.training import Example, TrainingError, prepare, save, task_of, train
from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line
from batchcl.images import MAX_BYTES_S3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchcl.emulator.learning.training import Task, Trained
    from batchcl.emulator.records import Version
    from batchcl.emulator.service import Service
    from batchcl.groundtruth import GroundTruth

__all__ = ["Material", "read_manifest", "result_keys", "run_training", "split_lines"]

_log: Final = logging.getLogger(__name__)

_MANIFEST_LIMIT: Final = 1 << 30
_BAD_SHARE: Final = 0.2
_READS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Material:
    """Manifest lines to train and to test with; no `test` splits a part off `train`."""

    train: list[bytes]
    test: list[bytes] | None


class ResultKeys(NamedTuple):
    """Keys in the output bucket for what a training writes."""

    summary: str
    training_output: str
    testing_output: str
    training_validation: str
    testing_validation: str
    manifest_summary: str


def result_keys(version: Version) -> ResultKeys:
    """Where the results of a version go. The names of the last three are the guide's."""
    prefix = version.output_prefix.strip("/")
    folder = f"{prefix}/" if prefix else ""
    model = f"{owner(version.arn).project}-{version.name}"
    return ResultKeys(
        summary=f"{folder}EvaluationSummary-{model}.json",
        training_output=f"{folder}{model}-training.manifest",
        testing_output=f"{folder}{model}-testing.manifest",
        training_validation=f"{folder}validation/{model}/training_manifest_with_validation.json",
        testing_validation=f"{folder}validation/{model}/testing_manifest_with_validation.json",
        manifest_summary=f"{folder}validation/{model}/manifest_summary.json",
    )


class _ClosingError(Exception):
    """The emulator is told to end."""


async def read_manifest(service: Service, where: dict[str, Any], region: str) -> bytes:
    """A manifest named by an S3Object in a bucket of `region`.

    Raises:
        ServiceError: InvalidS3ObjectException, or InvalidParameterException over 1 GB.
    """
    data = await service.read_object(
        where.get("Bucket", ""),
        where.get("Name", ""),
        region=region,
        limit_bytes=_MANIFEST_LIMIT,
        version_id=where.get("Version"),
    )
    if len(data) > _MANIFEST_LIMIT:
        raise ServiceError("InvalidParameterException", "The manifest file is larger than 1 GB.")
    return data


def split_lines(data: bytes) -> list[bytes]:
    """A manifest's lines. Blank ones count as lines, but for those at its end."""
    data = data.rstrip()
    return data.split(b"\n") if data else []


async def run_training(service: Service, version: Version, material: Material) -> None:
    """Train `version`; it becomes TRAINING_COMPLETED or TRAINING_FAILED, and no error escapes.

    The status changes when `train_seconds` have passed since the version's creation, or when the work is done if
    that is later.
    """
    try:
        await _train(service, version, material)
        status, message = "TRAINING_COMPLETED", "The model is ready to run."
    except (TrainingError, ServiceError) as error:
        status, message = "TRAINING_FAILED", str(error)
    except _ClosingError:
        return
    except Exception:  # noqa: BLE001 - logged, and the version says that it failed
        _log.exception("training %s failed", version.arn)
        status, message = "TRAINING_FAILED", "The emulator failed while training; its log on stderr says why."
    if version.arn not in service.state.versions:
        return
    now = service.clock.time()
    version.ended = max(now, version.created + service.settings.train_seconds)
    if status == "TRAINING_COMPLETED":
        version.billable_seconds = math.ceil(version.ended - version.created)
    version.schedule(status, message, due=version.ended)
    service.state.save()


async def _train(service: Service, version: Version, material: Material) -> None:
    entries = _parse(material.train, "training")
    task = task_of(list(entries.values()))
    examples = await _read_all(service, entries, task, "training", owner(version.arn).region)
    test = None
    if material.test is not None:
        test = await _read_all(service, _parse(material.test, "test"), task, "test", owner(version.arn).region)

    def check() -> None:
        if service.closing:
            raise _ClosingError

    def learn() -> Trained:
        trained = train(task, examples, test, seed=service.settings.seed, check=check)
        save(service.state.model_path(version.arn), trained.model, trained.evaluation.thresholds)
        return trained

    trained = await anyio.to_thread.run_sync(learn)
    await _write_results(service, version, material, trained)


def _parse(lines: Sequence[bytes], which: str) -> dict[int, GroundTruth]:
    """The labelled entries by their line's number; lines that say nothing of labels are left out."""
    entries: dict[int, GroundTruth] = {}
    broken = 0
    for number, line in enumerate(lines):
        try:
            entry = parse_line(line)
        except SourceError:
            broken += 1
            continue
        if entry.task is not None:
            entries[number] = entry
    if broken > _BAD_SHARE * max(1, len(lines)):
        raise TrainingError(f"The {which} manifest has {broken} invalid JSON Lines among {len(lines)}.")
    return entries


async def _read_all(
    service: Service, entries: dict[int, GroundTruth], task: Task, which: str, region: str
) -> list[Example]:
    """Every readable image of `entries`, reduced, in the manifest's order.

    Raises:
        TrainingError: more than a fifth of the images can't be read.
    """
    examples: dict[int, Example] = {}
    why = ""
    queue = iter(entries.items())

    async def work() -> None:
        nonlocal why
        for number, entry in queue:
            if (entry.task == "detection") != (task == "detection"):
                continue
            try:
                examples[number] = await _read_one(service, number, entry, task, region)
            except ServiceError as error:
                why = f"{entry.source_ref}: {error}"

    async with anyio.create_task_group() as readers:
        for _ in range(_READS_AT_ONCE):
            readers.start_soon(work)
    unread = len(entries) - len(examples)
    if unread > _BAD_SHARE * max(1, len(entries)):
        raise TrainingError(f"{unread} of {len(entries)} images of the {which} dataset can't be used. {why}")
    return [examples[number] for number in sorted(examples)]


async def _read_one(service: Service, number: int, entry: GroundTruth, task: Task, region: str) -> Example:
    bucket, _, key = entry.source_ref.removeprefix("s3://").partition("/")
    data = await service.read_object(bucket, key, region=region, limit_bytes=MAX_BYTES_S3)
    check_bytes(data, inline=False)

    def reduce() -> Example:
        picture = open_picture(data)
        return prepare(number, picture.image, (picture.width, picture.height), entry, task)

    return await anyio.to_thread.run_sync(reduce, limiter=service.threads)


async def _write_results(service: Service, version: Version, material: Material, trained: Trained) -> None:
    ended = service.clock.time()
    test_lines = material.test if material.test is not None else material.train
    keys = result_keys(version)
    version.summary, version.training_output, version.testing_output = (
        keys.summary,
        keys.training_output,
        keys.testing_output,
    )
    version.f1_score = trained.evaluation.mean("f1")
    files = {
        version.summary: reports.summary(trained, version_arn=version.arn, ended=ended),
        version.training_output: reports.training_snapshot(material.train, trained.train),
        version.testing_output: reports.snapshot(test_lines, trained, ended=ended),
    }
    for key, data in files.items():
        kind = "application/json" if key == version.summary else "application/jsonlines"
        try:
            await service.buckets.write(version.output_bucket, key, data, content_type=kind)
        except ServiceError as error:
            raise TrainingError(
                f"The training results can't be written to s3://{version.output_bucket}/{key}. {error}"
            ) from error
