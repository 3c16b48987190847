"""A service response, or what a query selects of it, as JSON, YAML, the AWS CLI's text, or a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from batchcl.cli.output import emit, emit_object, printable
from batchcl.errors import ErrorCode, UsageError

__all__ = ["Form", "Query", "show", "text_lines"]


class Form(StrEnum):
    """The output format of a response."""

    JSON = "json"
    YAML = "yaml"
    TEXT = "text"
    TABLE = "table"


class Query:
    """A JMESPath expression; raises `UsageError` if it is not valid. Source: https://jmespath.org/specification.html."""

    def __init__(self, expression: str) -> None:
        import jmespath
        from jmespath.exceptions import JMESPathError

        self._errors = JMESPathError
        try:
            self._compiled = jmespath.compile(expression)
        except JMESPathError as error:
            raise UsageError(
                f"--query {expression!r} is not valid JMESPath: {_one_line(error)}", code=ErrorCode.INVALID_QUERY
            ) from error
        self._expression = expression

    def of(self, value: Any) -> Any:
        """What the query selects of `value`; None for nothing."""
        try:
            return self._compiled.search(value)
        except self._errors as error:
            raise UsageError(
                f"--query {self._expression!r} failed on the response: {_one_line(error)}", code=ErrorCode.INVALID_QUERY
            ) from error


def show(value: Any, form: Form) -> None:
    """Write `value`, a JSON value, to stdout."""
    if form is Form.JSON:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    elif form is Form.YAML:
        import yaml

        # PyYAML writes NEL as it is, and reads it back as a line break
        is_safe = "\x85" not in json.dumps(value, ensure_ascii=False)
        yaml.safe_dump(value, sys.stdout, allow_unicode=is_safe, sort_keys=False, width=sys.maxsize)
    elif form is Form.TEXT:
        on_terminal = sys.stdout.isatty()
        for line in text_lines(value):
            shown = "\t".join(map(printable, line.split("\t"))) if on_terminal else line
            sys.stdout.write(f"{shown}\n")
    else:
        _show_table(value)


def text_lines(value: Any, name: str | None = None, columns: list[str] | None = None) -> Iterator[str]:
    """`value` as `aws --output text` writes it: a line with the scalars of each object, then what is nested in it.

    Args:
        value: of JSON.
        name: of the field that holds `value`, in upper case in front of each line; None at the top.
        columns: the scalar fields of all objects in the list that holds `value`, so that columns stay in their places.
    """
    prefix = [] if name is None else [name.upper()]
    if isinstance(value, dict):
        scalars = _scalar_fields([value]) if columns is None else columns
        if scalars:
            yield "\t".join([*prefix, *(str(value.get(field, "")) for field in scalars)])
        for field in sorted(set(value).difference(scalars)):
            yield from text_lines(value[field], field)
    elif not isinstance(value, list):
        yield str(value)
    elif objects := [item for item in value if isinstance(item, dict)]:
        for item in value:
            yield from text_lines(item, name, _scalar_fields(objects))
    else:
        scalars = [str(item) for item in value if not isinstance(item, list)]
        lines = [[item] for item in scalars] if prefix else [scalars]
        yield from ("\t".join([*prefix, *line]) for line in lines if line)
        for item in value:
            if isinstance(item, list):
                yield from text_lines(item, name)


def _scalar_fields(objects: list[dict[str, Any]]) -> list[str]:
    return sorted({field for each in objects for field, item in each.items() if not isinstance(item, dict | list)})


def _show_table(value: Any) -> None:
    import polars as pl

    if isinstance(value, Mapping):
        emit_object(value)
        return
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, dict) for item in items):
        names = list(dict.fromkeys(key for item in items for key in item))
        emit(pl.DataFrame([_column(name, [item.get(name) for item in items]) for name in names]))
    else:
        emit(pl.DataFrame([_column("value", items)]))


def _column(name: str, values: list[Any]) -> Any:
    """Numbers as numbers; anything else as text, nested values as JSON."""
    import polars as pl

    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pl.Series(name, values, pl.Float64 if any(isinstance(value, float) for value in values) else pl.Int64)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(name, texts, pl.String)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
