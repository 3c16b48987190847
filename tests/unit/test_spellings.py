from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.spellings import spellings, unicode_form


@pytest.mark.parametrize(
    ("name", "meant", "what"),
    [
        ("my+photo+%280%29.jpg", "my photo (0).jpg", "URL-encoded"),
        ("a+b%20c.jpg", "a+b c.jpg", "URL-encoded"),
        ("Caf\u00e9.png", "Cafe\u0301.png", "Unicode form NFC, the images' names are in NFD"),
        ("Cafe\u0301.png", "Caf\u00e9.png", "Unicode form NFD, the images' names are in NFC"),
        ("/demo/0.png", "demo/0.png", "leading /"),
        ("demo\\0.png", "demo/0.png", "between folders"),
        ("demo/0.png ", "demo/0.png", "spaces"),
        ('"demo/0.png"', "demo/0.png", "quotes"),
        ("\ufeffdemo/0.png", "demo/0.png", "byte order mark"),
    ],
)
def test_the_intended_name_is_among_the_spellings(name: str, meant: str, what: str) -> None:
    assert what in next(each.what for each in spellings(name) if each.name == meant)


def test_a_plain_name_has_no_other_spelling() -> None:
    assert list(spellings("photos/2026/a-b_c.jpg")) == []


@given(st.text())
def test_spellings_are_distinct_and_differ_from_the_name(name: str) -> None:
    found = [each.name for each in spellings(name)]
    assert name not in found
    assert len(set(found)) == len(found)
    assert unicode_form(name) in {None, "NFC", "NFD"}
