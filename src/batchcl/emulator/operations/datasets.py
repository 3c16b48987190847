"""CreateDataset, DescribeDataset, DeleteDataset."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from batchcl.emulator.capacity import check_tags
from batchcl.emulator.dataset_files import Contents, contents_of
from batchcl.emulator.errors import ApiError, in_use, invalid_parameter
from batchcl.emulator.records import StoredDataset, dataset_arn
from batchcl.emulator.training_job import read_manifest, split_lines

if TYPE_CHECKING:
    from batchcl.emulator.service import Call

__all__ = ["create_dataset", "delete_dataset", "describe_dataset", "message_of"]

_CREATED = "The dataset was created."
_BUSY = {
    "CREATE_IN_PROGRESS": "The dataset is being created.",
    "UPDATE_IN_PROGRESS": "The dataset is being updated.",
    "DELETE_IN_PROGRESS": "The dataset is being deleted.",
}


async def create_dataset(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Create a project's training or test dataset: from a manifest, from another dataset, or empty."""
    project = call.project(parameters["ProjectArn"])
    kind = parameters["DatasetType"]
    tags = parameters.get("Tags", {})
    check_tags(tags)
    _check_unique(call, project.arn, kind)
    contents = await _contents(call, parameters.get("DatasetSource", {}))
    _check_unique(call, project.arn, kind)  # another call may have created it meanwhile
    service = call.service
    now = service.clock.time()
    dataset = StoredDataset(
        arn=dataset_arn(call.account, call.region, project.name, kind, now=now),
        project_arn=project.arn,
        kind=kind,
        created=now,
        ready=now + service.settings.dataset_seconds,
        status="CREATE_COMPLETE" if contents.refusal is None else "CREATE_FAILED",
        status_message=contents.refusal or _CREATED,
        tags=tags,
    )
    service.state.datasets[dataset.arn] = dataset
    service.dataset_files.write(dataset, contents.entries if contents.refusal is None else ())
    service.state.save()
    return {"DatasetArn": dataset.arn}


async def describe_dataset(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """A dataset's status and counts."""
    dataset = call.dataset(parameters["DatasetArn"])
    updated = dataset.created if dataset.updated is None else dataset.updated
    return {
        "DatasetDescription": {
            "CreationTimestamp": dt.datetime.fromtimestamp(dataset.created, dt.UTC),
            "LastUpdatedTimestamp": dt.datetime.fromtimestamp(updated, dt.UTC),
            **message_of(dataset, call.now),
            "DatasetStats": {
                "LabeledEntries": dataset.labeled_entries,
                "TotalEntries": dataset.entries,
                "TotalLabels": dataset.labels,
                "ErrorEntries": dataset.error_entries,
            },
        }
    }


async def delete_dataset(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start to delete a dataset that is not being created, changed or used for training."""
    dataset = call.dataset(parameters["DatasetArn"])
    status = dataset.status_at(call.now)
    if status.endswith("IN_PROGRESS"):
        raise in_use(f"The dataset {dataset.arn} is {status}.")
    state = call.service.state
    if any(v.status == "TRAINING_IN_PROGRESS" for v in state.versions_of(dataset.project_arn, now=call.now)):
        raise in_use(f"The dataset {dataset.arn} is being used to train a model.")
    dataset.gone = call.now + call.service.settings.delete_seconds
    state.settle(call.now)
    state.save()
    return {}


def message_of(dataset: StoredDataset, now: float) -> dict[str, str]:
    """The members of a response for the status at `now`."""
    status = dataset.status_at(now)
    failed = status.endswith("FAILED")
    return {
        "Status": status,
        "StatusMessage": _BUSY.get(status, dataset.status_message),
        "StatusMessageCode": "CLIENT_ERROR" if failed else "SUCCESS",
    }


def _check_unique(call: Call, project_arn: str, kind: str) -> None:
    if kind in call.service.state.datasets_of(project_arn):
        raise ApiError("ResourceAlreadyExistsException", f"The project already has a {kind} dataset.")


async def _contents(call: Call, source: dict[str, Any]) -> Contents:
    service = call.service
    if "DatasetArn" in source and "GroundTruthManifest" in source:
        raise invalid_parameter("Give either DatasetArn or GroundTruthManifest, not both.")
    if "DatasetArn" in source:
        copied = call.dataset(source["DatasetArn"])
        if not copied.usable_at(call.now):
            raise invalid_parameter(f"The dataset {copied.arn} can't be copied; it is {copied.status_at(call.now)}.")
        return Contents(await service.dataset_files.read(copied))
    if "GroundTruthManifest" in source:
        manifest = await read_manifest(service, source["GroundTruthManifest"].get("S3Object", {}), call.region)
        return await contents_of(split_lines(manifest), most=call.service.quotas.entries)
    return Contents(())
