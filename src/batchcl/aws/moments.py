"""The SDK tells times in the machine's own zone; batchcl tells them in UTC."""

from __future__ import annotations

import datetime as dt

__all__ = ["utc"]


def utc(moment: dt.datetime | None) -> dt.datetime | None:
    """The same moment in UTC."""
    return None if moment is None else moment.astimezone(dt.UTC)
