"""Writes the report about a run at its end; whatever happens to it, the run's result stands."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from batchcl.aws.session import Aws
from batchcl.errors import BatchclError, command
from batchcl.events import Notice, Observer
from batchcl.job import Job
from batchcl.stop_signal import StopSignal

__all__ = ["check_report", "report_at_end"]


def check_report(job: Job) -> None:
    """Raise `UsageError` if `job.report` can't be written."""
    if job.report is not None:
        from batchcl.report.write import check_report_file

        check_report_file(job.report, job.root, what="--report")


@asynccontextmanager
async def report_at_end(
    job: Job, aws: Aws, observer: Observer, stop_signal: StopSignal, *, run_id: str, root: str
) -> AsyncIterator[None]:
    """Write `job.report` after the block, which has stopped the model, unless the run was refused or is interrupted."""
    try:
        yield
    except BatchclError as error:
        if error.summary is not None:
            await _write(job, aws, observer, stop_signal, run_id=run_id, root=root)
        raise
    await _write(job, aws, observer, stop_signal, run_id=run_id, root=root)


async def _write(job: Job, aws: Aws, observer: Observer, stop_signal: StopSignal, *, run_id: str, root: str) -> None:
    if job.report is None:
        return
    from batchcl.report.write import write_report

    path = os.fspath(job.report)
    try:
        with stop_signal.interruptible():
            written = await write_report(root, path, run_id=run_id, aws=aws)
    except Exception as error:  # noqa: BLE001 - also a bug or a lack of memory
        reason = str(error) if isinstance(error, BatchclError) else f"{type(error).__name__}: {error}"
        again = command("report", root, "--run", run_id, "--out", path)
        text = f"the report {path} was not written: {reason}. Write it with {again}"
        observer.notice(Notice("report-failed", text, {"path": path}, level="warning"))
        return
    fields: dict[str, str | int | float | None] = {"path": written.path, "bytes": written.size_bytes}
    observer.notice(Notice("report", f"wrote the report {written.path}", fields))
