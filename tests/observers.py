"""An observer that records what it receives, and a snapshot to show."""

from __future__ import annotations

from typing import Any

import anyio

from batchcl.events import Notice, SilentObserver, Snapshot


class RecordingObserver(SilentObserver):
    """Records notices, and when each was received on the event loop's clock."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.times: list[float] = []

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.times.append(anyio.current_time())

    @property
    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.notices]

    def fields_of(self, kind: str) -> list[dict[str, Any]]:
        """The fields of all notices of a kind."""
        return [dict(notice.fields) for notice in self.notices if notice.kind == kind]


def snapshot(**changes: Any) -> Snapshot:
    """A run at 41 % with some of everything, except for the `changes`."""
    values: dict[str, Any] = {
        "planned": 100_000,
        "listed": True,
        "scored": 41_191,
        "failed": 12,
        "skipped": 3,
        "unlabelled": 100,
        "calls": 42_000,
        "throttled": 546,
        "in_flight": 9,
        "elapsed_s": 1503.2,
        "images_per_second": 27.43,
        "rate_tps": 27.9,
        "capacity_tps": 28.1,
        "eta_s": 2143.4,
        "model_status": "RUNNING",
        "units": 2,
        "dollars": 3.34,
    }
    return Snapshot(**values | changes)
