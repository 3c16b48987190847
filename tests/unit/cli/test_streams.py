"""The footer of stderr: it stays below everything else that is written, on a terminal (pyte)."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcl.cli import streams
from batchcl.cli.streams import _Stderr
from commands import Terminal
from terminals import TerminalScreen

COLUMNS, ROWS = 40, 8


@pytest.fixture
def terminal():
    screen = TerminalScreen(COLUMNS, ROWS)
    return screen, _Stderr(screen)


def test_text_appears_above_the_footer(terminal):
    screen, stderr = terminal
    stderr.set_footer("one\ntwo")
    stderr.flush()
    stderr.write("a notice\n")
    stderr.flush()
    assert screen.lines() == ["a notice", "one", "two"]


def test_a_shorter_footer_leaves_nothing_of_the_last_one(terminal):
    screen, stderr = terminal
    for footer in ("first line\nsecond line\nthird", "1st\n2nd", ""):
        stderr.set_footer(footer)
        stderr.flush()
        assert screen.lines() == footer.split("\n")


def test_the_cursor_rests_visible_at_the_footers_first_cell(terminal):
    """So the footer can be erased after a resize, whether the terminal has wrapped its lines or not."""
    screen, stderr = terminal
    stderr.write("a notice\n")
    stderr.set_footer("one\ntwo\nthree")
    stderr.flush()
    cursor = screen.screen.cursor
    assert (cursor.y, cursor.x, cursor.hidden) == (1, 0, False)


def test_a_line_wider_than_the_terminal_is_cut_off(terminal):
    screen, stderr = terminal
    for footer in ("x" * 60 + "\ny", "z"):
        stderr.set_footer(footer)
        stderr.flush()
    assert screen.lines() == ["z"]


def test_an_incomplete_line_is_not_overwritten(terminal):
    """Such as the prompt for the code of an MFA device."""
    screen, stderr = terminal
    stderr.set_footer("one")
    stderr.flush()
    stderr.write("code: ")
    stderr.set_footer("two")
    stderr.flush()
    assert screen.lines() == ["code:"]
    stderr.write("123\n")
    stderr.flush()
    assert screen.lines() == ["code: 123", "two"]


def test_an_unchanged_footer_is_not_written_again(terminal):
    screen, stderr = terminal
    for _ in range(3):
        stderr.set_footer("one")
        stderr.flush()
    assert screen.writes == 1


def test_a_terminal_that_blocks_gets_the_newest_footer_only():
    class Blocked(TerminalScreen):
        released = threading.Event()

        def write(self, text: str) -> int:
            self.released.wait(30)
            return super().write(text)

    screen = Blocked(COLUMNS, ROWS)
    stderr = _Stderr(screen)
    for number in range(1000):
        stderr.set_footer(f"{number}")
    screen.released.set()
    stderr.flush()
    assert screen.lines() == ["999"]
    assert screen.writes <= 2


_LINES = st.lists(st.text("abc", min_size=1, max_size=COLUMNS - 1), max_size=4)


@settings(max_examples=25)
@given(st.lists(st.tuples(_LINES, _LINES), min_size=1, max_size=12))
def test_the_screen_ends_with_the_text_and_the_footer(steps):
    screen = TerminalScreen(COLUMNS, ROWS)
    written: list[str] = []
    before = ""
    for texts, footer in steps:
        after = "\n".join(footer)
        screen.write(streams._with_footer("".join(f"{line}\n" for line in texts), after, before=before))
        written, before = written + texts, after
        visible = [line for line in screen.lines() if line]
        assert len(visible) >= min(len(footer) + len(texts), ROWS - 1)
        assert visible == (written + footer)[len(written + footer) - len(visible) :]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "linux", "NO_COLOR": "1"}, True),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False),
        ({}, False),
        ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "xterm", "CI": "false"}, True),
    ],
)
def test_which_terminals_get_a_panel(env, expected):
    with patch.dict(os.environ, env, clear=True):
        with patch.object(sys, "stderr", Terminal()):
            assert streams.can_redraw() is expected
        with patch.object(sys, "stderr", io.StringIO()):
            assert not streams.can_redraw()


def test_text_that_is_not_utf_8_is_escaped_in_json(capsys, monkeypatch):
    monkeypatch.setattr(streams, "_is_json", True)
    streams.log("kind", "name\udcff", fields={"path": "p\udcff", "images": 3})
    (line,) = capsys.readouterr().err.splitlines()
    logged = json.loads(line)
    assert (logged["message"], logged["path"], logged["images"]) == ("name\\udcff", "p\\udcff", 3)
