"""Commands as a user types them, run in the test's own process: it has everything imported already."""

from __future__ import annotations

import io
import json
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import typer.main

from batchcl.cli.app import _run

_COMMAND = cache(typer.main.get_command)
"""Made of the functions' signatures once, rather than for each command."""


@dataclass(frozen=True)
class Said:
    """What a command ended with; `both` is stdout and stderr in the order in which they were written."""

    code: int
    out: str
    err: str
    both: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class _Tee(io.StringIO):
    def __init__(self, other: io.StringIO) -> None:
        super().__init__()
        self._other = other

    def write(self, text: str) -> int:
        self._other.write(text)
        return super().write(text)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typed(line: str, *words: object, answer: str | None = None) -> Said:
    """Run `batchcl LINE WORDS…`; with an `answer` stdin is a terminal at which somebody types it."""
    both = io.StringIO()
    out, err = _Tee(both), _Tee(both)
    stdin = io.StringIO() if answer is None else _Terminal(f"{answer}\n")
    argv = ["batchcl", *shlex.split(line), *map(str, words)]
    with (
        patch.object(sys, "argv", argv),
        patch.object(sys, "stdin", stdin),
        patch.object(typer.main, "get_command", _COMMAND),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = _run()
    return Said(code, out.getvalue(), err.getvalue(), both.getvalue())
