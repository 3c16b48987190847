"""The list of commands, whose modules are imported when they are called."""

from __future__ import annotations

import pytest
import typer.main
from typer.core import TyperGroup

from batchcl.cli.app import app
from batchcl.cli.commands import COMMANDS
from commands import run_command


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_has_the_first_sentence_of_each_command(name):
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert COMMANDS[name].help == group.commands[name].get_short_help_str(limit=1000)


def test_help_lists_each_command_under_its_heading():
    text = run_command("--help").out
    for name, each in COMMANDS.items():
        section = text.partition(f"\n{each.heading}:\n")[2].partition("\n\n")[0]
        assert f"\n  {name} " in f"\n{section}"


def test_help_of_a_group_lists_whole_sentences():
    text = " ".join(run_command("model --help").out.split())
    assert "copy Copy a trained model to another project, also from another account whose project policy" in text


def test_an_example_in_the_help_is_one_line():
    assert (
        '\n    batchcl run --from-results s3://tables/labels --where "top_confidence < 60" --model ARN --out '
        "s3://tables/second\n" in run_command("run --help").out
    )
