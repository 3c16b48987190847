"""Converts values for boto3."""

from __future__ import annotations

import datetime as dt
from typing import Any

__all__ = ["drop_none", "utc"]


def drop_none(**optional: Any) -> dict[str, Any]:
    """The arguments that are not None; for the other ones the service's default applies."""
    return {name: value for name, value in optional.items() if value is not None}


def utc(time: dt.datetime | None) -> dt.datetime | None:
    """The same time in UTC."""
    return None if time is None else time.astimezone(dt.UTC)
