"""Monitoring: metrics, traces, pings and notifications of runs, which can't slow down, fail or end a run.

`monitored` wraps the observer of a run and starts the back ends that are on; `send_event` sends one event outside of a
run.
"""

from batchcl.monitoring.event import Event, send_event
from batchcl.monitoring.monitor import Monitor, RunNames, monitored
from batchcl.monitoring.targets import OPTIONS, Targets, environment

__all__ = ["OPTIONS", "Event", "Monitor", "RunNames", "Targets", "environment", "monitored", "send_event"]
