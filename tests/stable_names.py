"""What docs/compatibility.md lists as stable, one name a line. As a script it records the current names."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer.main

from batchcl.cli.app import app
from batchcl.errors import ExitCode
from batchcl.monitoring.metrics import METRICS
from batchcl.monitoring.trouble import TROUBLE
from batchcl.options import flag_of, option_fields
from batchcl.outcomes import FAILURE_CODES
from batchcl.runs.schema import FAILURES, LABEL, RESULTS

RECORDED = Path(__file__).with_name("stable_names.txt")
_MODULES = ("batchcl", "batchcl.workflow", "batchcl.emulator")


def stable_names() -> set[str]:
    """The current names, with the values that programs rely on."""
    return {*_commands(typer.main.get_command(app), "batchcl"), *_job(), *_codes(), *_tables(), *_python()}


def recorded_names() -> set[str]:
    """The names of the last release."""
    return set(RECORDED.read_text().splitlines())


def _commands(command: Any, name: str) -> Iterator[str]:
    yield f"command {name}"
    for each in command.params:
        yield from (f"flag {name} {flag}" for flag in (*each.opts, *each.secondary_opts) if flag.startswith("--"))
    for verb, one in getattr(command, "commands", {}).items():
        yield from _commands(one, f"{name} {verb}")


def _job() -> Iterator[str]:
    for name, each in option_fields().items():
        yield f"job {name} = {'required' if each.is_required else each.default!r} ({flag_of(name)})"


def _codes() -> Iterator[str]:
    yield from (f"exit code {code.name} = {code.value}" for code in ExitCode)
    yield from (f"error code {code}, permanent: {about.permanent}" for code, about in FAILURE_CODES.items())
    yield from (f"metric {each.name} {each.otel} {each.kind} {each.unit} {each.labels}" for each in METRICS.values())
    yield from (f"trouble {kind}" for kind in TROUBLE)


def _tables() -> Iterator[str]:
    for name, schema in (("results", RESULTS), ("failures", FAILURES), ("labels", LABEL)):
        yield from (f"column {name} {each.name} {str(each.type).partition('<')[0]}" for each in schema)


def _python() -> Iterator[str]:
    spec = find_spec("batchcl.airflow")  # which can't be imported without Airflow
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    (names,) = (
        each.value for each in tree.body if isinstance(each, ast.Assign) and ast.unparse(each).startswith("__all__")
    )
    yield from (f"python batchcl.airflow.{name}" for name in ast.literal_eval(names))
    for module in _MODULES:
        for name in import_module(module).__all__:
            yield from _attributes(getattr(import_module(module), name), f"python {module}.{name}")


def _attributes(value: Any, name: str) -> Iterator[str]:
    yield name
    if isinstance(value, type) and issubclass(value, Enum):
        yield from (f"{name}.{each.name} = {each.value!r}" for each in value)
    elif is_dataclass(value):
        yield from (f"{name}.{each.name}" for each in fields(value) if not each.name.startswith("_"))
    elif callable(value) and not isinstance(value, type):
        yield from (f"{name}({each})" for each in inspect.signature(value).parameters)


if __name__ == "__main__":
    RECORDED.write_text("".join(f"{name}\n" for name in sorted(stable_names())))
