"""Sends one event outside of a run, such as an alarm of `batchcl model reap --alarm`."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from batchcl.__about__ import __version__
from batchcl.monitoring.back_ends import open_back_ends
from batchcl.monitoring.metrics import Sample
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import Sender, flush
from batchcl.monitoring.targets import Targets, redact

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

__all__ = ["Event", "document", "send_event"]

_MAX_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event outside of a run.

    Attributes:
        kind: stable name, such as `models-without-lease`.
        text: one readable line.
        severity: `info` is not sent to the webhook and the SNS topic.
        exit_code: for the ping, and for the metrics file: 0 is a success.
        fields: JSON values for the document.
        gauges: values for the metrics file, by metric, such as `batchcl_models_without_lease`.
    """

    kind: str
    text: str
    severity: Literal["info", "warning", "error"] = "warning"
    exit_code: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)


async def send_event(targets: Targets, event: Event, *, aws: Aws | None = None, max_s: float = _MAX_S) -> list[str]:
    """Send `event` through the ping, the webhook, the SNS topic and the metrics file of `targets`.

    Takes at most `max_s` seconds and raises nothing, so that it can't fail the command that calls it.

    Args:
        targets: back ends; `otel` is not used.
        event: what to send.
        aws: session for the SNS topic; default: the environment's.
        max_s: longest time for all back ends together, in seconds.

    Returns:
        One sentence for each back end that failed.
    """
    now = dt.datetime.now(dt.UTC)
    text = redact(event.text)
    samples = [
        *(Sample(name, value) for name, value in event.gauges.items()),
        Sample("batchcl_last_update_timestamp_seconds", now.timestamp()),
        Sample("batchcl_last_exit_code", event.exit_code),
    ]
    if event.exit_code == 0:
        samples.append(Sample("batchcl_last_success_timestamp_seconds", now.timestamp()))
    report = Report(
        stage="end",
        samples=tuple(samples),
        document=None
        if event.severity == "info"
        else document(event.kind, text, event.severity, at=now, **event.fields),
        text=text,
        exit_code=event.exit_code,
    )

    def session() -> Aws:
        from batchcl.aws.session import Aws

        return aws or Aws()

    senders = [Sender(each) for each in open_back_ends(targets, session=session, with_otel=False)]
    for sender in senders:
        sender.put(report)
    failures = await flush(senders, max_s=max_s)
    return [f"{sender.back_end.name} failed: {reason}" for sender, reason in failures.items()]


def document(event: str, text: str, severity: str, *, at: dt.datetime, **fields: Any) -> dict[str, Any]:
    """The document that the webhook and the SNS topic receive; `text` and all text in `fields` are redacted."""
    return {
        "event": event,
        "severity": severity,
        "text": text,
        "time": at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "host": socket.gethostname(),
        "batchcl": __version__,
        **_redacted(fields),
    }


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redacted(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each) for each in value]
    return value
