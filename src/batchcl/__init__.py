"""batchcl: bulk scoring with Amazon Rekognition Custom Labels.

```python
import batchcl

summary = batchcl.run_sync(batchcl.Job(sources="photos/", model="products@v3", out="out"))
print(summary.scored, batchcl.open_results("out").detections().collect())
```

Each asynchronous function has a blocking twin: `run` and `run_sync`, likewise `pilot`, `plan`, `retry`, `detect`,
`doctor`, `running_models`, `costs`, `reconcile_costs`, `show`, `watch_run` and `write_report`.
`batchcl.workflow` has the functions on projects, datasets and models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchcl.__about__ import __version__

if TYPE_CHECKING:
    from batchcl.analysis.compare import ComparedImages, ComparedSide, Comparison, compare
    from batchcl.analysis.costs import costs
    from batchcl.analysis.export import Export, ExportedFile, export_parquet
    from batchcl.analysis.export_annotations import AnnotationExport, SkippedImage, export_annotations
    from batchcl.analysis.part_files import Batch
    from batchcl.analysis.reconcile import Reconciliation, reconcile_costs
    from batchcl.analysis.results import Results, open_results
    from batchcl.analysis.thresholds import ThresholdChoice, ThresholdStatus, choose_thresholds, write_thresholds
    from batchcl.analysis.truth import Truth, carried_truth, read_truth
    from batchcl.annotations.references import Matches
    from batchcl.arns import ModelArn
    from batchcl.aws.regions import RegionSkip, SkippedRegion
    from batchcl.aws.session import Aws, AwsSettings, Connection, StaticCredentials
    from batchcl.blocking import (
        costs_sync,
        detect_sync,
        doctor_sync,
        export_annotations_sync,
        pilot_sync,
        plan_sync,
        reconcile_costs_sync,
        retry_sync,
        run_sync,
        running_models_sync,
        show_sync,
        watch_run_sync,
        write_report_sync,
    )
    from batchcl.choices import CostsBy, Encryption, IfHeld, Order, ServerSideEncryption, SourceKind, Transport
    from batchcl.diagnosis import CheckStatus, CheckTarget, Diagnosis, Finding, doctor
    from batchcl.errors import (
        BatchclError,
        CallError,
        CredentialsError,
        CredentialsFailingError,
        ErrorCode,
        ExitCode,
        FatalCallError,
        HeldError,
        HostError,
        ImageError,
        InterruptedRunError,
        ModelError,
        ModelGoneError,
        ModelNotReadyError,
        OutputCredentialsError,
        OutputError,
        RefusedError,
        RegionError,
        RejectedError,
        ShortageError,
        SourceError,
        StalledError,
        StoppedError,
        ThrottledError,
        TooManyFailuresError,
        TransientError,
        UnreachableError,
        UsageError,
    )
    from batchcl.events import Notice, Observer, Progress, Snapshot
    from batchcl.images import ArchiveMember, ImageRef
    from batchcl.job import Job, load_job
    from batchcl.lifetime.running import AgeSource, RunningModel, RunningModels, running_models
    from batchcl.outcomes import Counts, Detection, Label
    from batchcl.quantities import AutoUnits, Tolerance, Units
    from batchcl.report.show import show
    from batchcl.report.write import Report, write_report
    from batchcl.runs.watch import WatchedRun, watch_run
    from batchcl.scoring.detect import DetectResult, ImageInput, detect
    from batchcl.scoring.estimates import Basis, Estimate
    from batchcl.scoring.pilot import Pilot, PilotRate, pilot
    from batchcl.scoring.plan import DeadlinePlan, Plan, plan
    from batchcl.scoring.retry import retry
    from batchcl.scoring.run import run
    from batchcl.stop_signal import StopSignal
    from batchcl.summary import SessionRecord, SourceCounts, Summary
    from batchcl.thresholds import Thresholds

__all__ = [
    "AgeSource",
    "AnnotationExport",
    "ArchiveMember",
    "AutoUnits",
    "Aws",
    "AwsSettings",
    "Basis",
    "Batch",
    "BatchclError",
    "CallError",
    "CheckStatus",
    "CheckTarget",
    "ComparedImages",
    "ComparedSide",
    "Comparison",
    "Connection",
    "CostsBy",
    "Counts",
    "CredentialsError",
    "CredentialsFailingError",
    "DeadlinePlan",
    "DetectResult",
    "Detection",
    "Diagnosis",
    "Encryption",
    "ErrorCode",
    "Estimate",
    "ExitCode",
    "Export",
    "ExportedFile",
    "FatalCallError",
    "Finding",
    "HeldError",
    "HostError",
    "IfHeld",
    "ImageError",
    "ImageInput",
    "ImageRef",
    "InterruptedRunError",
    "Job",
    "Label",
    "Matches",
    "ModelArn",
    "ModelError",
    "ModelGoneError",
    "ModelNotReadyError",
    "Notice",
    "Observer",
    "Order",
    "OutputCredentialsError",
    "OutputError",
    "Pilot",
    "PilotRate",
    "Plan",
    "Progress",
    "Reconciliation",
    "RefusedError",
    "RegionError",
    "RegionSkip",
    "RejectedError",
    "Report",
    "Results",
    "RunningModel",
    "RunningModels",
    "ServerSideEncryption",
    "SessionRecord",
    "ShortageError",
    "SkippedImage",
    "SkippedRegion",
    "Snapshot",
    "SourceCounts",
    "SourceError",
    "SourceKind",
    "StalledError",
    "StaticCredentials",
    "StopSignal",
    "StoppedError",
    "Summary",
    "ThresholdChoice",
    "ThresholdStatus",
    "Thresholds",
    "ThrottledError",
    "Tolerance",
    "TooManyFailuresError",
    "TransientError",
    "Transport",
    "Truth",
    "Units",
    "UnreachableError",
    "UsageError",
    "WatchedRun",
    "__version__",
    "carried_truth",
    "choose_thresholds",
    "compare",
    "costs",
    "costs_sync",
    "detect",
    "detect_sync",
    "doctor",
    "doctor_sync",
    "export_annotations",
    "export_annotations_sync",
    "export_parquet",
    "load_job",
    "open_results",
    "pilot",
    "pilot_sync",
    "plan",
    "plan_sync",
    "read_truth",
    "reconcile_costs",
    "reconcile_costs_sync",
    "retry",
    "retry_sync",
    "run",
    "run_sync",
    "running_models",
    "running_models_sync",
    "show",
    "show_sync",
    "watch_run",
    "watch_run_sync",
    "write_report",
    "write_report_sync",
    "write_thresholds",
]

_EXPORTS = {
    "batchcl.analysis.compare": ("ComparedImages", "ComparedSide", "Comparison", "compare"),
    "batchcl.analysis.costs": ("costs",),
    "batchcl.analysis.export": ("Export", "ExportedFile", "export_parquet"),
    "batchcl.analysis.export_annotations": ("AnnotationExport", "SkippedImage", "export_annotations"),
    "batchcl.analysis.part_files": ("Batch",),
    "batchcl.analysis.reconcile": ("Reconciliation", "reconcile_costs"),
    "batchcl.analysis.results": ("Results", "open_results"),
    "batchcl.analysis.thresholds": ("ThresholdChoice", "ThresholdStatus", "choose_thresholds", "write_thresholds"),
    "batchcl.analysis.truth": ("Truth", "carried_truth", "read_truth"),
    "batchcl.annotations.references": ("Matches",),
    "batchcl.arns": ("ModelArn",),
    "batchcl.aws.regions": ("RegionSkip", "SkippedRegion"),
    "batchcl.aws.session": ("Aws", "AwsSettings", "Connection", "StaticCredentials"),
    "batchcl.blocking": (
        "costs_sync",
        "detect_sync",
        "doctor_sync",
        "export_annotations_sync",
        "pilot_sync",
        "plan_sync",
        "reconcile_costs_sync",
        "retry_sync",
        "run_sync",
        "running_models_sync",
        "show_sync",
        "watch_run_sync",
        "write_report_sync",
    ),
    "batchcl.choices": ("CostsBy", "Encryption", "IfHeld", "Order", "ServerSideEncryption", "SourceKind", "Transport"),
    "batchcl.diagnosis": ("CheckStatus", "CheckTarget", "Diagnosis", "Finding", "doctor"),
    "batchcl.events": ("Notice", "Observer", "Progress", "Snapshot"),
    "batchcl.images": ("ArchiveMember", "ImageRef"),
    "batchcl.job": ("Job", "load_job"),
    "batchcl.lifetime.running": ("AgeSource", "RunningModel", "RunningModels", "running_models"),
    "batchcl.outcomes": ("Counts", "Detection", "Label"),
    "batchcl.quantities": ("AutoUnits", "Tolerance", "Units"),
    "batchcl.report.show": ("show",),
    "batchcl.report.write": ("Report", "write_report"),
    "batchcl.runs.watch": ("WatchedRun", "watch_run"),
    "batchcl.scoring.detect": ("DetectResult", "ImageInput", "detect"),
    "batchcl.scoring.estimates": ("Basis", "Estimate"),
    "batchcl.scoring.pilot": ("Pilot", "PilotRate", "pilot"),
    "batchcl.scoring.plan": ("DeadlinePlan", "Plan", "plan"),
    "batchcl.scoring.retry": ("retry",),
    "batchcl.scoring.run": ("run",),
    "batchcl.stop_signal": ("StopSignal",),
    "batchcl.summary": ("SessionRecord", "SourceCounts", "Summary"),
    "batchcl.thresholds": ("Thresholds",),
}
"""Module → its public names; whatever isn't listed is an error class."""

_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import on first use: `import batchcl` and `batchcl --help` load neither polars, pyarrow nor the AWS SDK."""
    if name not in __all__:
        raise AttributeError(f"module 'batchcl' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "batchcl.errors")), name)


def __dir__() -> list[str]:
    """All public names, also those that aren't imported yet."""
    return sorted({*globals(), *__all__})
