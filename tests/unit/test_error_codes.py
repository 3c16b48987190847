"""docs/troubleshooting.md has a section for every code, with its exit code and a sentence that the program writes."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeGuard
from unittest.mock import Mock

import pytest

import batchcl
from batchcl import errors
from batchcl.aws.errors import code_of
from batchcl.cli.explain import Section, parse_page, read_page
from batchcl.cli.streams import StreamError
from batchcl.errors import (
    BatchclError,
    CallError,
    CredentialsError,
    ErrorCode,
    ExitCode,
    FatalCallError,
    OutputCredentialsError,
    OutputError,
    RejectedError,
    SourceError,
    StalledError,
    StoppedError,
    TransientError,
    UsageError,
)
from batchcl.outcomes import FAILURE_CODES, remedy
from batchcl.scoring.session import _session_error
from commands import run_command

PACKAGE = Path(batchcl.__file__).parent
SECTIONS = {each.code: each for each in parse_page(read_page())}
CLASSES = {
    each.__name__: each
    for each in [*vars(errors).values(), StreamError]
    if isinstance(each, type) and issubclass(each, BatchclError)
}
FAILED_IMAGES = "Failed images"
REFUSALS = {ErrorCode.CALLS_REJECTED, ErrorCode.CLOCK_WRONG, ErrorCode.QUOTA_REACHED}
"""Codes that only the table in `batchcl.aws.errors` names, for the codes of services."""

OF_SERVICE = {"AccessDeniedException", "InternalServerError", "InvalidS3ObjectException"}
"""The service's codes of failed images, besides the permanent ones."""

FROM_PARTS = REFUSALS | {
    ErrorCode.BUDGET_USED_UP,
    ErrorCode.EMPTY_SOURCE,
    ErrorCode.INTERRUPTED,
    ErrorCode.MODEL_LEFT_RUNNING,
    ErrorCode.NO_CREDENTIALS,
    ErrorCode.OUTPUT_FAILED,
}
"""Codes of errors whose sentence is not a single string in the source."""

_EXIT = re.compile(r"^Exit codes? ([0-9 and]+)\.$", re.MULTILINE)
_EXAMPLE = re.compile(r"^```text\nbatchcl: (.*)\n```$", re.MULTILINE)
_ROW = re.compile(r"^\| (\d+) \| (.*) \|$", re.MULTILINE)


class Source(NamedTuple):
    """What the package's source says about errors.

    Attributes:
        used: every `ErrorCode` that the source names.
        classes: those that are raised with a code, or have it by default.
        sentences: patterns of the messages with a code.
        words: literal parts of messages.
        own: codes of `CallError`s that are batchcl's own.
    """

    used: set[str]
    classes: dict[str, set[str]]
    sentences: dict[str, set[str]]
    words: set[str]
    own: set[str]


@cache
def source() -> Source:
    found = Source(set(), defaultdict(set), defaultdict(set), set(), set())
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if "Error" in text and path.parent.name != "operations":
            for node in ast.walk(ast.parse(text)):
                if _is_code(node):
                    found.used.add(ErrorCode[node.attr])
                if isinstance(node, ast.Call):
                    _add_call(found, node)
                elif isinstance(node, ast.ClassDef):
                    for each in node.body:
                        if isinstance(each, ast.AnnAssign) and each.value is not None:
                            for code in _codes_in(each.value):
                                found.classes[code].add(node.name)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.words.add(node.value)
    return found


def _add_call(found: Source, call: ast.Call) -> None:
    parts = [getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(call.func)]
    names = [name for name in parts if name in CLASSES]
    values = [each.value for each in call.keywords if each.arg == "code"]
    if not names:
        return
    codes = [code for value in values for code in _codes_in(value)]
    if any(each.arg == "has_lasted" for each in call.keywords):
        names = [StoppedError.__name__]  # whose exit code it has
    for code in codes:
        found.classes[code].update(names)
    if issubclass(CLASSES[names[0]], CallError):
        found.own.update(str(value.value) for value in values if isinstance(value, ast.Constant))
        return
    for text in ast.walk(call.args[0]) if call.args else ():
        if isinstance(text, ast.JoinedStr | ast.Constant):
            texts = text.values if isinstance(text, ast.JoinedStr) else [text]
            pattern = "".join(re.escape(str(each.value)) if isinstance(each, ast.Constant) else ".*" for each in texts)
            for code in codes or [CLASSES[names[0]].code]:
                found.sentences[code].add(pattern)


def _codes_in(tree: ast.AST) -> Iterator[str]:
    yield from (ErrorCode[node.attr] for node in ast.walk(tree) if _is_code(node))


def _is_code(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ErrorCode"


def exit_codes(section: Section) -> list[int]:
    found = _EXIT.search(section.text)
    return [] if found is None else [int(each) for each in found[1].split(" and ")]


def test_every_code_has_a_section_and_every_section_a_code():
    of_images = {code for code, each in SECTIONS.items() if each.group == FAILED_IMAGES}
    assert SECTIONS.keys() - of_images == set(ErrorCode)
    own = (
        source().own | set(FAILURE_CODES) | {"MalformedAnswer", "UnreadableFile"}
    )  # the last two are no literals there
    assert of_images == (own - set(ErrorCode)) | OF_SERVICE
    assert len(SECTIONS) == len(parse_page(read_page()))


def test_every_code_is_used():
    assert source().used == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_the_stated_exit_code_is_that_of_the_error(code):
    classes = source().classes[code]
    assert bool(classes) == (code not in REFUSALS)
    expected = {CLASSES[each].exit_code for each in classes} or {ExitCode.REFUSED}
    assert exit_codes(SECTIONS[code]) == sorted(expected)


@pytest.mark.parametrize("code", ErrorCode)
def test_the_example_is_a_sentence_of_the_program(code):
    example = _EXAMPLE.search(SECTIONS[code].text)
    assert example is not None
    is_whole = any(re.fullmatch(each, example[1]) for each in source().sentences[code] if len(each) > 20)
    assert is_whole == (code not in FROM_PARTS)
    assert is_whole or any(len(each) > 15 and each in example[1] for each in source().words)


def test_the_index_lists_the_codes_by_exit_code():
    rows = {int(number): re.findall(r"\[(\w+)\]", codes) for number, codes in _ROW.findall(read_page())}
    expected = {
        int(number): sorted(code for code, each in SECTIONS.items() if number in exit_codes(each))
        for number in ExitCode
        if number is not ExitCode.DONE
    }
    assert rows == expected


def test_every_section_says_what_to_do():
    for each in SECTIONS.values():
        assert "\n- " in each.text, each.code
        assert each.summary, each.code
        assert bool(exit_codes(each)) == (each.group != FAILED_IMAGES), each.code


@pytest.mark.parametrize("code", sorted(FAILURE_CODES))
def test_a_failed_image_has_the_same_remedy_on_the_page(code):
    retries = "batchcl retry" in remedy(code, fit=False)
    assert ("batchcl retry ROOT RUN" in SECTIONS[code].text) == retries


def test_the_code_of_an_error_that_ends_a_run_is_that_of_its_cause():
    refusal = CredentialsError("gone", code=ErrorCode.CREDENTIALS_EXPIRED)
    unsigned = FatalCallError("gone", code="Credentials")
    unsigned.__cause__ = refusal
    found = [
        refusal,
        unsigned,
        FatalCallError("not trusted", code="Tls"),
        FatalCallError("a redirect", code="307"),
        FatalCallError("the clock", code="RequestTimeTooSkewed"),
        RejectedError("no", code="AccessDeniedException"),
        RejectedError("no", code="InvalidS3ObjectException"),
        TransientError("late", code="Timeout"),
    ]
    assert [code_of(each) for each in found] == [
        ErrorCode.CREDENTIALS_EXPIRED,
        ErrorCode.CREDENTIALS_EXPIRED,
        ErrorCode.TLS,
        ErrorCode.SERVICE_UNREACHABLE,
        ErrorCode.CLOCK_WRONG,
        ErrorCode.ACCESS_DENIED,
        ErrorCode.CALLS_REJECTED,
        ErrorCode.SERVICE_UNREACHABLE,
    ]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (OutputError("full"), ErrorCode.OUTPUT_FAILED),
        (SourceError("changed", code=ErrorCode.SOURCE_CHANGED), ErrorCode.SOURCE_CHANGED),
        (FatalCallError("not trusted", code="Tls"), ErrorCode.TLS),
        (StalledError("stalled"), ErrorCode.STALLED_RUN),
    ],
)
def test_an_error_that_ends_a_run_keeps_its_code(failure, code, answered):
    end = _session_error(failure, answered=answered, is_model_stopped=True, summary=Mock())
    assert end.code == code
    assert (end.exit_code is ExitCode.STOPPED) == (answered or isinstance(failure, StalledError))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"out": "s3:/b/p"}, ErrorCode.INVALID_TARGET),
        ({"where": "rm(1)"}, ErrorCode.INVALID_QUERY),
        ({"sse": "aws:kms"}, ErrorCode.CONFLICTING_OPTIONS),
        ({"sources": ()}, ErrorCode.INVALID_ARGUMENT),
        ({"max_tps": 0}, ErrorCode.INVALID_ARGUMENT),
    ],
)
def test_an_option_of_a_job_keeps_the_code_of_what_is_wrong(wrong, code):
    with pytest.raises(UsageError) as caught:
        batchcl.Job(**{"sources": "photos", "model": "a@b", "out": "out"} | wrong)
    assert caught.value.code == code


def test_a_class_has_a_code_and_a_raise_can_name_another():
    assert OutputCredentialsError("gone").code == ErrorCode.NO_CREDENTIALS
    assert CredentialsError("no", is_access_denied=True).code == ErrorCode.ACCESS_DENIED
    assert CredentialsError("no", code=ErrorCode.INVALID_CREDENTIALS).code == ErrorCode.INVALID_CREDENTIALS
    assert CallError("no", code="ThrottlingException").code == "ThrottlingException"


def test_explain_prints_a_section_for_a_terminal():
    done = run_command("explain heldrun")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("HeldRun\n\nAnother process works on the run")
    assert "\nExit code 4.\n" in done.out
    assert "\n    batchcl: run 2026-11-22 is in use by another process" in done.out
    assert "See run ids (docs/runs.md#run-ids).\n" in done.out
    assert done.out.endswith("\nFrom docs/troubleshooting.md#heldrun\n")


@pytest.mark.parametrize("code", SECTIONS)
def test_explain_shows_no_markup_of_links_and_blocks(code):
    text = run_command("explain", code).out
    assert text.startswith(f"{code}\n")
    assert not re.search(r"```|\]\(|^#", text, re.MULTILINE)


def test_explain_without_a_code_lists_all():
    done = run_command("explain")
    assert re.findall(r"^  (\w+)  +\S", done.out, re.MULTILINE) == list(SECTIONS)
    assert "\nFailed images:\n  InvalidImageFormatException  The service says" in done.out


@pytest.mark.parametrize(
    ("code", "advice"), [("StaledRun", "did you mean StalledRun?"), ("xyzzy", "`batchcl explain` lists the codes")]
)
def test_explain_suggests_the_code_that_was_meant(code, advice):
    done = run_command("explain", code)
    assert (done.code, done.err) == (2, f"batchcl: there is no error code {code!r}; {advice}\n")


def test_the_line_below_an_error_names_its_code(tmp_path):
    done = run_command("labels", tmp_path)
    assert done.err.endswith("\nMore: batchcl explain NotAnOutputRoot\n")
    assert done.sentence.startswith("batchcl: ")
    assert done.sentence.count("\n") == 1
