from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any

import awscli.text
import pytest
import yaml
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from batchcl.cli.detect_output import Form, Query, show, text_lines
from batchcl.errors import UsageError

scalars = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)

ANSWER: Any = {
    "CustomLabels": [
        {"Name": "cat", "Confidence": 99.5, "Geometry": {"BoundingBox": {"Width": 0.1, "Height": 0.2}}},
        {"Name": "dog", "Confidence": 50},
    ]
}


def shown(value: Any, form: Form) -> str:
    sink = io.StringIO()
    with redirect_stdout(sink):
        show(value, form)
    return sink.getvalue()


@example({"a\x85b": "\x85 é"})
@example({"at": "2026-11-21", "on": "yes", "exp": "1e3", "hex": "0x10", "colon": "a: b", "empty": "", "tilde": "~"})
@given(values)
def test_yaml_reads_back_as_what_it_was(value: Any) -> None:
    assert yaml.safe_load(shown(value, Form.YAML)) == value


def test_yaml_keeps_the_order_of_fields_and_letters() -> None:
    assert shown({"Name": "café", "Box": [], "A": [{"b": None, "a": "yes"}]}, Form.YAML) == (
        "Name: café\nBox: []\nA:\n- b: null\n  a: 'yes'\n"
    )


@given(values)
def test_text_is_what_the_aws_cli_writes(value: Any) -> None:
    sink = io.StringIO()
    try:
        awscli.text.format_text(value, sink)
    except AttributeError:
        reject()  # the AWS CLI has no form for a list that holds objects and other values
    assert shown(value, Form.TEXT) == sink.getvalue()


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (ANSWER, ["CUSTOMLABELS\t99.5\tcat", "BOUNDINGBOX\t0.2\t0.1", "CUSTOMLABELS\t50\tdog"]),
        ([["cat", 1], ["dog", None]], ["cat\t1", "dog\tNone"]),
        (["a", "b"], ["a\tb"]),
        ({"Names": ["a", "b"]}, ["NAMES\ta", "NAMES\tb"]),
        ([{"a": 1}, {"b": True}], ["1\t", "\tTrue"]),
        ({"d": {"x": 1}, "c": [2], "b": {"y": 3}, "a": 4}, ["4", "B\t3", "C\t2", "D\t1"]),
        ([], []),
        ("x", ["x"]),
        (None, ["None"]),
    ],
)
def test_text_is_a_line_an_object_with_its_scalars_by_name(value: Any, lines: list[str]) -> None:
    assert list(text_lines(value)) == lines


def test_a_query_takes_its_part_and_a_bad_one_is_refused() -> None:
    assert Query("CustomLabels[?Confidence > `60`].Name").of(ANSWER) == ["cat"]
    assert Query("Nothing").of(ANSWER) is None
    with pytest.raises(UsageError, match="is not valid JMESPath"):
        Query("CustomLabels[")
    with pytest.raises(UsageError, match="failed on the response"):
        Query("length(Nothing)").of(ANSWER)


@pytest.mark.parametrize("form", list(Form))
@settings(max_examples=40)
@given(value=values)
def test_every_value_can_be_written(form: Form, value: Any) -> None:
    show(value, form)


def test_json_keeps_letters_and_a_table_has_a_row_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    show({"Name": "Café"}, Form.JSON)
    assert capsys.readouterr().out == '{\n  "Name": "Café"\n}\n'
    show([{"label": "cat", "n": 1}, {"label": "dog", "more": {"a": 1}}], Form.TABLE)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["label", "n", "more"]
    assert [line.split()[0] for line in table[1:]] == ["cat", "dog"]
    assert json.loads(table[2].split(maxsplit=2)[-1]) == {"a": 1}
