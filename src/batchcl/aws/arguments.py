"""What a request to the service is asked with."""

from __future__ import annotations

from typing import Any

__all__ = ["given"]


def given(**optional: Any) -> dict[str, Any]:
    """The arguments that have a value. What is None is left out, so that the service's own default holds."""
    return {name: value for name, value in optional.items() if value is not None}
