"""The output root: whether it can be written, and keeps two runners apart."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from batchcl.doctor.context import Answer, CheckContext
from batchcl.doctor.findings import CheckStatus
from batchcl.scoring.run import open_store

__all__ = ["check_output"]


async def check_output(case: CheckContext) -> Answer:
    """Create an object, try to create it again, and remove it."""
    made = await anyio.to_thread.run_sync(_missing, case.job.root)
    try:
        store = await open_store(case.job, case.aws)
    finally:
        await anyio.to_thread.run_sync(_remove_empty, made)
    if case.job.single_writer:
        return CheckStatus.OK, f"{store.root} can be written; that nobody else does is taken on trust"
    return CheckStatus.OK, f"{store.root} can be written, and refuses to create an object twice"


def _missing(out: str) -> list[Path]:
    """The directories that the check will make, the innermost first. Blocks."""
    if "://" in out:
        return []
    root = Path(out).absolute()
    return [path for path in (root / "runs", root, *root.parents) if not path.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """Leave no trace. Blocks."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
