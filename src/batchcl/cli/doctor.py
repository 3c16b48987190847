"""`batchcl doctor`."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, get_type_hints

import orjson
import typer

from batchcl.cli import run
from batchcl.cli.options import flags

if TYPE_CHECKING:
    from batchcl.doctor import Examination, Finding

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_LONGEST = len("credentials")


def doctor(*, json: bool = False, **given: Any) -> None:
    """Tell whether `run` would work, a line for each thing that it depends on, and what to do where it wouldn't.

    It takes the arguments of `run`; what isn't given isn't looked at. Nothing is started, stopped or left behind: a
    small object is written to ROOT and removed, some images are read, and one is scored if the model is RUNNING.
    Exit code 5 if a run would fail.

    Examples:

      batchcl doctor

      batchcl doctor s3://photos/2026/ --model ARN --out s3://tables/labels --start-model 2

      batchcl doctor --config configs/nightly.toml --json
    """  # noqa: D412 - Typer shows the examples as they stand
    import anyio  # noqa: PLC0415 - `batchcl --help` goes without

    from batchcl.cli.signals import run_until_first_signal  # noqa: PLC0415
    from batchcl.doctor import Verdict, examine, subject_of  # noqa: PLC0415
    from batchcl.errors import ExitCode  # noqa: PLC0415

    subject = subject_of(given.pop("config", None), flags(**given))

    async def work() -> Examination:
        return await examine(subject, on_finding=(lambda _: None) if json else _show)

    found = anyio.run(run_until_first_signal, work)
    if json:
        sys.stdout.write(orjson.dumps(found.as_dict()).decode() + "\n")
    if found.verdict is Verdict.FAIL:
        raise typer.Exit(ExitCode.REFUSED)


def _show(finding: Finding) -> None:
    if not sys.stdout.isatty():
        sys.stdout.write(f"{finding.verdict:<4}  {finding.check:<{_LONGEST}}  {finding.text}\n")
        sys.stdout.flush()
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.padding import Padding  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    row = Table.grid(padding=(0, 2))
    row.add_column(width=4)
    row.add_column(width=_LONGEST)
    row.add_column(overflow="fold")
    row.add_row(Text(finding.verdict, style=_COLOURS[finding.verdict]), finding.check, Text(finding.text))
    Console(file=sys.stdout).print(Padding(row, 0))


def _arguments_of_run() -> inspect.Signature:
    """All but how a run talks."""
    signature = inspect.signature(run.run, eval_str=True)
    return signature.replace(parameters=[each for each in signature.parameters.values() if each.name != "log_format"])


# The same arguments as `run`, by taking its signature: Typer reads them from here.
doctor.__signature__ = _arguments_of_run()  # type: ignore[attr-defined]
doctor.__annotations__ = get_type_hints(run.run, include_extras=True)
