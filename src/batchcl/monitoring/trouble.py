"""Which notices are trouble: those that are sent to the webhook and SNS during the run."""

from __future__ import annotations

from collections import deque
from typing import Final

from batchcl.events import Notice, Snapshot

__all__ = ["TROUBLE", "Throttling", "TroubleFilter"]

TROUBLE: Final = {
    "credentials-failing": "Credentials fail; calls wait for up to five minutes.",
    "deadline-missed": "At its rate of the last five minutes, the run will miss its deadline.",
    "holder-dead": "The process that worked on the run has died; this process, which waited for it, takes over.",
    "lease-not-renewed": "The model's lease can't be renewed; if it expires, `batchcl model reap` stops the model.",
    "lease-unknown": "The leases of the model can't be read: it may be left running, or be stopped while in use.",
    "model-left": "An earlier session left the model running, and this one will not stop it.",
    "model-not-ours": "The lease of the model expired and its tag was removed; this run no longer stops the model.",
    "model-stop-failed": "Stopping the model failed; the run tries again.",
    "paused": "Calls are paused, because the model is not ready or the service does not respond.",
    "stalled": "No image got an outcome for a minute, although calls were due.",
    "throttled": "For ten minutes, more than half of the calls were throttled.",
}
"""Kinds of notices that are trouble. What ends a run early is not among them: it is in the document of the end."""

_REPEAT_S: Final = 15 * 60.0
_MINUTES: Final = 10
_SHARE: Final = 0.5


class TroubleFilter:
    """Passes trouble, each kind at most every 15 minutes."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def passes(self, notice: Notice, now: float) -> bool:
        """Whether a document about `notice` is due."""
        if notice.kind not in TROUBLE or now - self._last.get(notice.kind, -_REPEAT_S) < _REPEAT_S:
            return False
        self._last[notice.kind] = now
        return True


class Throttling:
    """Detects that a run is throttled for ten minutes; receives its counters every minute."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque(maxlen=_MINUTES + 1)

    def check(self, now: Snapshot) -> Notice | None:
        """A notice if more than half of the calls of the last ten minutes were throttled."""
        self._counts.append((now.calls, now.throttled))
        calls, throttled = (new - old for new, old in zip(self._counts[-1], self._counts[0], strict=True))
        if len(self._counts) <= _MINUTES or throttled <= _SHARE * calls:
            return None
        self._counts.clear()
        text = f"{throttled:,} of {calls:,} calls of the last {_MINUTES} minutes were throttled"
        return Notice("throttled", text, {"calls": calls, "throttled": throttled}, level="warning")
