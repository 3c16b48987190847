"""How incremental runs and retries start: not while another one may be scoring the same images.

A lock is held while a run becomes visible (its session exists) and looks for others, so that whoever looks later sees
it. Other runs of the model whose process died are recovered first: the tables then hold all that was scored.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio

from batchcl.errors import OutputError, StoppedError
from batchcl.runs.layout import admission_path
from batchcl.runs.lease import RunLease, RunLeaseHolder
from batchcl.runs.record import RunRecord
from batchcl.runs.recovery import recover_runs
from batchcl.runs.store import Store

__all__ = ["admit", "may_overlap"]

_WAIT_S: Final = 60.0
"""For the lock, which is held for seconds; a dead holder is waited for besides."""

_LOOK_EVERY_S: Final = 1.0
_RELEASE_S: Final = 10.0


async def admit(
    store: Store,
    record: RunRecord,
    lease: RunLeaseHolder,
    *,
    take: Callable[[], Awaitable[None]],
    allow_overlap: bool,
    utcnow: Callable[[], dt.datetime],
) -> list[str]:
    """Take the run's lease, unless another run or retry may be scoring the same images; the ids of recovered runs.

    Args:
        store: the output root.
        record: of the run.
        lease: its lease.
        take: takes it.
        allow_overlap: take it even if another one may be scoring the same images.
        utcnow: the time of day.

    Raises:
        StoppedError: another one may be, and is named.
    """
    lock = RunLeaseHolder(
        store, admission_path(record.model), what=f"the start of a run of {record.model_name}", utcnow=utcnow
    )

    def refuse(other: RunRecord, held: RunLease) -> None:
        adds_rows = other.scored_as.get("incremental") or held.progress.get("round")
        if adds_rows and not allow_overlap and may_overlap(record.scored_as, other.scored_as):
            raise StoppedError(
                f"run {other.run_id} ({held.host}) may be scoring the same images with the same model just now; wait "
                "for it, or pass --allow-overlap to score them twice"
            )

    await _acquire(lock)
    try:
        async with lock.beating():
            await take()
            await lock.check()
            async with lease.beating():
                return await recover_runs(
                    store,
                    record.model,
                    besides=record.run_id,
                    all_rows=bool(record.scored_as.get("incremental")),
                    utcnow=utcnow,
                    on_alive=refuse,
                )
    finally:
        with anyio.move_on_after(_RELEASE_S, shield=True), suppress(OutputError):
            await lock.release()


async def _acquire(lock: RunLeaseHolder) -> None:
    give_up_at = anyio.current_time() + _WAIT_S
    while True:
        try:
            return await lock.acquire()
        except StoppedError:
            if anyio.current_time() >= give_up_at:
                raise
        await anyio.sleep(_LOOK_EVERY_S)


def may_overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs may be about the same image, by their `scored_as`. A list may name anything."""
    ones, others = _folders(one), _folders(other)
    if ones is None or others is None:
        return True
    return any(a.startswith(b) or b.startswith(a) for a in ones for b in others)


def _folders(scored_as: Mapping[str, Any]) -> Sequence[str] | None:
    """The prefixes and directories that a run is about; None where it reads a list."""
    sources: Sequence[str] = scored_as["sources"]
    if not sources or scored_as.get("source_kind") is not None:
        return None
    found = []
    for source in sources:
        if source.startswith("s3://") and "." not in source.rpartition("/")[2]:
            found.append(source)
        elif Path(source).is_dir():
            found.append(f"{Path(source).resolve()}/")
        else:
            return None
    return found
