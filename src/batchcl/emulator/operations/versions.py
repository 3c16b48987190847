"""CreateProjectVersion, DescribeProjectVersions, StartProjectVersion, StopProjectVersion, DeleteProjectVersion."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from batchcl.emulator.capacity import check_tags
from batchcl.emulator.errors import ApiError, in_use, invalid_parameter, over_limit, over_quota
from batchcl.emulator.learning.training import TrainingError
from batchcl.emulator.operations.pagination import page
from batchcl.emulator.records import StoredVersion, version_arn
from batchcl.emulator.training_job import ReadTrainingData, TrainingData, read_manifest, run_training, split_lines

if TYPE_CHECKING:
    from batchcl.emulator.service import Call

__all__ = [
    "create_project_version",
    "delete_project_version",
    "describe_project_versions",
    "start_project_version",
    "stop_project_version",
]

_STARTABLE: Final = frozenset({"TRAINING_COMPLETED", "STOPPED", "FAILED", "COPYING_COMPLETED"})
_RUNNING: Final = frozenset({"STARTING", "RUNNING", "STOPPING"})
_BUSY: Final = _RUNNING | {"TRAINING_IN_PROGRESS", "COPYING_IN_PROGRESS", "DELETING"}


async def create_project_version(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start to train a version with the project's datasets, or with the manifests in the call."""
    service, state = call.service, call.service.state
    project = call.project(parameters["ProjectArn"])
    if "FeatureConfig" in parameters:
        raise invalid_parameter("FeatureConfig does not apply to CUSTOM_LABELS projects.")
    output = parameters["OutputConfig"]
    if not output.get("S3Bucket"):
        raise invalid_parameter("OutputConfig has no S3Bucket.")
    tags = parameters.get("Tags", {})
    check_tags(tags)
    _check_training(call, project.arn, parameters["VersionName"])
    training_data = await _training_data(call, project.arn, parameters)
    _check_training(call, project.arn, parameters["VersionName"])  # another call may have created it meanwhile
    arn = version_arn(call.account, call.region, project.name, parameters["VersionName"], now=call.now)
    version = StoredVersion(
        arn=arn,
        project_arn=project.arn,
        name=parameters["VersionName"],
        created=call.now,
        status="TRAINING_IN_PROGRESS",
        status_message="The model is being trained.",
        output_bucket=output["S3Bucket"],
        output_prefix=output.get("S3KeyPrefix", ""),
        description=parameters.get("VersionDescription"),
        kms_key_id=parameters.get("KmsKeyId"),
        training_input=parameters.get("TrainingData"),
        testing_input=parameters.get("TestingData"),
        tags=tags,
    )
    state.versions[arn] = version
    state.save()
    service.tasks.start_soon(run_training, service, version, training_data)
    return {"ProjectVersionArn": arn}


async def describe_project_versions(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """A project's versions, newest first."""
    project = call.project(parameters["ProjectArn"])
    wanted = parameters.get("VersionNames")
    found = call.service.state.versions_of(project.arn, now=call.now)
    if wanted is not None:
        found = [v for v in found if v.name in wanted]
    shown, more = page(found, parameters, scope=f"versions {project.arn}")
    return {"ProjectVersionDescriptions": [_describe(v) for v in shown], **more}


async def start_project_version(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start a trained version. The real service bills from here on."""
    version, quotas = call.version(parameters["ProjectVersionArn"]), call.service.quotas
    min_units, max_units = parameters["MinInferenceUnits"], parameters.get("MaxInferenceUnits")
    if max_units is not None and max_units < min_units:
        raise invalid_parameter("MaxInferenceUnits is less than MinInferenceUnits.")
    if max(min_units, max_units or 0) > quotas.units:
        raise over_limit(f"A model can have at most {quotas.units} inference units.")
    if version.status not in _STARTABLE:
        raise in_use(f"The model {version.arn} can't be started while it is {version.status}.")
    running = [v for v in call.service.state.settled(call.now) if call.mine(v.arn) and v.status in _RUNNING]
    if len(running) >= quotas.running:
        raise over_limit(f"The account has {len(running)} running models and can have {quotas.running}.")
    version.become("STARTING", "The model is starting.")
    version.schedule("RUNNING", "The model is running.", due=call.now + call.service.settings.start_seconds)
    version.min_units, version.max_units = min_units, max_units
    call.service.state.save()
    return {"Status": "STARTING"}


async def stop_project_version(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Stop a running version. It rejects images from here on."""
    version = call.version(parameters["ProjectVersionArn"])
    if version.status != "RUNNING":
        raise in_use(f"The model {version.arn} can't be stopped while it is {version.status}.")
    call.service.halt(version, "STOPPING", "The model is stopping.", now=call.now)
    version.schedule("STOPPED", "The model is stopped.", due=call.now + call.service.settings.stop_seconds)
    call.service.state.save()
    return {"Status": "STOPPING"}


async def delete_project_version(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start to delete a version that is not training or running."""
    version = call.version(parameters["ProjectVersionArn"])
    if version.status in _BUSY:
        raise in_use(f"The model {version.arn} can't be deleted while it is {version.status}.")
    version.become("DELETING", "The model is being deleted.")
    version.gone = call.now + call.service.settings.delete_seconds
    call.service.models.pop(version.arn, None)
    call.service.state.settle(call.now)
    call.service.state.save()
    return {"Status": "DELETING"}


def _check_training(call: Call, project_arn: str, name: str) -> None:
    state, quotas = call.service.state, call.service.quotas
    if any(v.name == name for v in state.versions_of(project_arn, now=call.now)):
        raise in_use(f"A model version named {name} already exists in the project.")
    training = [v for v in state.settled(call.now) if call.mine(v.arn) and v.status == "TRAINING_IN_PROGRESS"]
    if len(training) >= quotas.training:
        raise over_limit(f"The account trains {len(training)} models and can train {quotas.training} at once.")
    if len(state.versions_of(project_arn, now=call.now)) >= quotas.versions:
        raise over_quota(f"A project can have {quotas.versions} model versions.")


async def _training_data(call: Call, project_arn: str, parameters: dict[str, Any]) -> ReadTrainingData:
    """A function that reads the manifest lines; those of datasets are read now."""
    state = call.service.state
    datasets = state.datasets_of(project_arn)
    assets = parameters.get("TrainingData", {}).get("Assets")
    testing = parameters.get("TestingData", {})
    if datasets:
        if assets or testing:
            raise invalid_parameter("The project has datasets; TrainingData and TestingData can't be given.")
        for dataset in datasets.values():
            if not dataset.usable_at(call.now):
                raise in_use(f"The dataset {dataset.arn} is {dataset.status_at(call.now)}.")
        if "TRAIN" not in datasets:
            raise invalid_parameter("The project has no training dataset.")
        lines = {kind: split_lines(state.read_manifest(d.arn)) for kind, d in datasets.items()}

        async def of_datasets() -> TrainingData:
            return TrainingData(lines["TRAIN"], lines.get("TEST"), None if "TEST" in lines else datasets["TRAIN"].arn)

        return of_datasets
    if not assets:
        raise invalid_parameter("The project has no training dataset, and the call has no TrainingData.")
    if testing.get("Assets") and testing.get("AutoCreate"):
        raise invalid_parameter("TestingData has both Assets and AutoCreate.")

    async def of_manifests() -> TrainingData:
        train = await _assets(call, assets)
        return TrainingData(train, await _assets(call, testing["Assets"]) if testing.get("Assets") else None)

    return of_manifests


async def _assets(call: Call, assets: list[dict[str, Any]]) -> list[bytes]:
    lines: list[bytes] = []
    for asset in assets:
        where = asset.get("GroundTruthManifest", {}).get("S3Object", {})
        try:
            lines += split_lines(await read_manifest(call.service, where, call.region))
        except ApiError as error:
            is_documented = error.code == "InvalidParameterException"
            reason = str(error) if is_documented else "The manifest file extension or contents are invalid."
            name = f"s3://{where.get('Bucket', '')}/{where.get('Name', '')}"
            raise TrainingError(f"{reason} {name}") from error
    return lines


def _describe(version: StoredVersion) -> dict[str, Any]:
    described: dict[str, Any] = {
        "ProjectVersionArn": version.arn,
        "CreationTimestamp": dt.datetime.fromtimestamp(version.created, dt.UTC),
        "Status": version.status,
        "StatusMessage": version.status_message,
        "OutputConfig": {"S3Bucket": version.output_bucket, "S3KeyPrefix": version.output_prefix},
        "Feature": "CUSTOM_LABELS",
    }
    optional = {
        "MinInferenceUnits": version.min_units,
        "MaxInferenceUnits": version.max_units,
        "VersionDescription": version.description,
        "KmsKeyId": version.kms_key_id,
        "SourceProjectVersionArn": version.source_arn,
    }
    described.update({name: value for name, value in optional.items() if value is not None})
    if version.status in {"TRAINING_IN_PROGRESS", "COPYING_IN_PROGRESS", "COPYING_FAILED"}:
        return described
    if version.ended is not None:
        described["TrainingEndTimestamp"] = dt.datetime.fromtimestamp(version.ended, dt.UTC)
    if version.billable_seconds is not None:  # trained successfully
        described["BillableTrainingTimeInSeconds"] = version.billable_seconds
        described["EvaluationResult"] = {
            "F1Score": version.f1_score,
            "Summary": {"S3Object": {"Bucket": version.output_bucket, "Name": version.summary}},
        }
    if version.manifest_summary is not None:
        described["ManifestSummary"] = {"S3Object": {"Bucket": version.output_bucket, "Name": version.manifest_summary}}
    for part, given, output, validation in (
        ("TrainingDataResult", version.training_input, version.training_output, version.training_validation),
        ("TestingDataResult", version.testing_input, version.testing_output, version.testing_validation),
    ):
        result = {} if given is None else {"Input": given}
        result |= {
            name: {"Assets": [{"GroundTruthManifest": {"S3Object": {"Bucket": version.output_bucket, "Name": key}}}]}
            for name, key in (("Output", output), ("Validation", validation))
            if key is not None
        }
        if result:
            described[part] = result
    return described
