"""The operations of the emulator, by their names in the API.

An operation is a function of a `Call` and its validated parameters. It returns the members of the response or raises an
`ApiError`. Signatures, quotas and JSON are handled before and after it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from batchcl.emulator.operations import copies, datasets, detect, entries, policies, projects, versions
from batchcl.emulator.service import Call

__all__ = ["OPERATIONS", "Operation"]

Operation = Callable[[Call, dict[str, Any]], Awaitable[dict[str, Any]]]

OPERATIONS: Final[dict[str, Operation]] = {
    "CopyProjectVersion": copies.copy_project_version,
    "DeleteProjectPolicy": policies.delete_project_policy,
    "ListProjectPolicies": policies.list_project_policies,
    "PutProjectPolicy": policies.put_project_policy,
    "CreateDataset": datasets.create_dataset,
    "CreateProject": projects.create_project,
    "CreateProjectVersion": versions.create_project_version,
    "DeleteDataset": datasets.delete_dataset,
    "DeleteProject": projects.delete_project,
    "DeleteProjectVersion": versions.delete_project_version,
    "DescribeDataset": datasets.describe_dataset,
    "DescribeProjectVersions": versions.describe_project_versions,
    "DescribeProjects": projects.describe_projects,
    "DetectCustomLabels": detect.detect_custom_labels,
    "DistributeDatasetEntries": entries.distribute_dataset_entries,
    "ListDatasetEntries": entries.list_dataset_entries,
    "ListDatasetLabels": entries.list_dataset_labels,
    "ListTagsForResource": projects.list_tags_for_resource,
    "StartProjectVersion": versions.start_project_version,
    "StopProjectVersion": versions.stop_project_version,
    "TagResource": projects.tag_resource,
    "UntagResource": projects.untag_resource,
    "UpdateDatasetEntries": entries.update_dataset_entries,
}
"""An operation is only registered here."""
