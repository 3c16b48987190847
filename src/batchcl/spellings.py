"""Other spellings of a missing image's name: URL-encoded, another Unicode form, a leading slash.

Names in lists are taken literally. If an image exists under another spelling, usually the whole list has the same
mistake, and one command corrects it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, unquote_plus

__all__ = ["BYTE_ORDER_MARK", "Spelling", "spellings", "unicode_form"]

BYTE_ORDER_MARK: Final = "\ufeff"

_AROUND: Final = BYTE_ORDER_MARK + "\"'"
_FORMS: Final = ("NFC", "NFD")
_PYTHON: Final = 'python3 -c "import sys, {module}; sys.stdout.writelines({call} for l in sys.stdin)" < LIST > NEW'


@dataclass(frozen=True, slots=True)
class Spelling:
    """Another spelling of a name.

    Attributes:
        name: the other spelling.
        what: what is wrong with the list's names, such as "URL-encoded".
        advice: how to correct the list.
    """

    name: str
    what: str
    advice: str


def spellings(name: str) -> Iterator[Spelling]:
    """Other spellings of a key or path, without duplicates, the likeliest first."""
    seen = {name}
    for each in _all(name):
        if each.name and each.name not in seen:
            seen.add(each.name)
            yield each


def unicode_form(name: str) -> str | None:
    """The Unicode form of `name`, `NFC` or `NFD`; None if it is both or neither."""
    forms = [form for form in _FORMS if unicodedata.is_normalized(form, name)]
    return forms[0] if len(forms) == 1 else None


def _all(name: str) -> Iterator[Spelling]:
    encoded = "URL-encoded, and lists are taken literally"
    for decode in (unquote_plus, unquote):
        decoded = decode(name, errors="replace")
        if "\ufffd" not in decoded:
            command = _PYTHON.format(module="urllib.parse as u", call=f"u.{decode.__name__}(l)")
            yield Spelling(decoded, encoded, f"decode the list: {command}")
    for form in _FORMS:
        command = _PYTHON.format(module="unicodedata as u", call=f"u.normalize('{form}', l)")
        written = f"in the Unicode form {unicode_form(name) or 'neither NFC nor NFD'}, the images' names are in {form}"
        yield Spelling(unicodedata.normalize(form, name), written, f"convert the list: {command}")
    yield Spelling(name.lstrip("/"), "with a leading /, which the images' names don't have", "remove it from the list")
    yield Spelling(name.replace("\\", "/"), "with \\ between folders", "replace \\ with / in the list")
    bare = name.strip().strip(_AROUND)
    yield Spelling(bare, "with spaces, quotes or a byte order mark around them", "remove these from the list")
