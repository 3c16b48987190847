"""What the back ends receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from batchcl.monitoring.metrics import Sample

if TYPE_CHECKING:
    from batchcl.monitoring.trace import Trace

__all__ = ["BackEnd", "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One message to all back ends, each of which uses the parts that it needs. Free of secrets.

    Attributes:
        stage: `start` and `end` come once; `sample` has new metrics, `trouble` a document.
        samples: all metrics at this moment.
        document: for the webhook and SNS; None if they have nothing to send.
        text: one line, which describes the document or the end.
        lines: the last notices, for the ping's body.
        exit_code: at the end.
        trace: at the end of a run.
    """

    stage: Literal["start", "sample", "trouble", "end"]
    samples: tuple[Sample, ...] = ()
    document: Mapping[str, Any] | None = None
    text: str = ""
    lines: tuple[str, ...] = ()
    exit_code: int | None = None
    trace: Trace | None = None


class BackEnd(Protocol):
    """Sends reports, in a thread of its own. Creating it must not fail."""

    @property
    def name(self) -> str:
        """The back end in messages; contains no secret."""
        ...

    @property
    def every_s(self) -> float | None:
        """How often it takes samples, in seconds; None for never."""
        ...

    def send(self, report: Report) -> None:
        """Send what concerns this back end. Blocks, and may raise anything."""
        ...
