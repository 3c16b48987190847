"""Check of the output root."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from batchcl.diagnosis.context import CheckContext, CheckResult
from batchcl.diagnosis.findings import CheckStatus
from batchcl.scoring.run import open_store

__all__ = ["check_output"]


async def check_output(context: CheckContext) -> CheckResult:
    """Whether the output root can be written and refuses to create an object twice; the test object is removed."""
    new_folders = await anyio.to_thread.run_sync(_missing_folders, context.job.root)
    try:
        store = await open_store(context.job, context.aws)
    finally:
        await anyio.to_thread.run_sync(_remove_empty, new_folders)
    if context.job.single_writer:
        return CheckStatus.OK, f"{store.root} can be written; other writers are not detected (--single-writer)"
    return CheckStatus.OK, f"{store.root} can be written, and refuses to create an object twice"


def _missing_folders(out: str) -> list[Path]:
    """Return the directories that the check will create, the innermost first. Blocks."""
    if "://" in out:
        return []
    root = Path(out).absolute()
    return [path for path in (root / "runs", root, *root.parents) if not path.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """Remove the directories that the check has created. Blocks."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
