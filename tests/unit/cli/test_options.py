"""The options of `run`, `plan`, `doctor` and `retry` are those of `Job`."""

from __future__ import annotations

import pytest
import typer.main
from typer.core import TyperGroup

from batchcl.cli.app import app
from batchcl.job import Job
from batchcl.options import flag_of, option_fields
from commands import run_command

OWN = {"emulator", "emulator_state", "config", "json", "log_format"}


def parameters(command: str) -> set[str]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {each.name for each in group.commands[command].params if each.name is not None}


@pytest.mark.parametrize("command", ["run", "plan", "doctor"])
def test_commands_on_a_job_take_all_its_options(command):
    assert parameters(command) - OWN == set(Job.model_fields)


def test_retry_takes_no_option_that_decides_about_rows():
    taken = parameters("retry") & set(Job.model_fields)
    assert {"deadline", "fit", "start_model"} <= taken
    assert taken.isdisjoint({"sources", "model", "out", "min_confidence", "where", "limit", "incremental"})


def test_help_shows_each_option_in_its_panel():
    text = run_command("run --help").out
    for name, each in option_fields().items():
        assert flag_of(name) in text
        assert each.option.panel is None or each.option.panel in text


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run a --max-tsp 3", "no such option: --max-tsp; did you mean --max-tps?"),
        ("rnu", "no such command 'rnu'; did you mean 'run'?"),
        ("model lst", "no such command 'lst'; did you mean 'list'?"),
        ("run a --model m --out o --limit x", "--limit 'x': expected a whole number"),
        ("run a --zzz", "no such option: --zzz; see batchcl run --help"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(line, sentence):
    refused = run_command(line)
    assert (refused.code, refused.err) == (2, f"batchcl: {sentence}\n")
