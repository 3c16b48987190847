"""`batchcl doctor`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import typer

from batchcl.cli.local_emulator import Emulator, EmulatorState, check_emulator, emulated
from batchcl.cli.options import Config, Json, flags, takes_job_options

if TYPE_CHECKING:
    from batchcl.diagnosis import Diagnosis, Finding

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_LONGEST = len("credentials")


@takes_job_options()
def doctor(
    *,
    config: Config = None,
    json: Json = False,
    emulator: Emulator = False,
    emulator_state: EmulatorState = None,
    **options: Any,
) -> None:
    """Check whether `run` would work: one line for each thing that it needs, with the fix for what fails.

    Takes the arguments of `run`, and checks only what is given. Writes a small object to ROOT and removes it, reads
    some images, and scores one if the model is RUNNING; starts and stops nothing. Exit code 5 if a run would fail.

    Examples:

      batchcl doctor

      batchcl doctor s3://photos/2026/ --model ARN --out s3://tables/labels --start-model 2

      batchcl doctor --config configs/nightly.toml --json
    """
    import anyio

    from batchcl.cli.signals import run_until_first_signal
    from batchcl.diagnosis import CheckStatus, target_of
    from batchcl.diagnosis import doctor as check
    from batchcl.errors import ExitCode

    check_emulator(emulator=emulator)
    target = target_of(config, flags(options), has_default_model=emulator)

    async def work() -> Diagnosis:
        async with emulated(target.job, emulator=emulator, state=emulator_state) as (job, aws):
            return await check(replace(target, job=job), aws=aws, on_finding=(lambda _: None) if json else _show)

    diagnosis = anyio.run(run_until_first_signal, work)
    if json:
        sys.stdout.write(orjson.dumps(diagnosis.as_dict()).decode() + "\n")
    if diagnosis.status is CheckStatus.FAIL:
        raise typer.Exit(ExitCode.REFUSED)


def _show(finding: Finding) -> None:
    if not sys.stdout.isatty():
        sys.stdout.write(f"{finding.status:<4}  {finding.check:<{_LONGEST}}  {finding.text}\n")
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2))
    row.add_column(width=4)
    row.add_column(width=_LONGEST)
    row.add_column(overflow="fold")
    row.add_row(Text(finding.status, style=_COLOURS[finding.status]), finding.check, Text(finding.text))
    Console(file=sys.stdout).print(Padding(row, 0))
