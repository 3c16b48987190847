"""Runs one training: reads manifests and images, trains, writes the results, and updates the version."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import anyio.to_thread

from batchcl.emulator.errors import ApiError
from batchcl.emulator.image_rules import check_bytes, open_picture
from batchcl.emulator.learning import reports
from batchcl.emulator.learning.training import Example, TrainingError, prepare, save, split, train
from batchcl.emulator.records import StoredDataset, dataset_arn, owner
from batchcl.emulator.validation import CheckedDataset, Findings, check_manifests, use_case
from batchcl.images import MAX_BYTES_S3

if TYPE_CHECKING:
    from batchcl.emulator.learning.training import Task, Trained
    from batchcl.emulator.records import StoredVersion
    from batchcl.emulator.service import EmulatorService
    from batchcl.groundtruth import GroundTruth

__all__ = ["TrainingData", "read_manifest", "result_keys", "run_training", "split_lines"]

_log: Final = logging.getLogger(__name__)

_MAX_MANIFEST_BYTES: Final = 1 << 30
_CONCURRENT_READS: Final = 16


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Manifest lines to train and test with. If `test` is None, a part of `train` is split off for testing.

    `dataset` is the ARN of the project's training dataset if it is the only one: the part becomes its test dataset.
    """

    train: list[bytes]
    test: list[bytes] | None
    dataset: str | None = None


ReadTrainingData = Callable[[], Awaitable[TrainingData]]
"""Reads the manifests of a training; raises `TrainingError` if one can't be read."""


class ResultKeys(NamedTuple):
    """Keys of the result files in the output bucket."""

    summary: str
    training_output: str
    testing_output: str
    training_validation: str
    testing_validation: str
    manifest_summary: str


def result_keys(version: StoredVersion) -> ResultKeys:
    """Keys of the result files of a version. The names of the last three are documented."""
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
    """The emulator is ending."""


async def read_manifest(service: EmulatorService, where: dict[str, Any], region: str) -> bytes:
    """Read a manifest; `where` is an S3Object in a bucket of `region`.

    Raises:
        ApiError: InvalidS3ObjectException; InvalidParameterException for more than 1 GB.
    """
    data = await service.read_object(
        where.get("Bucket", ""),
        where.get("Name", ""),
        region=region,
        limit_bytes=_MAX_MANIFEST_BYTES,
        version_id=where.get("Version"),
    )
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ApiError("InvalidParameterException", "The manifest file size exceeds the maximum supported size.")
    return data


def split_lines(data: bytes) -> list[bytes]:
    """The lines of a manifest, including blank ones except at its end."""
    data = data.rstrip()
    return data.split(b"\n") if data else []


async def run_training(service: EmulatorService, version: StoredVersion, read: ReadTrainingData) -> None:
    """Train `version`. It becomes TRAINING_COMPLETED or TRAINING_FAILED; no error is raised.

    The status changes when the work is done, but not before `train_seconds` have passed since the version was created.
    """
    try:
        await _train(service, version, read)
        status, message = "TRAINING_COMPLETED", "The model is ready to run."
    except (TrainingError, ApiError) as error:
        status, message = "TRAINING_FAILED", str(error)
    except _ClosingError:
        return
    except Exception:  # noqa: BLE001 - logged, and reported as the status of the version
        _log.exception("training %s failed", version.arn)
        status, message = "TRAINING_FAILED", "The emulator failed while training; the reason is in its log on stderr."
    if version.arn not in service.state.versions:
        return
    now = service.clock.time()
    version.ended = max(now, version.created + service.settings.train_seconds)
    if status == "TRAINING_COMPLETED":
        version.billable_seconds = math.ceil(version.ended - version.created)
    version.schedule(status, message, due=version.ended)
    service.state.save()


async def _train(service: EmulatorService, version: StoredVersion, read: ReadTrainingData) -> None:
    data = await read()
    if not data.train or data.test == []:
        raise TrainingError("The manifest file is empty.")
    train_set = await anyio.to_thread.run_sync(CheckedDataset.of, data.train)
    test_set = None if data.test is None else await anyio.to_thread.run_sync(CheckedDataset.of, data.test)
    task = use_case(train_set)
    region = owner(version.arn).region
    examples = [] if task is None else await _read_all(service, train_set, task, region)
    seed = service.settings.seed
    if test_set is None:
        training, testing = split(examples, seed)
    else:
        training, testing = examples, [] if task is None else await _read_all(service, test_set, task, region)
    held_out = frozenset(e.number for e in testing) if test_set is None else frozenset[int]()
    findings = check_manifests(train_set, test_set, task=task, held_out=held_out)
    await _write_findings(service, version, findings)
    if findings.errors or task is None:
        raise TrainingError(findings.message or "The training dataset has no labeled images.")

    def check() -> None:
        if service.closing:
            raise _ClosingError

    def learn() -> Trained:
        trained = train(task, training, testing, seed=seed, check=check)
        save(service.state.model_path(version.arn), trained.model, trained.evaluation.thresholds)
        return trained

    trained = await anyio.to_thread.run_sync(learn)
    await _write_results(service, version, data.train, trained)
    if data.dataset is not None:
        await _create_test_dataset(service, data.dataset, held_out)


async def _create_test_dataset(service: EmulatorService, arn: str, moved: frozenset[int]) -> None:
    """Move the entries at `moved` to a new test dataset of the project, unless there is one by now."""
    state, files, now = service.state, service.dataset_files, service.clock.time()
    train = state.datasets.get(arn)
    if train is None or "TEST" in state.datasets_of(train.project_arn):
        return
    dataset_owner = owner(arn)
    test = StoredDataset(
        arn=dataset_arn(dataset_owner.account, dataset_owner.region, dataset_owner.project, "TEST", now=now),
        project_arn=train.project_arn,
        kind="TEST",
        created=now,
        ready=now,
        status="CREATE_COMPLETE",
        status_message="The dataset was created.",
    )
    entries = await files.read(train)
    files.write(test, [entry for n, entry in enumerate(entries) if n in moved])
    files.write(train, [entry for n, entry in enumerate(entries) if n not in moved])
    train.status, train.status_message, train.updated = "UPDATE_COMPLETE", "The dataset was updated.", now
    state.datasets[test.arn] = test


async def _read_all(service: EmulatorService, checked: CheckedDataset, task: Task, region: str) -> list[Example]:
    """The reduced images for `task` in the manifest's order. Adds those that can't be read to `checked.unreadable`.

    Raises:
        TrainingError: S3 failed.
    """
    examples: dict[int, Example] = {}
    queue = iter(checked.truths(task).items())
    failed = False

    async def work() -> None:
        nonlocal failed
        for number, truth in queue:
            try:
                examples[number] = await _read_one(service, number, truth, task, region)
            except ApiError as error:
                checked.unreadable.add(number)
                failed = failed or error.code == "InternalServerError"

    async with anyio.create_task_group() as readers:
        for _ in range(_CONCURRENT_READS):
            readers.start_soon(work)
    if failed:
        raise TrainingError("Failed to copy images from S3 bucket.")
    return [examples[number] for number in sorted(examples)]


async def _read_one(service: EmulatorService, number: int, entry: GroundTruth, task: Task, region: str) -> Example:
    bucket, _, key = entry.source_ref.removeprefix("s3://").partition("/")
    data = await service.read_object(bucket, key, region=region, limit_bytes=MAX_BYTES_S3)
    check_bytes(data, inline=False)

    def reduce() -> Example:
        picture = open_picture(data)
        return prepare(number, picture.image, (picture.width, picture.height), entry, task)

    return await anyio.to_thread.run_sync(reduce, limiter=service.threads)


async def _write_findings(service: EmulatorService, version: StoredVersion, findings: Findings) -> None:
    keys = result_keys(version)
    files = {
        keys.training_validation: findings.training,
        keys.testing_validation: findings.testing,
        keys.manifest_summary: findings.summary,
    }
    await _write(service, version, files)
    version.training_validation = keys.training_validation
    version.testing_validation = keys.testing_validation
    version.manifest_summary = keys.manifest_summary


async def _write_results(
    service: EmulatorService, version: StoredVersion, lines: list[bytes], trained: Trained
) -> None:
    ended = service.clock.time()
    keys = result_keys(version)
    files = {
        keys.summary: reports.summary(trained, version_arn=version.arn, ended=ended),
        keys.training_output: reports.training_snapshot(lines, trained.train),
        keys.testing_output: reports.snapshot(trained, ended=ended),
    }
    await _write(service, version, files)
    version.summary, version.training_output = keys.summary, keys.training_output
    version.testing_output = keys.testing_output
    version.f1_score = trained.evaluation.mean("f1")


async def _write(service: EmulatorService, version: StoredVersion, files: dict[str, bytes]) -> None:
    for key, data in files.items():
        try:
            await service.buckets.write(version.output_bucket, key, data, content_type="application/json")
        except ApiError as error:
            raise TrainingError(
                f"Unable to write to output S3 bucket. s3://{version.output_bucket}/{key}: {error}"
            ) from error
