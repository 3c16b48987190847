"""SQL queries of the results, in polars' dialect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import polars as pl

from batchcl.analysis.results import run_table
from batchcl.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from batchcl.analysis.results import Results

__all__ = ["query"]

_STATEMENTS: Final = frozenset({"select", "with", "from", "values", "show", "explain", "("})
_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_FILE_FUNCTION: Final = re.compile(r"""\b((?:read|scan|sink|write)_\w*)["'`\]]*\s*(?:\(|/\*|--|\#)""", re.IGNORECASE)
"""A call of a polars function that reads or writes files or URLs; the names of all of them begin so.

Quoted parts and comments are searched as well, because they could hide a call.
"""


def query(results: Results, sql: str) -> pl.DataFrame:
    """The result of one SQL statement on the tables `results`, `detections`, `failures` and `runs`.

    ```python
    query(open_results("out"), "SELECT label, COUNT(*) AS n FROM detections GROUP BY label ORDER BY n DESC")
    ```

    Only the columns and partitions that the statement needs are read. The dialect is that of polars' `SQLContext`.

    Raises:
        UsageError: the statement is not a query, calls a function that reads files, or is invalid.
    """
    tables = {
        "results": results.images(),
        "detections": results.detections(),
        "failures": results.failures(),
        # unlike the other tables, runs are not read lazily
        "runs": results.runs() if re.search(r"\bruns\b", sql, re.IGNORECASE) else run_table([]).lazy(),
    }
    first = re.match(r"\s*(\w+|\()", _COMMENT.sub(" ", sql))
    if first is None or first[1].lower() not in _STATEMENTS:
        raise UsageError(
            f"not a query: {sql.strip()[:80]!r}; begin with SELECT or WITH (results are read-only)",
            code=ErrorCode.INVALID_QUERY,
        )
    if (reader := _FILE_FUNCTION.search(sql)) is not None:
        raise UsageError(
            f"the query failed: the function {reader[1]} is not allowed, because queries read only the output root; "
            f"use the tables {', '.join(tables)}",
            code=ErrorCode.INVALID_QUERY,
        )
    try:
        return pl.SQLContext(tables).execute(sql).collect(engine="in-memory")
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).partition("\n\n")[0].split())  # followed by polars' query plan
        raise UsageError(
            f"the query failed: {reason}. The tables are {_describe_tables(tables)}", code=ErrorCode.INVALID_QUERY
        ) from error


def _describe_tables(tables: dict[str, pl.LazyFrame]) -> str:
    return "; ".join(f"{name} ({', '.join(frame.collect_schema())})" for name, frame in tables.items())
