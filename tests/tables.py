"""Outcomes as the two tables that publishing makes parts from."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from batchcl.runs.entries import Entry, entry_table
from batchcl.runs.image_table import image_table
from batchcl.scoring.outcome import Outcome


def columns(outcomes: Sequence[Outcome], *, round_: int = 0, fit: bool = False) -> tuple[pa.Table, pa.Table]:
    """The images of `outcomes`, and their entries in a round."""
    entries = [Entry(number, outcome) for number, outcome in enumerate(outcomes)]
    return image_table([outcome.image for outcome in outcomes]), entry_table(entries, round_=round_, fit=fit)
