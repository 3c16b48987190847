"""The trace of a run: its phases and notices, without any library."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from batchcl.events import Notice

__all__ = ["Phase", "Trace", "Tracer"]

_MAX_EVENTS: Final = 100
_MODEL_PHASES: Final = {"STARTING": "start model", "RUNNING": "score", "STOPPING": "stop model"}


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run; times are Unix times in nanoseconds."""

    name: str
    began_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A run that has ended.

    Attributes:
        phases: what it did, one after the other; together they take the time of the run.
        events: time, kind and text of its last notices.
        attributes: of the run.
        error: type and message of what ended it; None after a success.
    """

    phases: tuple[Phase, ...]
    events: tuple[tuple[int, str, str], ...]
    attributes: Mapping[str, Any]
    error: tuple[str, str] | None


class Tracer:
    """Derives the phases of a run from its notices."""

    def __init__(self, now_ns: int) -> None:
        self._phases: list[Phase] = []
        self._phase, self._began_ns = "prepare", now_ns
        self._events: deque[tuple[int, str, str]] = deque(maxlen=_MAX_EVENTS)

    def add(self, notice: Notice, text: str, now_ns: int) -> None:
        """Add a notice; `text` is its redacted text."""
        self._events.append((now_ns, notice.kind, text))
        phase = self._phase
        if notice.kind == "started":
            phase = "score"
        elif notice.kind == "model" and self._phase != "prepare":
            phase = _MODEL_PHASES.get(str(notice.fields.get("status")), phase)
        elif notice.kind == "model-stopped":
            phase = "finish"
        self._enter(phase, now_ns)

    def _enter(self, phase: str, now_ns: int) -> None:
        if phase != self._phase:
            self._phases.append(Phase(self._phase, self._began_ns, now_ns))
            self._phase, self._began_ns = phase, now_ns

    def end(self, now_ns: int, attributes: Mapping[str, Any], error: tuple[str, str] | None) -> Trace:
        """The trace of the run that ends now."""
        phases = (*self._phases, Phase(self._phase, self._began_ns, now_ns))
        return Trace(phases=phases, events=tuple(self._events), attributes=attributes, error=error)
