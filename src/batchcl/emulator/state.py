"""Projects, datasets, model versions and policies, stored in a folder.

`state.json` has everything except manifests and trained models, which are separate files; it is replaced atomically. A
folder is used by one emulator at a time.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from batchcl.emulator.records import StoredDataset, StoredPolicy, StoredProject, StoredVersion
from batchcl.errors import ErrorCode, RefusedError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EmulatorState"]

_LOST_ON_RESTART: Final = {
    "STARTING": ("STOPPED", "The emulator ended while the model was starting."),
    "RUNNING": ("STOPPED", "The emulator ended while the model was running."),
    "STOPPING": ("STOPPED", "The model is stopped."),
    "TRAINING_IN_PROGRESS": ("TRAINING_FAILED", "The emulator ended while the model was training. Train it again."),
    "COPYING_IN_PROGRESS": ("COPYING_FAILED", "The emulator ended while the model was being copied. Copy it again."),
}

_IN_PROGRESS: Final = frozenset({"TRAINING_IN_PROGRESS", "COPYING_IN_PROGRESS"})


@dataclass(slots=True)
class EmulatorState:
    """The stored resources. Created by `open`.

    `deleted_usage` has (billed unit seconds, billed training seconds) of deleted versions, by ARN.
    """

    directory: Path
    projects: dict[str, StoredProject] = field(default_factory=dict)
    datasets: dict[str, StoredDataset] = field(default_factory=dict)
    versions: dict[str, StoredVersion] = field(default_factory=dict)
    policies: dict[str, StoredPolicy] = field(default_factory=dict)
    deleted_usage: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: int = -1

    @classmethod
    def open(cls, directory: Path) -> EmulatorState:
        """Lock and load `directory`, creating it if it is missing. Models that were running are STOPPED.

        Raises:
            RefusedError: the folder can't be written, another emulator uses it, or its `state.json` is not valid.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RefusedError(
                f"keeping the emulator's state in {directory} failed: {error.strerror}. Choose a folder that can be "
                "written.",
                code=ErrorCode.EMULATOR_FAILED,
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise RefusedError(
                f"another emulator uses the state folder {directory}. End it, or choose another folder.",
                code=ErrorCode.EMULATOR_FAILED,
            ) from None
        state = cls(directory, _lock=lock)
        try:
            state._load()
        except (OSError, ValueError, KeyError, TypeError) as error:
            state.close()
            raise RefusedError(
                f"reading {directory / 'state.json'} failed: it is not the state of an emulator ({error}). Choose "
                "another folder, or move the file away.",
                code=ErrorCode.EMULATOR_FAILED,
            ) from error
        return state

    def close(self) -> None:
        """Release the folder for other emulators."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def save(self) -> None:
        """Write `state.json` atomically."""
        document = {
            "format": 1,
            "projects": [dataclasses.asdict(p) for p in self.projects.values()],
            "datasets": [dataclasses.asdict(d) for d in self.datasets.values()],
            "versions": [dataclasses.asdict(v) for v in self.versions.values()],
            "policies": [dataclasses.asdict(p) for p in self.policies.values()],
            "deleted_usage": self.deleted_usage,
        }
        self._replace("state.json", orjson.dumps(document, option=orjson.OPT_INDENT_2))

    def settle(self, now: float) -> None:
        """Remove resources whose deletion is complete, and apply scheduled changes of the versions' status."""
        gone = [
            resource
            for resources in (self.versions, self.datasets, self.projects)
            for resource in resources.values()
            if resource.gone is not None and now >= resource.gone
        ]
        for resource in gone:
            self._remove(resource)
        if gone:
            self.save()
        for version in self.versions.values():
            version.settle(now)

    def version(self, arn: str, *, now: float) -> StoredVersion | None:
        """A version with its status at `now`."""
        version = self.versions.get(arn)
        if version is not None:
            version.settle(now)
        return version

    def versions_of(self, project_arn: str, *, now: float) -> list[StoredVersion]:
        """A project's versions with their status at `now`."""
        return [v for v in self.settled(now) if v.project_arn == project_arn]

    def settled(self, now: float) -> list[StoredVersion]:
        """All versions with their status at `now`."""
        for version in self.versions.values():
            version.settle(now)
        return list(self.versions.values())

    def policies_of(self, project_arn: str) -> list[StoredPolicy]:
        """A project's policies."""
        return [p for p in self.policies.values() if p.project_arn == project_arn]

    def datasets_of(self, project_arn: str) -> dict[str, StoredDataset]:
        """A project's datasets by kind, TRAIN and TEST."""
        return {d.kind: d for d in self.datasets.values() if d.project_arn == project_arn}

    def model_path(self, version_arn: str) -> Path:
        """The file of a version's trained model."""
        return self.directory / f"model-{_short_hash(version_arn)}.npz"

    def write_manifest(self, dataset_arn: str, data: bytes) -> None:
        """Store a dataset's entries as JSON Lines."""
        self._replace(self._manifest_name(dataset_arn), data)

    def read_manifest(self, dataset_arn: str) -> bytes:
        """A dataset's entries as JSON Lines."""
        return (self.directory / self._manifest_name(dataset_arn)).read_bytes()

    def _remove(self, resource: StoredProject | StoredDataset | StoredVersion) -> None:
        """Remove a resource and its files; for a project, also its datasets and policies."""
        if isinstance(resource, StoredVersion):
            trained_s = 0.0 if resource.source_arn else float(resource.billable_seconds or 0)
            self.deleted_usage[resource.arn] = (resource.unit_seconds, trained_s)
            del self.versions[resource.arn]
            self.model_path(resource.arn).unlink(missing_ok=True)
        elif isinstance(resource, StoredDataset):
            del self.datasets[resource.arn]
            (self.directory / self._manifest_name(resource.arn)).unlink(missing_ok=True)
        else:
            for dataset in self.datasets_of(resource.arn).values():
                self._remove(dataset)
            for policy in self.policies_of(resource.arn):
                del self.policies[policy.arn]
            del self.projects[resource.arn]

    def _manifest_name(self, dataset_arn: str) -> str:
        return f"dataset-{_short_hash(dataset_arn)}.manifest"

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.directory / f"{name}.part"
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.directory / name)

    def _load(self) -> None:
        try:
            document = orjson.loads((self.directory / "state.json").read_bytes())
        except FileNotFoundError:
            return
        if document["format"] != 1:
            raise ValueError(f"its format is {document['format']}")
        self.projects = {p["arn"]: StoredProject(**p) for p in document["projects"]}
        self.datasets = {d["arn"]: StoredDataset(**d) for d in document["datasets"]}
        self.versions = {v["arn"]: StoredVersion(**v) for v in document["versions"]}
        policies = [StoredPolicy(**p) for p in document.get("policies", ())]
        self.policies = {p.arn: p for p in policies}
        self.deleted_usage = {arn: (u, t) for arn, (u, t) in document.get("deleted_usage", {}).items()}
        for version in self.versions.values():
            version.metered_since = version.units = None
            if version.status in _IN_PROGRESS and version.next_status is not None:
                version.become(version.next_status, version.next_message)  # the work is done, the time was not over yet
            elif version.status in _LOST_ON_RESTART:
                version.become(*_LOST_ON_RESTART[version.status])


def _short_hash(arn: str) -> str:
    return hashlib.sha256(arn.encode()).hexdigest()[:24]
