"""An observer that records what it receives."""

from __future__ import annotations

from typing import Any

import anyio

from batchcl.events import Notice, SilentObserver


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
