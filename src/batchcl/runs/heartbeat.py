"""The counters in a heartbeat: what other processes see of a session, from the output root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from batchcl.events import Snapshot

__all__ = ["heartbeat_of", "snapshot_of"]

_NAMES: Final = {"elapsed_s": "seconds", "dollars": "cost_usd"}
"""Counters that `SessionRecord` has, too, under other names."""

_DIGITS: Final = {"elapsed_s": 3, "images_per_second": 2, "rate_tps": 2, "capacity_tps": 2, "eta_s": 1}


def heartbeat_of(now: Snapshot) -> dict[str, Any]:
    """The counters as a heartbeat contains them."""
    values = {name: getattr(now, name) for name in Snapshot.__dataclass_fields__}
    for name, digits in _DIGITS.items():
        if values[name] is not None:
            values[name] = round(values[name], digits)
    values["elapsed_s"] = values["elapsed_s"] if now.calls else 0.0
    return {_NAMES.get(name, name): value for name, value in values.items()}


def snapshot_of(heartbeat: Mapping[str, Any]) -> Snapshot | None:
    """The counters in a heartbeat; None if it has none, such as that of a recovery or another version."""
    try:
        return Snapshot(**{name: heartbeat[_NAMES.get(name, name)] for name in Snapshot.__dataclass_fields__})
    except KeyError:
        return None
