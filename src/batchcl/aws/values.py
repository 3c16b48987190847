"""Values as boto3 takes and returns them."""

from __future__ import annotations

import datetime as dt
from typing import Any

__all__ = ["drop_none", "utc"]


def drop_none(**optional: Any) -> dict[str, Any]:
    """The arguments that have a value. What is None is left out, so that the service's own default holds."""
    return {name: value for name, value in optional.items() if value is not None}


def utc(moment: dt.datetime | None) -> dt.datetime | None:
    """The same moment in UTC."""
    return None if moment is None else moment.astimezone(dt.UTC)
