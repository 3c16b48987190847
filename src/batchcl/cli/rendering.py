"""A service's answer on stdout: JSON, YAML, the AWS CLI's text, or a table; whole, or what a query takes of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from batchcl.cli.output import emit, emit_object, printable
from batchcl.errors import UsageError

__all__ = ["Form", "Query", "show", "text_lines", "yaml_lines"]

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+-]+)*")
_UNPRINTABLE: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_WORDS: Final = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null", "none"})
"""Plain words that some YAML readers take for something else than text."""


class Form(StrEnum):
    """How an answer is written."""

    JSON = "json"
    YAML = "yaml"
    TEXT = "text"
    TABLE = "table"


class Query:
    """A JMESPath expression; raises `UsageError` where it is none. Source: https://jmespath.org/specification.html."""

    def __init__(self, expression: str) -> None:
        import jmespath  # noqa: PLC0415 - `batchcl --help` goes without
        from jmespath.exceptions import JMESPathError  # noqa: PLC0415

        self._errors = JMESPathError
        try:
            self._compiled = jmespath.compile(expression)
        except JMESPathError as error:
            raise UsageError(f"--query {expression!r} is no JMESPath: {_one_line(error)}") from error
        self._expression = expression

    def of(self, value: Any) -> Any:
        """What the query takes of `value`; None for nothing."""
        try:
            return self._compiled.search(value)
        except self._errors as error:
            raise UsageError(f"--query {self._expression!r} doesn't fit the answer: {_one_line(error)}") from error


def show(value: Any, form: Form) -> None:
    """Write `value`, which is JSON's, to stdout."""
    if form is Form.JSON:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    elif form is Form.YAML:
        sys.stdout.writelines(f"{line}\n" for line in yaml_lines(value))
    elif form is Form.TEXT:
        on_terminal = sys.stdout.isatty()
        for line in text_lines(value):
            shown = "\t".join(map(printable, line.split("\t"))) if on_terminal else line
            sys.stdout.write(f"{shown}\n")
    else:
        _show_table(value)


def text_lines(value: Any, name: str | None = None, columns: list[str] | None = None) -> Iterator[str]:
    """`value` in lines of tabs, as `aws --output text` has it: scalars by name, then what is nested, under its NAME.

    Args:
        value: JSON's.
        name: in upper case in front of each line; none at the top.
        columns: the scalars of all objects in the list that `value` is of, so that columns stay in their places.
    """
    if isinstance(value, dict):
        scalars = sorted(key for key, item in value.items() if not _nests(item)) if columns is None else columns
        cells = [str(value.get(key, "")) for key in scalars]
        if cells:
            yield "\t".join([name.upper(), *cells] if name else cells)
        for key in sorted(set(value).difference(scalars)):
            yield from text_lines(value[key], key)
    elif isinstance(value, list):
        yield from _list_lines(value, name)
    else:
        yield str(value)


def _list_lines(items: list[Any], name: str | None) -> Iterator[str]:
    objects = [item for item in items if isinstance(item, dict)]
    if objects:
        columns = sorted({key for each in objects for key, item in each.items() if not _nests(item)})
        for item in items:
            yield from text_lines(item, name, columns)
        return
    scalars = [str(item) for item in items if not _nests(item)]
    if scalars and name:
        yield from (f"{name.upper()}\t{item}" for item in scalars)
    elif scalars:
        yield "\t".join(scalars)
    for item in items:
        if _nests(item):
            yield from text_lines(item, name)


def yaml_lines(value: Any, indent: str = "") -> Iterator[str]:
    """`value`, which is JSON's, as YAML that readers of 1.1 and 1.2 understand alike.

    Text that could be taken for anything else is quoted as JSON quotes it.
    """
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _under(f"{indent}{_scalar(key)}:", item, indent + "  ")
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = yaml_lines(item, indent + "  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest
    else:
        yield indent + _scalar(value)


def _under(head: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        yield head
        yield from yaml_lines(item, indent)
    else:
        yield f"{head} {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if isinstance(value, float):
        whole, e, exponent = repr(value).partition("e")
        return f"{whole}.0e{exponent}" if e and "." not in whole else f"{whole}{e}{exponent}"
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _show_table(value: Any) -> None:
    import polars as pl  # noqa: PLC0415 - `batchcl --help` goes without

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
    import polars as pl  # noqa: PLC0415

    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pl.Series(name, values, pl.Float64 if any(isinstance(value, float) for value in values) else pl.Int64)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(name, texts, pl.String)


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
