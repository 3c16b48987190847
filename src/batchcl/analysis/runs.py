"""The runs of an output root as a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final

import polars as pl

from batchcl.runs.status import RunState

__all__ = ["run_table"]

_KINDS: Final[dict[str, Any]] = {
    "str": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "dt.datetime": pl.Datetime("us", "UTC"),
}


def run_table(states: Iterable[RunState]) -> pl.DataFrame:
    """One row a run, in the order of `states`; the columns are the fields of `RunState`."""
    schema = {each.name: _KINDS[str(each.type).partition(" |")[0]] for each in fields(RunState)}
    return pl.DataFrame([state.as_dict() for state in states], schema=schema)
