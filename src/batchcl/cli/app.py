"""The `batchcl` command: calls the commands, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Final

import typer

from batchcl.__about__ import __version__
from batchcl.cli import streams
from batchcl.cli.commands import LazyGroup
from batchcl.cli.streams import StreamError, write_hint, write_line
from batchcl.errors import BatchclError, ErrorCode, ExitCode, UsageError

__all__ = ["app", "main"]
_OBJECTS_PER_COLLECTION: Final = 20_000
"""Imports create hundreds of thousands of objects that stay; Python's default of 700 collects after each few."""

_SELF_EXPLANATORY: Final = frozenset(
    {
        ErrorCode.INVALID_ARGUMENT,
        ErrorCode.CONFLICTING_OPTIONS,
        ErrorCode.MISSING_EXTRA,
        ErrorCode.NOT_CONFIRMED,
        ErrorCode.INTERRUPTED,
        ErrorCode.STDOUT_FAILED,
    }
)
"""Errors whose sentence says all that the page says."""

app = typer.Typer(
    name="batchcl",
    cls=LazyGroup,
    help="Score every image of a dataset with an Amazon Rekognition Custom Labels model; results are Parquet tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_Misused: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""The base class of the parser's errors, which is in click or in Typer depending on Typer's version."""


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"batchcl {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. A `BatchclError` is one sentence on stderr; any other exception is a bug.

    The process exits without the interpreter's own shutdown, during which threads of the object store's runtime
    sometimes aborted it (exit code 134) although everything was done.
    """
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    arguments = sys.argv[1:]
    streams.install()
    _raise_file_limit()
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except StreamError as error:
        code = _report(error, arguments)
    sys.stderr.flush()
    os._exit(code)


def _raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit; the low default is for programs that use select()."""
    if sys.platform == "win32":  # which has no such limit
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with suppress(OSError, ValueError):  # some systems allow less than they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(arguments: list[str]) -> int:
    streams.log_as_json("--log-format=json" in arguments or ("--log-format", "json") in pairwise(arguments))
    try:
        code = app(prog_name="batchcl", standalone_mode=False)
    except _Misused as error:
        if words := _usage_sentence(error):
            return _report(UsageError(words), arguments)
        return ExitCode.USAGE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.DONE if end.code is None else ExitCode.BUG
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - everything else is a bug: traceback and exit code 1
        expected = _expected(error)
        if expected is None:
            streams.log_bug()
            return ExitCode.BUG
        return _report(expected, arguments)
    return code if isinstance(code, int) else ExitCode.DONE


def _report(error: BatchclError, arguments: list[str]) -> int:
    """Write the error that ended the command, with --json as an object, too. Returns the exit code."""
    page = f"docs/troubleshooting.md#{error.code.lower()}"
    write_line(str(error), event="error", level="error", fields={"code": error.code, "page": page})
    if error.code not in _SELF_EXPLANATORY:
        write_hint(f"More: batchcl explain {error.code}")
    if arguments[:1] in (["run"], ["pilot"], ["retry"]) and "--json" in arguments and error.summary is None:
        import orjson

        document = {"status": "refused", "reason": str(error), "code": error.code, "exit_code": int(error.exit_code)}
        with suppress(StreamError):
            sys.stdout.write(orjson.dumps(document).decode() + "\n")
    return error.exit_code


def _expected(error: BaseException) -> BatchclError | None:
    """The error to report for `error`, which may be in an exception group; None if it, or a part of it, is a bug."""
    if isinstance(error, BaseExceptionGroup):
        parts = [_expected(part) for part in error.exceptions]
        return None if None in parts else parts[0]
    if isinstance(error, BatchclError) and (error.exit_code is not ExitCode.BUG or isinstance(error, StreamError)):
        return error
    return None


def _usage_sentence(error: Any) -> str:
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
