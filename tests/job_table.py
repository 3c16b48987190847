"""The table of options in docs/job-files.md, from their declarations. As a script it rewrites the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from batchcl.options import Option, OptionField, flag_of, option_fields
from batchcl.quantities import MAX_INT32

PAGE = Path(__file__).parents[1] / "docs" / "job-files.md"
BEGIN = "<!-- options: written by `make docs` from src/batchcl/options.py -->\n"
END = "<!-- options end -->\n"


def page_with_table() -> str:
    """The page with the current table between its markers."""
    before, rest = PAGE.read_text().split(BEGIN)
    return f"{before}{BEGIN}{''.join(_table())}\n{END}{rest.split(END)[1]}"


def _table() -> Iterator[str]:
    panel = None
    for name, each in option_fields().items():
        if (heading := each.option.panel or "General") != panel:
            yield f"\n### {heading}\n\n| key | value | default | flag | meaning |\n| -- | -- | -- | -- | -- |\n"
            panel = heading
        default = "required" if each.is_required else "" if each.default is None else f"`{_default(each)}`"
        meaning = each.description.replace("|", "\\|")
        yield f"| `{name}` | {_value(each)} | {default} | `{flag_of(name)}` | {meaning} |\n"


def _default(each: OptionField) -> str:
    return json.dumps(list(each.default) if isinstance(each.default, tuple) else each.default)


def _value(each: OptionField) -> str:
    if each.value_type is bool:
        return "`true` or `false`"
    if issubclass(each.value_type, StrEnum):
        return ", ".join(f"`{choice}`" for choice in each.value_type)
    if each.value_type in (int, float):
        return f"{'integer' if each.value_type is int else 'number'}{_bounds(each.option)}"
    text = f"`{each.option.metavar}`".replace("...", "").replace("|", "\\|")
    return f"list of {text}" if each.is_list else text


def _bounds(option: Option) -> str:
    if option.above is not None:
        return f" over {option.above}"
    if option.minimum is None or option.maximum is None or option.minimum < -MAX_INT32:
        return ""
    if option.maximum >= MAX_INT32:
        return f", {option.minimum} or more"
    return f", {option.minimum:,} to {option.maximum:,}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table())
