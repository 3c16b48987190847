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
    from batchcl.doctor import Examination, Finding, examine
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
    from batchcl.scoring.few import Answered, detect
    from batchcl.scoring.plan import Plan, plan
    from batchcl.scoring.retry import retry
    from batchcl.scoring.score import run, run_sync
    from batchcl.scoring.stopper import Stopper
    from batchcl.summary import Summary

__all__ = [
    "Answered",
    "BatchclError",
    "CallError",
    "CredentialsError",
    "Examination",
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
    "StoppedError",
    "Stopper",
    "Summary",
    "UsageError",
    "__version__",
    "detect",
    "examine",
    "export_parquet",
    "load_job",
    "open_results",
    "plan",
    "retry",
    "run",
    "run_sync",
]

_ROOMS = {
    "Answered": "batchcl.scoring.few",
    "Examination": "batchcl.doctor",
    "Export": "batchcl.analysis.export",
    "ExportedFile": "batchcl.analysis.export",
    "Finding": "batchcl.doctor",
    "Job": "batchcl.job",
    "Plan": "batchcl.scoring.plan",
    "Results": "batchcl.analysis.results",
    "Stopper": "batchcl.scoring.stopper",
    "Summary": "batchcl.runs.record",
    "detect": "batchcl.scoring.few",
    "examine": "batchcl.doctor",
    "export_parquet": "batchcl.analysis.export",
    "load_job": "batchcl.job",
    "open_results": "batchcl.analysis.results",
    "plan": "batchcl.scoring.plan",
    "retry": "batchcl.scoring.retry",
    "run": "batchcl.scoring.score",
    "run_sync": "batchcl.scoring.score",
}
"""Where a public name lives; whatever isn't listed is an error class."""


def __getattr__(name: str) -> Any:
    """Import on first use: `import batchcl` and `batchcl --help` go without polars, pyarrow and the AWS SDK."""
    if name not in __all__:
        raise AttributeError(f"module 'batchcl' has no attribute {name!r}")
    return getattr(import_module(_ROOMS.get(name, "batchcl.errors")), name)
