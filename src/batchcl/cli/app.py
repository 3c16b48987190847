"""The `batchcl` command: puts the commands together, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Final

import typer

from batchcl.__about__ import __version__
from batchcl.cli import (
    confidence,
    dataset,
    demo,
    detect,
    doctor,
    emulator,
    evaluate,
    export,
    failures,
    labels,
    model,
    plan,
    project,
    query,
    retry,
    run,
    status,
    streams,
)
from batchcl.cli.streams import StreamError, write_line
from batchcl.errors import BatchclError, ExitCode, UsageError

__all__ = ["app", "main"]

app = typer.Typer(
    name="batchcl",
    help="Score every image of a dataset with an Amazon Rekognition Custom Labels model, into Parquet tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Misused: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""What all errors of Typer's parser are; its own name is in click or in Typer, as Typer's version has it."""

_SCORE, _ASK, _MODELS, _AROUND = "Score", "Ask the results", "Models and what they learn from", "Around it"

app.command("run", rich_help_panel=_SCORE)(run.run)
app.command("plan", rich_help_panel=_SCORE)(plan.plan)
app.command("retry", rich_help_panel=_SCORE)(retry.retry)
app.command("detect", rich_help_panel=_SCORE)(detect.detect)
app.command("status", rich_help_panel=_SCORE)(status.status)
app.command("runs", rich_help_panel=_SCORE)(status.runs)
app.command("labels", rich_help_panel=_ASK)(labels.labels)
app.command("confidence", rich_help_panel=_ASK)(confidence.confidence)
app.command("failures", rich_help_panel=_ASK)(failures.failures)
app.command("evaluate", rich_help_panel=_ASK)(evaluate.evaluate)
app.command("query", rich_help_panel=_ASK)(query.query)
app.add_typer(export.app, name="export", rich_help_panel=_ASK)
app.add_typer(project.app, name="project", rich_help_panel=_MODELS)
app.add_typer(dataset.app, name="dataset", rich_help_panel=_MODELS)
app.add_typer(model.app, name="model", rich_help_panel=_MODELS)
app.command("doctor", rich_help_panel=_AROUND)(doctor.doctor)
app.command("emulator", rich_help_panel=_AROUND)(emulator.emulator)
app.command("demo", rich_help_panel=_AROUND)(demo.demo)


def _tell_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"batchcl {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. An error that batchcl foresaw is one sentence on stderr; another one is a bug.

    The process ends without the interpreter's own shutdown, during which threads of the object store's runtime were
    seen to abort it (exit code 134) after everything was done.
    """
    arguments = sys.argv[1:]
    streams.install()
    _raise_file_limit()
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except StreamError as error:
        code = _ended(error, arguments)
    sys.stderr.flush()
    os._exit(code)


def _raise_file_limit() -> None:
    """Let this process open as many files as it may: the soft limit is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(arguments: list[str]) -> int:
    streams.log_as_json("--log-format=json" in arguments or ("--log-format", "json") in pairwise(arguments))
    try:
        code = app(prog_name="batchcl", standalone_mode=False)
    except _Misused as error:
        if words := _words(error):
            return _ended(UsageError(words), arguments)
        return ExitCode.USAGE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.DONE if end.code is None else ExitCode.BUG
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - whatever it is, the process must end with its traceback and as a bug
        foreseen = _foreseen(error)
        if foreseen is None:
            streams.log_bug()
            return ExitCode.BUG
        return _ended(foreseen, arguments)
    return code if isinstance(code, int) else ExitCode.DONE


def _ended(error: BatchclError, arguments: list[str]) -> int:
    """Write what ended the command; a run that was refused has its JSON object, too. Returns the exit code."""
    write_line(str(error), event="error", level="error")
    if arguments[:1] in (["run"], ["retry"]) and "--json" in arguments and error.summary is None:
        import orjson

        document = {"status": "refused", "reason": str(error), "exit_code": int(error.exit_code)}
        with suppress(StreamError):
            sys.stdout.write(orjson.dumps(document).decode() + "\n")
    return error.exit_code


def _foreseen(error: BaseException) -> BatchclError | None:
    """What to tell of `error`, which a task group may have wrapped; None where it, or a part of it, is a bug."""
    if isinstance(error, BaseExceptionGroup):
        parts = [_foreseen(part) for part in error.exceptions]
        return None if None in parts else parts[0]
    if isinstance(error, BatchclError) and (error.exit_code is not ExitCode.BUG or isinstance(error, StreamError)):
        return error
    if isinstance(error, OSError):
        from batchcl.runs.store import scan_error

        return scan_error(error)
    return None


def _words(error: Any) -> str:
    """A command line that can't be parsed, in one sentence; empty if the help has been shown instead."""
    from difflib import get_close_matches

    command = error.ctx.command_path if error.ctx else "batchcl"
    option = getattr(error, "option_name", None)
    if option is not None and (similar := get_close_matches(option, getattr(error, "possibilities", None) or (), 1)):
        return f"no such option: {option}; did you mean {similar[0]}?"
    text = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    text = text.replace(". Did you mean", "; did you mean")
    if not text:
        return ""
    return f"{text[0].lower()}{text[1:]}{'' if text.endswith('?') else f'; see {command} --help'}"
