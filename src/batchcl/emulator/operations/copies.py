"""CopyProjectVersion."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from batchcl.emulator.capacity import check_tags
from batchcl.emulator.errors import (
    ApiError,
    access_denied,
    in_use,
    invalid_parameter,
    not_found,
    over_limit,
    over_quota,
)
from batchcl.emulator.operations.policies import may_copy
from batchcl.emulator.records import owner, version_arn
from batchcl.emulator.training_job import result_keys

if TYPE_CHECKING:
    from batchcl.emulator.records import StoredProject, StoredVersion
    from batchcl.emulator.service import Call

__all__ = ["copy_project_version"]

_MAX_RESULT_BYTES: Final = 1 << 30
_COPIED: Final = "The model was copied and is ready to run."
_TRAINED: Final = frozenset({"TRAINING_COMPLETED", "STARTING", "RUNNING", "STOPPING", "STOPPED", "COPYING_COMPLETED"})


async def copy_project_version(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start to copy a trained version to a project of the caller, if the source project's policy allows it."""
    service, state = call.service, call.service.state
    target = call.project(parameters["DestinationProjectArn"])
    source = _source(call, parameters)
    output, tags = parameters["OutputConfig"], parameters.get("Tags", {})
    if not output.get("S3Bucket"):
        raise invalid_parameter("OutputConfig has no S3Bucket.")
    check_tags(tags)
    _check_limits(call, target, parameters["VersionName"])
    now = service.clock.time()
    copy = dataclasses.replace(
        source,
        arn=version_arn(call.account, call.region, target.name, parameters["VersionName"], now=now),
        project_arn=target.arn,
        name=parameters["VersionName"],
        created=now,
        output_bucket=output["S3Bucket"],
        output_prefix=output.get("S3KeyPrefix", ""),
        kms_key_id=parameters.get("KmsKeyId"),
        source_arn=source.arn,
        min_units=None,
        max_units=None,
        tags=tags,
        unit_seconds=0.0,
        metered_since=None,
        units=None,
    )
    copy.become("COPYING_IN_PROGRESS", "The model is being copied.")
    state.versions[copy.arn] = copy
    state.save()
    service.tasks.start_soon(_copy, call, source, copy)
    return {"ProjectVersionArn": copy.arn}


def _source(call: Call, parameters: dict[str, Any]) -> StoredVersion:
    """The version to copy; checks that the caller may copy it."""
    state = call.service.state
    project_arn, arn = parameters["SourceProjectArn"], parameters["SourceProjectVersionArn"]
    source_owner = owner(arn)
    project = state.projects.get(project_arn)
    allowed = may_copy((p.document for p in state.policies_of(project_arn)), version_arn=arn, account=call.account)
    if allowed is False or (source_owner.account != call.account and not allowed):
        raise access_denied(call.operation, arn)
    version = state.version(arn, now=call.now)
    if project is None or version is None or source_owner.region != call.region:
        raise not_found(arn if project else project_arn)
    if version.project_arn != project_arn:
        raise invalid_parameter("SourceProjectVersionArn is not a version of the project SourceProjectArn.")
    if version.status.endswith("IN_PROGRESS") or version.status == "DELETING":
        raise in_use(f"The model {arn} can't be copied while it is {version.status}.")
    if version.status not in _TRAINED:
        raise invalid_parameter(f"The model {arn} can't be copied; it is {version.status}.")
    return version


def _check_limits(call: Call, target: StoredProject, name: str) -> None:
    state, quotas = call.service.state, call.service.quotas
    versions = state.versions_of(target.arn, now=call.now)
    if any(v.name == name for v in versions):
        raise in_use(f"A model version named {name} already exists in the project.")
    if len(versions) >= quotas.versions:
        raise over_quota(f"A project can have {quotas.versions} model versions.")
    copying = [v for v in state.settled(call.now) if call.mine(v.arn) and v.status == "COPYING_IN_PROGRESS"]
    if len(copying) >= quotas.copying:
        raise over_limit(f"The account copies {len(copying)} models and can copy {quotas.copying} at once.")


async def _copy(call: Call, source: StoredVersion, copy: StoredVersion) -> None:
    """Copy the model and its training results; the copy becomes COPYING_COMPLETED or COPYING_FAILED."""
    service, state = call.service, call.service.state
    old = [source.summary, source.training_output, source.testing_output]
    keys = result_keys(copy)
    new = [keys.summary, keys.training_output, keys.testing_output]
    try:
        await anyio.to_thread.run_sync(shutil.copyfile, state.model_path(source.arn), state.model_path(copy.arn))
        for old_key, new_key in zip(old, new, strict=True):
            data = await service.buckets.read(source.output_bucket, old_key or "", limit_bytes=_MAX_RESULT_BYTES)
            await service.buckets.write(copy.output_bucket, new_key, data, content_type="application/json")
        copy.summary, copy.training_output, copy.testing_output = new
        copy.training_validation = copy.testing_validation = copy.manifest_summary = None
        status, message = "COPYING_COMPLETED", _COPIED
    except (OSError, ApiError) as error:
        status, message = "COPYING_FAILED", f"The model or its training results can't be copied. {error}"
    if copy.arn in state.versions:
        due = max(service.clock.time(), copy.created + service.settings.copy_seconds)
        copy.schedule(status, message, due=due)
        state.save()
