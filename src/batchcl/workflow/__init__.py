"""Projects, datasets, training, evaluation, and starting and stopping models, from Python.

Each command of `batchcl project`, `batchcl dataset` and `batchcl model` is one of these functions.

```python
from batchcl import workflow

async with workflow.connect(region="eu-west-1") as service:
    project = await workflow.find_project(service.rekognition, "cats")
    arn = await workflow.train_model(service.rekognition, project, version="v2", output="s3://acme-photos/models")
    model = await workflow.wait_trained(service.rekognition, arn)
    async with service.s3() as s3:
        print((await workflow.evaluate_model(s3, model)).f1)
```
"""

from batchcl.arns import DatasetArn, ModelArn, ProjectArn
from batchcl.aws.datasets import (
    Dataset,
    DatasetLabel,
    S3Location,
    create_dataset,
    dataset_entries,
    dataset_labels,
    delete_dataset,
    describe_dataset,
    distribute_entries,
    update_entries,
)
from batchcl.aws.models import (
    Model,
    copy_model,
    delete_model,
    describe,
    list_models,
    stop,
    train_model,
    wait,
    wait_copied,
    wait_trained,
)
from batchcl.aws.names import find_dataset, find_model, find_project, project_name
from batchcl.aws.projects import (
    Project,
    ProjectDataset,
    ProjectPolicy,
    create_project,
    delete_policy,
    delete_project,
    describe_project,
    list_policies,
    list_projects,
    put_policy,
)
from batchcl.aws.regions import RegionOutcome, RegionSkip, SkippedRegion, in_regions, rekognition_regions
from batchcl.aws.tags import list_tags, tag, untag
from batchcl.lifetime.by_hand import end_lease, start, start_with_lease
from batchcl.lifetime.lease_tags import LeaseTag
from batchcl.lifetime.model_lease import clear_leases
from batchcl.lifetime.reaper import ReapedRegion, ReapOutcome, ReapResult, reap, reap_regions
from batchcl.lifetime.running import AgeSource, RunningModel, RunningModels, running_models
from batchcl.quantities import Units
from batchcl.workflow.connection import WorkflowClients, connect
from batchcl.workflow.corrections import Change, Corrections, read_corrections
from batchcl.workflow.create import Added, Created, add_local, create_from_local
from batchcl.workflow.evaluation import Confused, LabelScore, Mistake, ModelEvaluation, evaluate_model, evaluation_of
from batchcl.workflow.local import LocalDataset, Skipped, read_local
from batchcl.workflow.unleased import age_text, unleased, unleased_event
from batchcl.workflow.upload import S3Folder, Uploaded, have_bucket, upload_images

__all__ = [
    "Added",
    "AgeSource",
    "Change",
    "Confused",
    "Corrections",
    "Created",
    "Dataset",
    "DatasetArn",
    "DatasetLabel",
    "LabelScore",
    "LeaseTag",
    "LocalDataset",
    "Mistake",
    "Model",
    "ModelArn",
    "ModelEvaluation",
    "Project",
    "ProjectArn",
    "ProjectDataset",
    "ProjectPolicy",
    "ReapOutcome",
    "ReapResult",
    "ReapedRegion",
    "RegionOutcome",
    "RegionSkip",
    "RunningModel",
    "RunningModels",
    "S3Folder",
    "S3Location",
    "Skipped",
    "SkippedRegion",
    "Units",
    "Uploaded",
    "WorkflowClients",
    "add_local",
    "age_text",
    "clear_leases",
    "connect",
    "copy_model",
    "create_dataset",
    "create_from_local",
    "create_project",
    "dataset_entries",
    "dataset_labels",
    "delete_dataset",
    "delete_model",
    "delete_policy",
    "delete_project",
    "describe",
    "describe_dataset",
    "describe_project",
    "distribute_entries",
    "end_lease",
    "evaluate_model",
    "evaluation_of",
    "find_dataset",
    "find_model",
    "find_project",
    "have_bucket",
    "in_regions",
    "list_models",
    "list_policies",
    "list_projects",
    "list_tags",
    "project_name",
    "put_policy",
    "read_corrections",
    "read_local",
    "reap",
    "reap_regions",
    "rekognition_regions",
    "running_models",
    "start",
    "start_with_lease",
    "stop",
    "tag",
    "train_model",
    "unleased",
    "unleased_event",
    "untag",
    "update_entries",
    "upload_images",
    "wait",
    "wait_copied",
    "wait_trained",
]
