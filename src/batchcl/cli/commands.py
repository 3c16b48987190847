"""The commands of `batchcl` and their help. A command's module is imported when the command is called."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from batchcl.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "Entry", "LazyGroup"]

_SCORE, _RESULTS, _MODELS, _OTHER = "Score images", "Read results", "Projects, datasets and models", "Other"
_BETWEEN_EXAMPLES: Final = re.compile(r"\n\n(?=  \S)")
_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")


class Entry(NamedTuple):
    """A command in the list of commands.

    Attributes:
        target: the module below `batchcl.cli`, and in it the function, or the Typer app of a group.
        heading: under which it is listed.
        help: the first sentence of its own help, so that the list of commands needs no import.
    """

    target: str
    heading: str
    help: str


COMMANDS: Final = {
    "run": Entry("run:run", _SCORE, "Score every image of the sources and publish the results as partitioned Parquet."),
    "plan": Entry(
        "plan:plan",
        _SCORE,
        "Show what `run` would do: images, bytes, skips, and time and dollars at 1 to 5 inference units.",
    ),
    "pilot": Entry(
        "pilot:pilot",
        _SCORE,
        "Score a random sample of the images, and estimate time and cost of the rest from its measured rate.",
    ),
    "retry": Entry("retry:retry", _SCORE, "Retry the failed images of a run that may succeed."),
    "detect": Entry("detect:detect", _SCORE, "Score one or a few images with a running model, and show the response."),
    "status": Entry("status:status", _SCORE, "Show the state of a run."),
    "runs": Entry("status:runs", _SCORE, "List the runs of an output root, oldest first, with their cost so far."),
    "costs": Entry("costs:costs", _SCORE, "Show what the model has cost, by month, model or run, and what for."),
    "labels": Entry("labels:labels", _RESULTS, "Count the images of each label, with the confidences."),
    "confidence": Entry(
        "confidence:confidence", _RESULTS, "Show a histogram of the confidences, to choose a threshold."
    ),
    "failures": Entry("failures:failures", _RESULTS, "Count failed and skipped images by reason, with examples."),
    "evaluate": Entry(
        "evaluate:evaluate",
        _RESULTS,
        "Compare results with true labels: precision, recall and F1 per label, confusion, mean average precision.",
    ),
    "compare": Entry(
        "compare:compare",
        _RESULTS,
        "Compare two runs, dates or models: shares of labels, top labels, confidences, failures, pace and cost.",
    ),
    "thresholds": Entry(
        "thresholds:thresholds",
        _RESULTS,
        "Choose a confidence threshold for each label from true labels, and check how well confidences are calibrated.",
    ),
    "query": Entry("query:query", _RESULTS, "Query the results in SQL."),
    "report": Entry(
        "report:report",
        _RESULTS,
        "Write a report about results as one HTML file, with charts and pictures, to read or to send.",
    ),
    "show": Entry(
        "show:show",
        _RESULTS,
        "Write pictures of scored images with their stored boxes and labels; the model is not called.",
    ),
    "export": Entry("export:app", _RESULTS, "Copy results to another location or format."),
    "project": Entry("project:app", _MODELS, "Create, inspect and delete projects."),
    "dataset": Entry("dataset:app", _MODELS, "Create, inspect and change datasets of labelled images."),
    "model": Entry("model:app", _MODELS, "Train, evaluate, start, stop and inspect models."),
    "doctor": Entry(
        "doctor:doctor",
        _OTHER,
        "Check whether `run` would work: one line for each thing that it needs, with the fix for what fails.",
    ),
    "explain": Entry("explain:explain", _OTHER, "Show causes and remedies of an error, by its code."),
    "emulator": Entry(
        "emulator:emulator", _OTHER, "Run a local Custom Labels service that trains and runs real models."
    ),
    "demo": Entry(
        "demo:demo",
        _OTHER,
        "Train a model, score a few hundred real images and analyse the results, offline and free of charge.",
    ),
}


class _Commands(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, COMMANDS[name].target)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _load(name: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    found = getattr(import_module(f"batchcl.cli.{module}"), attribute)
    parent = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name, cls=_Group)
    else:
        parent.command(name, cls=_Command)(found)
    command = typer.main.get_group(parent).commands[name]
    _keep_examples(command)
    return command


def _keep_examples(command: Any) -> None:
    """Put each example of `command`, and of the commands in it, on one line that is not wrapped."""
    if command.help:
        text = _BETWEEN_EXAMPLES.sub("\n", command.help)
        command.help = text.replace("\n\nExamples:\n", "\n\n\b\nExamples:\n")  # \b: not wrapped
    for each in getattr(command, "commands", {}).values():
        _keep_examples(each)


class _Command(TyperCommand):
    """A command whose options are listed under their headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for each in self.get_params(ctx):
            default = "Arguments" if each.param_type_name == "argument" else "Options"
            if record := each.get_help_record(ctx):
                sections.setdefault(getattr(each, "rich_help_panel", None) or default, []).append(record)
        for heading, rows in sections.items():
            _write_section(formatter, heading, rows)


class _HelpfulGroup(TyperGroup):
    """A group that shows its help on stderr if no command is named, with exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args`, or show the help."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            text = ctx.get_help()
            sys.stderr.write(f"{text if sys.stderr.isatty() else _STYLE.sub('', text)}\n")
            ctx.exit(ExitCode.USAGE)
        return super().parse_args(ctx, args)


class _Group(_HelpfulGroup):
    """A group whose commands are listed with a whole sentence each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, _first_sentence(command)) for name, command in self.commands.items() if not command.hidden]
        _write_section(formatter, "Commands", rows)


class LazyGroup(_HelpfulGroup):
    """`batchcl` itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under their headings."""
        for heading in dict.fromkeys(each.heading for each in COMMANDS.values()):
            rows = [(name, each.help) for name, each in COMMANDS.items() if each.heading == heading]
            _write_section(formatter, heading, rows)


def _write_section(formatter: Any, heading: str, rows: Sequence[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(typer.style(heading, bold=True)):
            formatter.write_dl(rows)


def _first_sentence(command: Any) -> str:
    return str(command.get_short_help_str(limit=1000))
