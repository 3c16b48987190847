"""SQL over the results, by polars' own dialect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import polars as pl

from batchcl.analysis.results import run_table
from batchcl.errors import UsageError

if TYPE_CHECKING:
    from batchcl.analysis.results import Results

__all__ = ["query"]

_READS: Final = frozenset({"select", "with", "from", "values", "show", "explain", "("})
_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_READER: Final = re.compile(r"""\b((?:read|scan|sink|write)_\w*)["'`\]]*\s*(?:\(|/\*|--|\#)""", re.IGNORECASE)
"""A call of one of polars' functions that read or write files or web addresses, all of which are named so.

The text is searched as it stands, quoted parts and comments included: what may hide a call is refused with it.
"""


def query(results: Results, sql: str) -> pl.DataFrame:
    """The answer to one SQL statement over the tables `results`, `detections`, `failures` and `runs`.

    ```python
    query(open_results("out"), "SELECT label, COUNT(*) AS n FROM detections GROUP BY label ORDER BY n DESC")
    ```

    Only the columns and partitions that the statement needs are read. The dialect is polars' `SQLContext`.

    Raises:
        UsageError: the statement is not a query, calls a function that reads files, or is refused by polars; with the
            tables and columns there are.
    """
    tables = {
        "results": results.images(),
        "detections": results.detections(),
        "failures": results.failures(),
        # runs are read whole, and only for a statement that may be about them
        "runs": results.runs() if re.search(r"\bruns\b", sql, re.IGNORECASE) else run_table([]).lazy(),
    }
    first = re.match(r"\s*(\w+|\()", _COMMENT.sub(" ", sql))
    if first is None or first[1].lower() not in _READS:
        raise UsageError(f"not a query: {sql.strip()[:80]!r}; results are read only, so begin with SELECT or WITH")
    if (reader := _READER.search(sql)) is not None:
        raise UsageError(
            f"the query failed: {reader[1]} is a function for files, and a query reads only the output root; use the "
            f"tables {', '.join(tables)}"
        )
    try:
        return pl.SQLContext(tables).execute(sql).collect(engine="in-memory")
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n\n")[0]  # what follows is polars' own plan of the query
        raise UsageError(f"the query failed: {reason}\n{_catalogue(tables)}") from error


def _catalogue(tables: dict[str, pl.LazyFrame]) -> str:
    lines = (f"  {name}: {', '.join(frame.collect_schema())}" for name, frame in tables.items())
    return "The tables and their columns are\n" + "\n".join(lines)
