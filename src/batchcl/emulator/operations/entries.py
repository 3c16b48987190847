"""ListDatasetEntries, ListDatasetLabels, UpdateDatasetEntries, DistributeDatasetEntries."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.dataset_files import contents_of
from batchcl.emulator.errors import ApiError, in_use, invalid_parameter, over_limit
from batchcl.emulator.learning.training import held_out
from batchcl.emulator.manifest import DATASET, with_errors
from batchcl.emulator.operations.pagination import rows
from batchcl.emulator.training_job import split_lines

if TYPE_CHECKING:
    from batchcl.emulator.manifest import ManifestEntry
    from batchcl.emulator.records import StoredDataset
    from batchcl.emulator.service import Call

__all__ = ["distribute_dataset_entries", "list_dataset_entries", "list_dataset_labels", "update_dataset_entries"]

_UPDATED: Final = "The dataset was updated."
_TEST_SHARE: Final = 0.2
_FILTERS: Final = ("ContainsLabels", "Labeled", "SourceRefContains", "HasErrors")
_TOO_FEW: Final = "The manifest file doesn't have enough labeled images to distribute the dataset."


async def list_dataset_entries(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """The JSON Lines of a dataset that match all filters, with their errors."""
    dataset = call.dataset(parameters["DatasetArn"])
    _check_listable(call, dataset)
    found = [e for e in await call.service.dataset_files.read(dataset) if _matches(e, parameters)]
    filters = orjson.dumps([parameters.get(name) for name in _FILTERS]).decode()
    shown, more = rows(found, parameters, scope=f"entries {dataset.arn} {filters}")
    return {"DatasetEntries": [with_errors(e.line, DATASET).decode() for e in shown], **more}


async def list_dataset_labels(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """All labels, each with the number of its images, and of those with a box."""
    dataset = call.dataset(parameters["DatasetArn"])
    _check_listable(call, dataset)
    images: Counter[str] = Counter()
    boxed: Counter[str] = Counter()
    for entry in await call.service.dataset_files.read(dataset):
        if entry.truth is not None:
            images.update(entry.truth.labels)
            boxed.update({box.label for box in entry.truth.boxes})
    shown, more = rows(sorted(images), parameters, scope=f"labels {dataset.arn}")
    described = [
        {"LabelName": label, "LabelStats": {"EntryCount": images[label], "BoundingBoxCount": boxed[label]}}
        for label in shown
    ]
    return {"DatasetLabelDescriptions": described, **more}


async def update_dataset_entries(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Add JSON Lines; they replace existing entries of the same image."""
    dataset = call.dataset(parameters["DatasetArn"])
    _check_changeable(call, dataset)
    lines = split_lines(parameters["Changes"]["GroundTruth"])
    if not lines:
        raise invalid_parameter("The changes have no JSON Lines.")
    files = call.service.dataset_files
    kept = await files.read(dataset)
    most = call.service.quotas.entries
    contents = await contents_of(lines, kept=kept, most=most)
    _check_changeable(call, dataset)  # another call may have changed it meanwhile
    if len(lines) + len(kept) > most and contents.refusal is not None:
        raise over_limit(f"A dataset can have {most} entries.")
    if contents.refusal is None:
        files.write(dataset, contents.entries)
    _start_update(call, dataset, contents.refusal)
    call.service.state.save()
    return {}


async def distribute_dataset_entries(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Move a fifth of a project's training dataset to its empty test dataset, the same share of each label."""
    datasets = {d.kind: d for d in (call.dataset(each["Arn"]) for each in parameters["Datasets"])}
    if datasets.keys() != {"TRAIN", "TEST"}:
        raise invalid_parameter("Datasets must be a training dataset and a test dataset.")
    train, test = datasets["TRAIN"], datasets["TEST"]
    if train.project_arn != test.project_arn:
        raise invalid_parameter("The datasets must belong to the same project.")
    for dataset in (train, test):
        if not dataset.usable_at(call.now):
            raise _not_ready(call, dataset)
    if test.entries:
        raise invalid_parameter(f"The test dataset {test.arn} is not empty.")
    if not train.entries:
        raise invalid_parameter(f"The training dataset {train.arn} is empty.")
    files = call.service.dataset_files
    entries = await files.read(train)
    groups = [e.truth.labels[0] if e.truth is not None and e.truth.labels else "" for e in entries]
    moved = held_out(groups, share=_TEST_SHARE, seed=call.service.settings.seed)
    enough = any(groups[n] for n in moved)
    if enough:
        files.write(test, [e for n, e in enumerate(entries) if n in moved])
        files.write(train, [e for n, e in enumerate(entries) if n not in moved])
    for dataset in (train, test):
        _start_update(call, dataset, None if enough else _TOO_FEW)
    call.service.state.save()
    return {}


def _matches(entry: ManifestEntry, parameters: dict[str, Any]) -> bool:
    labels = entry.truth.labels if entry.truth is not None else ()
    wanted = parameters.get("ContainsLabels")
    return (
        (wanted is None or not set(wanted).isdisjoint(labels))
        and parameters.get("Labeled", entry.labeled) == entry.labeled
        and parameters.get("HasErrors", bool(entry.errors)) == bool(entry.errors)
        and parameters.get("SourceRefContains", "") in str(entry.source_ref)
    )


def _check_listable(call: Call, dataset: StoredDataset) -> None:
    """Entries can't be listed while a dataset is being created or changed."""
    if dataset.status_at(call.now) in {"CREATE_IN_PROGRESS", "CREATE_FAILED"}:
        raise _not_ready(call, dataset)
    if not dataset.usable_at(call.now):
        raise in_use(f"The dataset {dataset.arn} is {dataset.status_at(call.now)}.")


def _check_changeable(call: Call, dataset: StoredDataset) -> None:
    if not dataset.usable_at(call.now):
        raise in_use(f"The dataset {dataset.arn} can't be changed; it is {dataset.status_at(call.now)}.")
    state = call.service.state
    if any(v.status == "TRAINING_IN_PROGRESS" for v in state.versions_of(dataset.project_arn, now=call.now)):
        raise in_use(f"The dataset {dataset.arn} is being used to train a model.")


def _not_ready(call: Call, dataset: StoredDataset) -> ApiError:
    message = f"The dataset {dataset.arn} is not ready; it is {dataset.status_at(call.now)}."
    return ApiError("ResourceNotReadyException", message)


def _start_update(call: Call, dataset: StoredDataset, refusal: str | None) -> None:
    """Start an update that succeeds, or fails with the message `refusal`."""
    dataset.doing = "UPDATE_IN_PROGRESS"
    dataset.updated = call.now
    dataset.ready = call.now + call.service.settings.dataset_seconds
    dataset.status = "UPDATE_COMPLETE" if refusal is None else "UPDATE_FAILED"
    dataset.status_message = refusal or _UPDATED
