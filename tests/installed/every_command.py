"""Shows the help of every command of the batchcl that is installed beside this Python, and prints their names."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import typer.main

from batchcl.cli.app import app


def names_in(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command."""
    for name, command in group.commands.items():
        yield (*before, name)
        if hasattr(command, "commands"):
            yield from names_in(command, (*before, name))


found = list(names_in(typer.main.get_command(app)))
for words in found:
    with redirect_stdout(io.StringIO()) as shown:
        app([*words, "--help"], prog_name="batchcl", standalone_mode=False)
    assert shown.getvalue().startswith(f"Usage: batchcl {' '.join(words)} "), words
print(json.dumps([" ".join(words) for words in found]))
