"""Holds the lease of a run, and stops the model that the run started at the end of the session."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

import anyio

from batchcl.errors import OutputError
from batchcl.events import Notice, Observer, Progress
from batchcl.lifetime.manager import ModelManager
from batchcl.runs.heartbeat import heartbeat_of
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import EXPIRES_S, RunLease, RunLeaseHolder
from batchcl.runs.store import Store
from batchcl.stop_signal import MODEL, RECORDS, STORE, StopSignal

__all__ = ["BILLED_UNTIL", "OWNS_MODEL", "hold_run_lease", "make_run_lease"]

OWNS_MODEL: Final = "owns_model"
"""Heartbeat field: a session of this run may have started the model, so the next session adopts it."""

BILLED_UNTIL: Final = "billed_until"
"""Heartbeat field: until when the sessions so far have counted the cost of a model that may still be RUNNING."""

_BILLED_FROM: Final = "billed_from"
"""Heartbeat field: from when on this session counts a cost that an earlier one, if suspended, has counted, too."""

_STOPS_MODEL: Final = "stops_model"
"""Heartbeat field: this session will stop the model, so a session that it has replaced does not."""

_RELEASE_TIMEOUT_S: Final = 10.0
_HAND_OVER: Final = (STORE + MODEL) / 2
"""Share of the stop signal's time limit until which the lease is read, which leaves time to stop the model."""


def make_run_lease(
    store: Store,
    paths: RunPaths,
    progress: Progress,
    model_manager: ModelManager,
    *,
    round_: int = 0,
    observer: Observer,
    utcnow: Callable[[], dt.datetime],
) -> RunLeaseHolder:
    """Make the lease of a run, which `hold_run_lease` acquires; its heartbeat says whether the run owns the model."""

    def on_wait(other: RunLease) -> None:
        text = (
            f"the last process of run {paths.run_id}, on {other.host}, did not release its lease; waiting up to "
            f"{EXPIRES_S:.0f} s for its heartbeat"
        )
        observer.notice(Notice("lease-wait", text))

    return RunLeaseHolder(
        store,
        paths.sessions,
        what=f"run {paths.run_id}",
        progress=lambda: _heartbeat(progress, model_manager, round_),
        on_wait=on_wait,
        utcnow=utcnow,
    )


def _heartbeat(progress: Progress, model_manager: ModelManager, round_: int) -> dict[str, Any]:
    bill = model_manager.meter.read()
    return heartbeat_of(progress.snapshot(anyio.current_time())) | {
        "images": progress.called,
        "round": round_,
        "model_units": None if model_manager.units is None else str(model_manager.units),
        "cost_by_month": bill.dollars_by_month,
        "billed_s": bill.seconds,
        "start_s": model_manager.start_s,
        BILLED_UNTIL: model_manager.billed_until,
        _BILLED_FROM: model_manager.billed_from,
        OWNS_MODEL: model_manager.owned,
        _STOPS_MODEL: model_manager.stops,
    }


@asynccontextmanager
async def hold_run_lease(
    lease: RunLeaseHolder, model_manager: ModelManager, stop_signal: StopSignal, *, dead: RunLease | None = None
) -> AsyncIterator[None]:
    """Hold the lease during the block; at its end, also after an error, stop the model and release the lease.

    If an earlier session of the run started the model, could not stop it, and its tag is still there, this session
    stops it. If stopping fails, the session file records that for the next session. If another process has taken over
    the run, that process stops the model. `dead` is a session that was found dead just now.

    Raises:
        HeldError: another process holds the lease.
        StoppedError: the model could not be stopped.
    """

    def inherit(left: RunLease) -> None:
        if left.progress.get(OWNS_MODEL):
            model_manager.adopt(unattended_since=_time(left, BILLED_UNTIL))

    is_acquired = False
    try:
        async with AsyncExitStack() as until_stopped, model_manager.stopping():
            try:
                await lease.acquire(on_left=inherit, dead=dead)
                is_acquired = True
                yield
            finally:
                await _hand_over(lease, model_manager, stop_signal)
                if is_acquired:  # stopping the model may take minutes, in which no other process may take over
                    await until_stopped.enter_async_context(lease.writing_heartbeats())
    finally:
        with stop_signal.bounded(RECORDS, shield=True, max_s=_RELEASE_TIMEOUT_S), suppress(OutputError):
            await lease.release()


async def _hand_over(lease: RunLeaseHolder, model_manager: ModelManager, stop_signal: StopSignal) -> None:
    """If another process has taken over the run and will stop the model, let this one not stop it.

    The time from which the other one has counted the model's cost is not counted twice.
    """
    if model_manager.stops:
        with stop_signal.bounded(_HAND_OVER, shield=True, max_s=_RELEASE_TIMEOUT_S), suppress(OutputError):
            later = await lease.later_sessions()
            if later and (billed_from := _time(later[0], _BILLED_FROM)) is not None:
                model_manager.count_until(billed_from)
            if later and later[-1].process_is_alive is not False and later[-1].progress.get(_STOPS_MODEL):
                model_manager.hand_over()


def _time(session: RunLease, name: str) -> dt.datetime | None:
    text = session.progress.get(name)
    with suppress(ValueError, TypeError):
        return dt.datetime.fromisoformat(text) if text is not None else None
    return None
