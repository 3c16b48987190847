"""CreateDataset, DescribeDataset, DeleteDataset."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from batchcl.emulator.arns import dataset_arn
from batchcl.emulator.faults import ServiceError, in_use, invalid_parameter
from batchcl.emulator.state import Dataset
from batchcl.emulator.training_job import read_manifest, split_lines
from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line

if TYPE_CHECKING:
    from batchcl.emulator.service import Call

__all__ = ["create_dataset", "delete_dataset", "describe_dataset"]

_CREATION_S: Final = 0.1
_MOST_ENTRIES: Final = 250_000


async def create_dataset(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Make a project's training or test dataset: from a manifest, from another dataset, or empty."""
    project = call.project(parameters["ProjectArn"])
    kind = parameters["DatasetType"]
    _refuse_second(call, project.arn, kind)
    manifest = await _entries(call, parameters.get("DatasetSource", {}))
    _refuse_second(call, project.arn, kind)  # another call may have made it during the read
    lines = split_lines(manifest)
    if len(lines) > _MOST_ENTRIES:
        raise ServiceError("LimitExceededException", f"A dataset has at most {_MOST_ENTRIES} entries.")
    labels: set[str] = set()
    labeled = broken = 0
    for line in lines:
        try:
            truth = parse_line(line)
        except SourceError:
            broken += 1
            continue
        labeled += truth.task is not None
        labels.update(truth.labels)
    failed = bool(lines) and broken == len(lines)
    arn = dataset_arn(call.account, call.region, project.name, kind, now=call.now)
    state = call.service.state
    state.write_manifest(arn, manifest)
    state.datasets[arn] = Dataset(
        arn=arn,
        project_arn=project.arn,
        kind=kind,
        created=call.now,
        ready=call.now + _CREATION_S,
        status="CREATE_FAILED" if failed else "CREATE_COMPLETE",
        status_message="The manifest file has no valid JSON Lines." if failed else "The dataset was created.",
        entries=len(lines),
        labeled_entries=labeled,
        error_entries=broken,
        labels=len(labels),
    )
    state.save()
    return {"DatasetArn": arn}


async def describe_dataset(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """A dataset's status and counts."""
    dataset = call.dataset(parameters["DatasetArn"])
    created = dt.datetime.fromtimestamp(dataset.created, dt.UTC)
    return {
        "DatasetDescription": {
            "CreationTimestamp": created,
            "LastUpdatedTimestamp": created,
            "Status": dataset.status_at(call.now),
            "StatusMessage": dataset.status_message,
            "StatusMessageCode": "CLIENT_ERROR" if dataset.status == "CREATE_FAILED" else "SUCCESS",
            "DatasetStats": {
                "LabeledEntries": dataset.labeled_entries,
                "TotalEntries": dataset.entries,
                "TotalLabels": dataset.labels,
                "ErrorEntries": dataset.error_entries,
            },
        }
    }


async def delete_dataset(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Delete a dataset that is neither being made nor trained with."""
    dataset = call.dataset(parameters["DatasetArn"])
    if dataset.status_at(call.now) == "CREATE_IN_PROGRESS":
        raise in_use(f"The dataset {dataset.arn} is being created.")
    state = call.service.state
    if any(v.status == "TRAINING_IN_PROGRESS" for v in state.versions_of(dataset.project_arn, now=call.now)):
        raise in_use(f"The dataset {dataset.arn} is being used to train a model.")
    state.forget_dataset(dataset.arn)
    state.save()
    return {}


def _refuse_second(call: Call, project_arn: str, kind: str) -> None:
    if kind in call.service.state.datasets_of(project_arn):
        raise ServiceError("ResourceAlreadyExistsException", f"The project already has a {kind} dataset.")


async def _entries(call: Call, source: dict[str, Any]) -> bytes:
    if "DatasetArn" in source and "GroundTruthManifest" in source:
        raise invalid_parameter("Give either DatasetArn or GroundTruthManifest, not both.")
    if "DatasetArn" in source:
        return call.service.state.read_manifest(call.dataset(source["DatasetArn"]).arn)
    if "GroundTruthManifest" in source:
        return await read_manifest(call.service, source["GroundTruthManifest"].get("S3Object", {}))
    return b""
