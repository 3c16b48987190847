"""Monitoring: metrics, traces, pings and notifications of runs, which can't slow down, fail or end a run.

`monitored` wraps the observer of a run and starts the back ends that are on; `send_event` sends one event outside of a
run.
"""

from batchcl.monitoring.event import Event, send_event
from batchcl.monitoring.targets import CHECKS, Targets

__all__ = ["CHECKS", "Event", "Targets", "send_event"]
