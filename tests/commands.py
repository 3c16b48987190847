"""Runs commands in the test's own process, which has everything imported already."""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from unittest.mock import patch

import typer.main

from batchcl.cli.app import _run
from batchcl.cli.streams import log_as_json
from servers import CommandResult

_COMMAND = cache(typer.main.get_command)
"""Built from the signatures once, not for each command."""


class _Tee(io.StringIO):
    def __init__(self, other: io.StringIO) -> None:
        super().__init__()
        self._other = other

    def write(self, text: str) -> int:
        self._other.write(text)
        return super().write(text)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def run_command(line: str, *words: object, answer: str | None = None, stdin: bytes = b"") -> CommandResult:
    """Run `batchcl LINE WORDS…` with `stdin`; with `answer`, stdin is a terminal and contains it."""
    both = io.StringIO()
    out, err = _Tee(both), _Tee(both)
    given = io.TextIOWrapper(io.BytesIO(stdin)) if answer is None else Terminal(f"{answer}\n")
    argv = ["batchcl", *shlex.split(line), *map(str, words)]
    with (
        patch.object(sys, "argv", argv),
        patch.object(sys, "stdin", given),
        patch.object(typer.main, "get_command", _COMMAND),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = _run(argv[1:])
        finally:
            log_as_json(wanted=False)  # a setting of the process, which --log-format json has changed
    return CommandResult(code, out.getvalue(), err.getvalue(), both.getvalue())
