"""The options of `run`, `plan`, `doctor` and `retry`: Typer's parameters, generated from the fields of `Job`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from batchcl.choices import ServerSideEncryption
from batchcl.options import flag_of, option_fields

__all__ = [
    "Config",
    "Json",
    "LogFormat",
    "LogFormatOption",
    "MaxResults",
    "MinConfidence",
    "Profile",
    "Region",
    "Sse",
    "SseKmsKeyId",
    "flags",
    "job_option",
    "takes_job_options",
]

_F = TypeVar("_F", bound=Callable[..., None])


def job_option(name: str) -> Any:
    """Typer's description of the option `name` of `Job`."""
    each = option_fields()[name]
    if name == "sources":
        return typer.Argument(metavar=each.option.metavar, help=each.help, show_default=False)
    return typer.Option(
        flag_of(name),
        metavar=each.option.metavar,
        help=each.help,
        rich_help_panel=each.option.panel,
        show_default=False,
    )


MaxResults = Annotated[int | None, job_option("max_results")]
MinConfidence = Annotated[float | None, job_option("min_confidence")]
Profile = Annotated[str | None, job_option("profile")]
Region = Annotated[str | None, job_option("region")]
Sse = Annotated[ServerSideEncryption | None, job_option("sse")]
SseKmsKeyId = Annotated[str | None, job_option("sse_kms_key_id")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Job file in TOML; flags and BATCHCL_... variables override it.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout at the end.")]


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format", help="Log lines instead of the live panel; JSON for log collectors.", show_default=False
    ),
]


def takes_job_options(*names: str) -> Callable[[_F], _F]:
    """Give the decorated command the options of `Job` with these names, or all, as its `**options`.

    Typer reads a command's parameters from its signature, which gets these in the place of `**options`.
    """

    def give(command: _F) -> _F:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = [_parameter(name) for name in names or option_fields()]
        parameters = sorted((*taken, *own), key=lambda each: each.kind)
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
        return command

    return give


@cache
def _parameter(name: str) -> inspect.Parameter:
    each = option_fields()[name]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if each.name == "sources" else inspect.Parameter.KEYWORD_ONLY
    # numbers stay text: `Job` checks them, and says the same about those of a file
    value_type: Any = list[str] if each.is_list else str if each.value_type in {int, float} else each.value_type
    annotation = Annotated[value_type | None, job_option(each.name)]
    return inspect.Parameter(each.name, kind, default=None, annotation=annotation)


def flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that are given on the command line; values by the names of `Job`'s fields."""
    return {name: value for name, value in options.items() if value is not None and value != []}
