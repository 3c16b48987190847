"""batchcl: bulk scoring with Amazon Rekognition Custom Labels.

```python
import batchcl

summary = batchcl.run_sync(batchcl.Job(sources=["photos/"], emulator=True, out="out"))
print(summary.scored, batchcl.open_results("out").detections().collect())
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchcl.__about__ import __version__

if TYPE_CHECKING:
    from batchcl.analysis.export import Export, ExportedFile, export_parquet
    from batchcl.analysis.results import Results, open_results
    from batchcl.doctor import Diagnosis, Finding, diagnose
    from batchcl.errors import (
        BatchclError,
        CallError,
        CredentialsError,
        ExitCode,
        ModelError,
        OutputError,
        RefusedError,
        RegionError,
        SourceError,
        StoppedError,
        UsageError,
    )
    from batchcl.job import Job, load_job
    from batchcl.scoring.detect import DetectResult, detect
    from batchcl.scoring.plan import Plan, plan
    from batchcl.scoring.retry import retry
    from batchcl.scoring.run import run, run_sync
    from batchcl.stop_signal import StopSignal
    from batchcl.summary import Summary

__all__ = [
    "BatchclError",
    "CallError",
    "CredentialsError",
    "DetectResult",
    "Diagnosis",
    "ExitCode",
    "Export",
    "ExportedFile",
    "Finding",
    "Job",
    "ModelError",
    "OutputError",
    "Plan",
    "RefusedError",
    "RegionError",
    "Results",
    "SourceError",
    "StopSignal",
    "StoppedError",
    "Summary",
    "UsageError",
    "__version__",
    "detect",
    "diagnose",
    "export_parquet",
    "load_job",
    "open_results",
    "plan",
    "retry",
    "run",
    "run_sync",
]

_MODULES = {
    "DetectResult": "batchcl.scoring.detect",
    "Diagnosis": "batchcl.doctor",
    "Export": "batchcl.analysis.export",
    "ExportedFile": "batchcl.analysis.export",
    "Finding": "batchcl.doctor",
    "Job": "batchcl.job",
    "Plan": "batchcl.scoring.plan",
    "Results": "batchcl.analysis.results",
    "StopSignal": "batchcl.stop_signal",
    "Summary": "batchcl.summary",
    "detect": "batchcl.scoring.detect",
    "diagnose": "batchcl.doctor",
    "export_parquet": "batchcl.analysis.export",
    "load_job": "batchcl.job",
    "open_results": "batchcl.analysis.results",
    "plan": "batchcl.scoring.plan",
    "retry": "batchcl.scoring.retry",
    "run": "batchcl.scoring.run",
    "run_sync": "batchcl.scoring.run",
}
"""The module of each public name; whatever isn't listed is an error class."""


def __getattr__(name: str) -> Any:
    """Import on first use: `import batchcl` and `batchcl --help` go without polars, pyarrow and the AWS SDK."""
    if name not in __all__:
        raise AttributeError(f"module 'batchcl' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "batchcl.errors")), name)
