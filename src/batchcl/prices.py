"""The prices of Custom Labels, in US dollars; the only place where they are.

AWS publishes them per region on the pricing page of Amazon Rekognition. The defaults are those of most regions in
November 2026; `BATCHCL_UNIT_HOUR_USD` and `BATCHCL_TRAINING_HOUR_USD` override them.
"""

from __future__ import annotations

import math
import os

from batchcl.errors import UsageError

__all__ = ["training_hour_usd", "unit_hour_usd"]

_UNIT_HOUR_USD = 4.0
_TRAINING_HOUR_USD = 1.0


def unit_hour_usd() -> float:
    """Price of an inference unit for an hour in which the model is RUNNING, idle or not. Raises `UsageError`."""
    return _price("BATCHCL_UNIT_HOUR_USD", _UNIT_HOUR_USD)


def training_hour_usd() -> float:
    """Price of an hour of training. Raises `UsageError`."""
    return _price("BATCHCL_TRAINING_HOUR_USD", _TRAINING_HOUR_USD)


def _price(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        price = float(text or default)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise UsageError(
            f"{variable} is {text!r}, which is not a price in dollars; set it to a number such as {default}"
        )
    return price
