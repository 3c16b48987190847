"""The options of monitoring, their validation, and the redaction of secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import TypeAdapter, ValidationError

from batchcl.errors import UsageError
from batchcl.options import JobOptions, flag_of, variable_of

__all__ = [
    "CHECKS",
    "OPTIONS",
    "Targets",
    "check_metrics_file",
    "check_topic",
    "check_url",
    "environment",
    "redact",
    "site",
    "topic_region",
]

_TOPIC: Final = re.compile(r"arn:aws[a-z-]*:sns:(?P<region>[a-z\d-]+):\d{12}:[A-Za-z\d_-]{1,256}")
_URL: Final = re.compile(r"""([A-Za-z][A-Za-z\d+.-]*://)(?:[^\s/?#@'"]*@)?([^\s?#'"]*)(?:[?#][^\s;,)'"]*)?""")
_PARAMETER: Final = re.compile(
    r"(?i)\b(x-amz-[a-z-]+|awsaccesskeyid|signature|[\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key))=[^\s&;,)'\"]+"
)


def check_url(text: str) -> str:
    """Return `text`; raises `UsageError`, without the URL, if it is not an HTTP URL."""
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or re.search(r"[\s\x00-\x1f\x7f]", text) or not text.isascii():
        raise UsageError("expected a URL such as https://host/path")
    return text


def check_topic(text: str) -> str:
    """Return `text`; raises `UsageError` if it is not the ARN of a standard SNS topic."""
    if _TOPIC.fullmatch(text) is None:
        raise UsageError(
            f"{text!r} is not the ARN of a standard SNS topic, such as arn:aws:sns:us-east-1:123456789012:NAME"
        )
    return text


def _check_flag(value: object) -> bool:
    """Return the value of a flag, which variables have as text; as `Job` reads it."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise UsageError(f"{value!r} is neither true nor false") from None


def topic_region(topic: str) -> str:
    """The region of an SNS topic."""
    return topic.split(":")[3]


def check_metrics_file(path: str | os.PathLike[str]) -> str:
    """Return the path with `~` expanded; raises `UsageError` if it is not valid for a metrics file."""
    text = os.fspath(os.path.expanduser(path))
    if not os.path.basename(text).removesuffix(".prom") or not text.endswith(".prom"):
        raise UsageError(f"{text!r} does not end with NAME.prom, and node_exporter reads no other files")
    folder = os.path.dirname(text) or "."
    if not os.path.isdir(folder):
        raise UsageError(
            f"{text!r}: there is no directory {folder}; create it, or use that of node_exporter's textfile collector"
        )
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The back ends that are on; all are off by default. The repr hides URLs.

    Attributes:
        metrics_file: file for node_exporter's textfile collector, `NAME.prom`.
        otel: send metrics and traces by OTLP, configured by the `OTEL_…` variables.
        ping: URL of a check that follows Healthchecks' protocol.
        webhook: URL that receives JSON documents.
        sns_topic: ARN of the SNS topic that receives the same documents.
    """

    metrics_file: str | None = None
    otel: bool = False
    ping: str | None = field(default=None, repr=False)
    webhook: str | None = field(default=None, repr=False)
    sns_topic: str | None = None

    @classmethod
    def of(cls, job: JobOptions) -> Targets:
        """The back ends of a job."""
        return cls(**{each.name: getattr(job, each.name) for each in fields(cls)})

    @classmethod
    def read(cls, values: Mapping[str, Any], *, name_of: Callable[[str], str] = flag_of) -> Targets:
        """The back ends in `values`, by name of the option.

        Args:
            values: may have text for every option, as `environment` returns it.
            name_of: returns what an option is called in messages.

        Raises:
            UsageError: a value is not valid.
        """
        given = {each.name: values[each.name] for each in fields(cls) if values.get(each.name) is not None}
        for name, check in CHECKS.items():
            if name in given:
                if not isinstance(given[name], str | os.PathLike | bool):
                    raise UsageError(f"{name_of(name)}: expected text")
                try:
                    given[name] = check(given[name])
                except UsageError as error:
                    raise UsageError(f"{name_of(name)}: {error}") from None
        return cls(**given)

    def __bool__(self) -> bool:
        return self != Targets()


OPTIONS: Final = tuple(each.name for each in fields(Targets))
"""The options of monitoring. They are not recorded with a run."""

CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "metrics_file": check_metrics_file,
    "otel": _check_flag,
    "ping": check_url,
    "webhook": check_url,
    "sns_topic": check_topic,
}
"""Functions that validate an option: they return its value, or raise `UsageError`."""


def environment(*, without: Collection[str] = (), variable: Callable[[str], str] = variable_of) -> dict[str, str]:
    """The options of monitoring that `BATCHCL_…` variables set, for commands that read no others.

    Args:
        without: options that are set elsewhere.
        variable: returns the variable of an option.

    Raises:
        UsageError: a value is not valid; names the variable.
    """
    names = [name for name in OPTIONS if name not in without and variable(name) in os.environ]
    found = {name: os.environ[variable(name)] for name in names}
    Targets.read(found, name_of=variable)
    return found


def site(url: str) -> str:
    """What may be shown of a URL: scheme, host and port."""
    parts = urlsplit(url)
    return _without_user(parts)._replace(path="", query="", fragment="").geturl()


def _without_user(parts: SplitResult) -> SplitResult:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])


def redact(text: str) -> str:
    """Return `text` without the credentials, queries and fragments of URLs, such as presigned ones."""
    return _PARAMETER.sub(r"\1=...", _URL.sub(r"\1\2", text))
