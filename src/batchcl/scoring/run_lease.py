"""What a session holds of its run: the lease, and the model that the run started, from the first moment to the last."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from batchcl.errors import OutputError
from batchcl.events import Notice, Observer, Progress
from batchcl.lifetime.manager import ModelManager
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import EXPIRES_S, RunLease, RunLeaseHolder
from batchcl.runs.store import Store
from batchcl.stop_signal import MODEL, RECORDS, STORE, StopSignal

__all__ = ["hold_run_lease", "lease_of"]

_OWNS_MODEL: Final = "owns_model"
_STOPS_MODEL: Final = "stops_model"
_RELEASE_S: Final = 10.0
_HAND_OVER: Final = (STORE + MODEL) / 2


def lease_of(
    store: Store,
    paths: RunPaths,
    progress: Progress,
    keeper: ModelManager,
    *,
    round_: int = 0,
    observer: Observer,
    utcnow: Callable[[], dt.datetime],
) -> RunLeaseHolder:
    """The run's lease; its heartbeat says how far the round is, and whether its model is this run's to stop."""

    def on_wait(other: RunLease) -> None:
        text = (
            f"run {paths.run_id} was not ended by its last runner ({other.host}); waiting up to {EXPIRES_S:.0f} s for "
            "its heartbeat"
        )
        observer.notice(Notice("lease-wait", text))

    return RunLeaseHolder(
        store,
        paths.sessions,
        what=f"run {paths.run_id}",
        progress=lambda: _heartbeat(progress, keeper, round_),
        on_wait=on_wait,
        utcnow=utcnow,
    )


def _heartbeat(progress: Progress, keeper: ModelManager, round_: int) -> dict[str, int | float | None]:
    now = progress.snapshot(anyio.current_time())
    names = ("planned", "scored", "failed", "skipped", "calls", "throttled")
    return {name: getattr(now, name) for name in names} | {
        "images": progress.called,
        "images_per_second": round(now.images_per_second, 2),
        "seconds": round(now.elapsed_s, 3) if now.calls else 0.0,
        "cost_usd": now.dollars,
        "round": round_,
        _OWNS_MODEL: keeper.owned,
        _STOPS_MODEL: keeper.stops,
    }


@asynccontextmanager
async def hold_run_lease(lease: RunLeaseHolder, keeper: ModelManager, stopper: StopSignal) -> AsyncIterator[None]:
    """Hold the lease during the block; stop the model and give the lease back at its end, whatever the end.

    A model that an earlier session started and could not stop is this one's to stop if that session's tag is still on
    it. Where that fails the session's file says so to the next session. Where another process has taken the run over,
    that one stops it.

    Raises:
        StoppedError: another runner holds the lease, or the model could not be stopped.
    """

    def inherit(left: RunLease) -> None:
        if left.progress.get(_OWNS_MODEL):
            keeper.adopt()

    try:
        async with keeper.stopping():
            try:
                await lease.acquire(on_left=inherit)
                keeper.remember(lease.beat)
                yield
            finally:
                await _hand_over(lease, keeper, stopper)
    finally:
        with stopper.bounded(RECORDS, shield=True, most_s=_RELEASE_S), suppress(OutputError):
            await lease.release()


async def _hand_over(lease: RunLeaseHolder, keeper: ModelManager, stopper: StopSignal) -> None:
    """Don't stop the model under a runner that has taken this one for dead, and will stop it itself."""
    if keeper.stops:
        with stopper.bounded(_HAND_OVER, shield=True, most_s=_RELEASE_S), suppress(OutputError):
            other = await lease.successor()
            if other is not None and other.progress.get(_STOPS_MODEL):
                keeper.hand_over()
