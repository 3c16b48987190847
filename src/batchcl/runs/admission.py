"""Start of incremental runs and retries: refused while another run of the model may be scoring the same images.

A run holds a lock while it creates its session and checks for other runs, so of two runs that start at once the second
one sees the first. Other runs of the model whose process died are recovered first, so that the tables contain
everything that was scored.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio

from batchcl.errors import HeldError, OutputError, StoppedError
from batchcl.runs.layout import RunPaths, admission_path
from batchcl.runs.lease import RunLease, RunLeaseHolder
from batchcl.runs.record import RunRecord
from batchcl.runs.recovery import recover_runs
from batchcl.runs.store import Store

__all__ = ["admit", "may_overlap"]

_LOCK_TIMEOUT_S: Final = 60.0
"""A lock is held for seconds. The time to detect a dead holder comes on top."""

_RETRY_LOCK_EVERY_S: Final = 1.0
_RELEASE_TIMEOUT_S: Final = 10.0


async def admit(
    store: Store,
    record: RunRecord,
    lease: RunLeaseHolder,
    *,
    take: Callable[[], Awaitable[None]],
    allow_overlap: bool,
    utcnow: Callable[[], dt.datetime],
) -> list[str]:
    """Acquire the run's lease unless another run or retry may be scoring the same images.

    Args:
        store: the output root.
        record: the run's record.
        lease: the run's lease.
        take: acquires `lease`.
        allow_overlap: acquire it even if another run may be scoring the same images.
        utcnow: the current time.

    Returns:
        The ids of the dead runs that were recovered.

    Raises:
        HeldError: another run may be scoring the same images; the message names it.
    """
    lock = RunLeaseHolder(
        store, admission_path(record.model), what=f"the start lock of {record.model_name}", utcnow=utcnow
    )

    def refuse_overlap(other: RunRecord, held: RunLease) -> None:
        adds_rows = other.scored_as.get("incremental") or held.progress.get("round")
        if adds_rows and not allow_overlap and may_overlap(record.scored_as, other.scored_as):
            raise HeldError(
                f"run {record.run_id} can't score now: run {other.run_id} (on {held.host}) may be scoring the same "
                "images with the same model; wait until it has ended (--if-held wait does that), or pass "
                "--allow-overlap to score them twice",
                sessions=RunPaths(other.run_id).sessions,
            )

    await _acquire(lock)
    try:
        async with lock.writing_heartbeats():
            await take()
            await lock.check()
            async with lease.writing_heartbeats():
                return await recover_runs(
                    store,
                    record.model,
                    own_run_id=record.run_id,
                    require_all=bool(record.scored_as.get("incremental")),
                    utcnow=utcnow,
                    on_alive=refuse_overlap,
                )
    finally:
        with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True), suppress(OutputError):
            await lock.release()


async def _acquire(lock: RunLeaseHolder) -> None:
    give_up_at = anyio.current_time() + _LOCK_TIMEOUT_S
    while True:
        try:
            return await lock.acquire()
        except StoppedError:
            if anyio.current_time() >= give_up_at:
                raise
        await anyio.sleep(_RETRY_LOCK_EVERY_S)


def may_overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs, given their `scored_as`, may score the same image. List files may contain any image."""
    prefixes, other_prefixes = _prefixes(one), _prefixes(other)
    if prefixes is None or other_prefixes is None:
        return True
    return any(a.startswith(b) or b.startswith(a) for a in prefixes for b in other_prefixes)


def _prefixes(scored_as: Mapping[str, Any]) -> Sequence[str] | None:
    """The S3 prefixes and directories that a run reads; None if it reads a list file."""
    sources: Sequence[str] = scored_as["sources"]
    if not sources or scored_as.get("source_kind") is not None:
        return None
    prefixes = []
    for source in sources:
        if source.startswith("s3://") and "." not in source.rpartition("/")[2]:
            prefixes.append(source)
        elif Path(source).is_dir():
            prefixes.append(f"{Path(source).resolve()}/")
        else:
            return None
    return prefixes
