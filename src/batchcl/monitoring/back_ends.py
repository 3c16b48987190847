"""Opens the back ends that are on; each is imported only then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from batchcl.monitoring.report import BackEnd
from batchcl.monitoring.targets import Targets

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

__all__ = ["open_back_ends"]


def open_back_ends(targets: Targets, *, session: Callable[[], Aws], with_otel: bool = True) -> Iterator[BackEnd]:
    """Open the back ends of `targets`; sends nothing. `session` returns the AWS session for the SNS topic."""
    if targets.metrics_file is not None:
        from batchcl.monitoring.textfile import MetricsFile

        yield MetricsFile(targets.metrics_file)
    if targets.otel and with_otel:
        from batchcl.monitoring.otel import OpenTelemetry

        yield OpenTelemetry()
    if targets.ping is not None:
        from batchcl.monitoring.http import Ping

        yield Ping(targets.ping)
    if targets.webhook is not None:
        from batchcl.monitoring.http import Webhook

        yield Webhook(targets.webhook)
    if targets.sns_topic is not None:
        from batchcl.monitoring.sns import SnsTopic

        yield SnsTopic(targets.sns_topic, session)
