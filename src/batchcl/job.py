"""A scoring job: its options, validated, from Python, or from a TOML file, the environment and flags."""

from __future__ import annotations

import datetime as dt
import hashlib
import inspect
import os
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from batchcl.arns import ModelArn, validate_role_arn
from batchcl.aws.names import validate_model_name
from batchcl.choices import Encryption, ServerSideEncryption
from batchcl.errors import ErrorCode, SourceError, UsageError
from batchcl.lifetime.lease_tags import lease_seconds
from batchcl.monitoring.targets import CHECKS as MONITORING
from batchcl.options import MAX_INT64, JobOptions, flag_of, option_fields, variable_of
from batchcl.quantities import (
    AutoUnits,
    Tolerance,
    Units,
    deadline_s,
    duration_text,
    parse_datetime,
    parse_duration,
    parse_units,
)
from batchcl.runs.layout import expand_home, output_root, valid_run_id
from batchcl.runs.schema import SCHEMA_VERSION
from batchcl.sources.base import Columns
from batchcl.sources.filters import Filters, Sample
from batchcl.sources.open import ListOptions

__all__ = ["NO_MODEL", "Job", "fingerprint", "job_of", "load_job"]

NO_MODEL: Final = "arn:aws:rekognition:us-east-1:000000000000:project/none/version/none/0"
"""Placeholder for a model that is not known yet; its region has no meaning."""

_MIN_GRACE_S: Final = 2.0
_MISSED_NIGHT: Final = dt.timedelta(hours=12)
"""A run that a scheduler repeats after its deadline should not go on until the next day; the next night it should."""
_LIST_KEYS: Final = (
    "uri_column",
    "bucket_column",
    "key_column",
    "uri_field",
    "attribute",
    "all_versions",
    "as_of",
    "any_extension",
)
_FILTER_KEYS: Final = ("newer_than", "older_than", "min_size", "max_size", "where", "sample")
_FIELDS: Final = option_fields()
_HIDDEN: Final = "..."
"""Shown instead of the value of a secret option."""


def grace_seconds(text: str) -> float:
    """The seconds of `grace`. Raises `UsageError`."""
    seconds = parse_duration(text)
    if seconds < _MIN_GRACE_S:
        raise UsageError(f"{text!r} is too short; use at least {_MIN_GRACE_S:.0f}s")
    return seconds


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")  # noqa: TRY004 - pydantic collects ValueErrors only
    return _valid(value)


def _valid(text: str) -> str:
    """`text`; raises ValueError if it is not UTF-8, as some file names, and so can't be recorded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid UTF-8; use another name") from None
    return text


def _text_that(check: Callable[[str], object]) -> Callable[[object], str]:
    """A reader of text that `check` accepts."""

    def read(value: object) -> str:
        check(_text(value))
        return _text(value)

    return read


def _path(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise ValueError("expected a path or an s3:// URI")
    return _valid(text)


def _sources(value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(values, list | tuple):
        raise ValueError(  # noqa: TRY004 - as above
            'expected a path or URI, or a list of them, such as ["s3://bucket/"]'
        )
    return tuple(expand_home(_path(each)) for each in values)


def _globs(value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise ValueError('expected a glob or a list of globs, such as ["*.jpg"]')  # noqa: TRY004 - as above
    return tuple(_text(each) for each in values)


def _root(value: object) -> str:
    path = _path(value)
    output_root(path)
    return path if path.startswith("s3://") else expand_home(path)


def _local_file(value: object) -> str:
    if value == "" or not isinstance(value, str | os.PathLike) or str(value).startswith("s3://"):
        raise ValueError("expected a local file")
    return expand_home(_path(value))


def _duration_that(check: Callable[[str], object]) -> Callable[[object], str]:
    """A reader of a timedelta, or of a duration as text, that `check` accepts."""

    def read(value: object) -> str:
        text = duration_text(value) if isinstance(value, dt.timedelta) else _text(value)
        check(text)
        return text

    return read


def _deadline(value: object) -> str:
    if isinstance(value, dt.time):
        if value.tzinfo not in {None, dt.UTC}:
            raise ValueError("expected a time of day in UTC")
        return value.strftime("%H:%M:%S")
    text = duration_text(value) if isinstance(value, dt.timedelta) else _text(value)
    deadline_s(text, now=dt.datetime.now(dt.UTC))
    return text


def _moment(value: object) -> str:
    if isinstance(value, dt.timedelta):
        text = duration_text(value)
    else:
        text = value.isoformat() if isinstance(value, dt.date) else str(value) if _is_int(value) else _text(value)
    parse_datetime(text, now=dt.datetime.now(dt.UTC))
    return text


def _day(value: object) -> str:
    from batchcl.sources.inventory import parse_as_of

    text = value.isoformat() if isinstance(value, dt.date) else _text(value)
    try:
        parse_as_of(text)
    except SourceError as error:
        raise UsageError(str(error)) from error
    return text


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(value: object) -> int:
    try:
        size = int(TypeAdapter(ByteSize).validate_python(value)) if _is_int(value) or isinstance(value, str) else -1
    except ValidationError:
        size = -1
    if not 0 <= size <= MAX_INT64:
        raise ValueError(
            f"expected a size of at most {MAX_INT64} bytes; write bytes, or a number with a unit such as 10KB or 4MiB"
        )
    return size


def _condition(value: object) -> str:
    from batchcl.sources.where import Condition

    return Condition(_text(value)).text


def _sample(value: object) -> str:
    text = str(value) if _is_int(value) else _text(value)
    Sample.parse(text)
    return text


def _tolerance(value: object) -> str:
    if not _is_int(value) and not isinstance(value, str):
        raise ValueError("expected a count such as 20 or a share such as 0.5%")
    Tolerance.parse(str(value))
    return str(value)


def _units(value: object) -> str:
    text = str(value) if _is_int(value) or isinstance(value, Units | AutoUnits) else _text(value)
    parse_units(text)
    return text


_READERS: Final[Mapping[str, Callable[[Any], object]]] = {
    "sources": _sources,
    "from_results": _root,
    "out": _root,
    "model": _text_that(validate_model_name),
    "run_id": _text_that(valid_run_id),
    "as_of": _day,
    "include": _globs,
    "exclude": _globs,
    "newer_than": _moment,
    "older_than": _moment,
    "min_size": _size,
    "max_size": _size,
    "where": _condition,
    "sample": _sample,
    "max_failures": _tolerance,
    "report": _local_file,
    "deadline": _deadline,
    "max_wait": _duration_that(parse_duration),
    "grace": _duration_that(grace_seconds),
    "lease": _duration_that(lease_seconds),
    "start_model": _units,
    "scheduled_stop_role": _text_that(validate_role_arn),
    "metrics_file": lambda value: MONITORING["metrics_file"](_local_file(value)),
    **{name: _text_that(MONITORING[name]) for name in ("ping", "webhook", "sns_topic")},
}
"""Options that accept several types: what reads them into the one that the job keeps and the run's record stores."""


class _InvalidJobError(ValueError):
    """A rule about several options; `{max_tps}` in `text` becomes the flag, key or field that the user wrote."""

    def __init__(self, text: str, *, code: ErrorCode = ErrorCode.CONFLICTING_OPTIONS) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class Job(BaseModel, JobOptions, frozen=True):
    """One scoring job. Every field is also a key of a job file and a flag of `batchcl run`.

    Fields accept what is natural in Python, and keep it as text: `sources` one or several paths or URIs; `deadline`,
    `max_wait`, `grace` and `lease` a `timedelta`, `deadline` also a `time` in UTC; `newer_than` and `older_than` a
    `datetime`, `date` or `timedelta`; `start_model` a number, `Units` or `"auto"`. Raises `UsageError` for a value or
    combination that is not valid.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator(*_READERS, mode="plain")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        if value is None:
            if info.field_name == "lease":
                return "none"
            if _FIELDS[info.field_name].default is None and not _FIELDS[info.field_name].is_required:
                return None
        try:
            return _READERS[info.field_name](value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @field_validator(*(name for name, each in _FIELDS.items() if each.value_type in {int, float}))
    @classmethod
    def _check_bounds(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.field_name is not None:
            _FIELDS[info.field_name].option.check(value)
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Job:
        if not self.sources and self.from_results is None:
            raise _InvalidJobError(
                "{sources} is missing: name the images to score, or use {from_results}",
                code=ErrorCode.INVALID_ARGUMENT,
            )
        if self.sources and self.from_results is not None:
            raise _InvalidJobError("{sources} and {from_results} exclude each other; use one of them")
        if (self.bucket_column is None) != (self.key_column is None):
            raise _InvalidJobError("{bucket_column} and {key_column} need each other; use both")
        if self.uri_column is not None and self.bucket_column is not None:
            raise _InvalidJobError("{uri_column} excludes {bucket_column} and {key_column}; use one of them")
        if self.min_size is not None and self.max_size is not None and int(self.min_size) > int(self.max_size):
            raise _InvalidJobError(
                f"{{min_size}} {self.min_size} is more than {{max_size}} {self.max_size}: no image matches both"
            )
        if self.include and "*" in self.exclude:
            raise _InvalidJobError(
                "{exclude} '*' excludes every image, whatever {include} says; {include} alone selects what it matches"
            )
        if self.sse is not None and not self.root.startswith("s3://"):
            raise _InvalidJobError(f"{{sse}} {self.sse} needs an output root in S3, but {{out}} is a directory")
        if self.sse_kms_key_id is not None and self.sse in {None, ServerSideEncryption.S3}:
            raise _InvalidJobError("{sse_kms_key_id} needs {sse} aws:kms or {sse} aws:kms:dsse")
        if self.model is None:
            raise _InvalidJobError(
                "{model} is missing: name a trained model, such as PROJECT@VERSION (`batchcl model list` shows yours); "
                "with --emulator, the command line needs none",
                code=ErrorCode.INVALID_ARGUMENT,
            )
        self._check_min_images()
        if self.scheduled_stop_role is not None and (self.start_model is None or self.deadline is None):
            raise _InvalidJobError(
                "{scheduled_stop_role} stops a model that the run started, after its deadline: "
                "use {start_model} and {deadline}, too"
            )
        return self

    def _check_min_images(self) -> None:
        if (self.min_images is None) != (self.max_wait is None):
            raise _InvalidJobError("{min_images} and {max_wait} need each other; use both")
        if self.max_wait_s is None:
            return
        if not self.incremental:
            raise _InvalidJobError(
                "{min_images} needs {incremental}, by which a later run finds the images of a postponed one"
            )
        with suppress(UsageError):  # not a duration, but a fixed time
            if parse_duration(str(self.newer_than)) <= self.max_wait_s:
                raise _InvalidJobError(
                    f"{{newer_than}} {self.newer_than} is not longer than {{max_wait}} {self.max_wait}: images of a "
                    "postponed run would become too old; use a longer {newer_than}"
                )

    @model_validator(mode="wrap")
    @classmethod
    def _name_what_is_wrong(cls, values: Any, handler: ModelWrapValidatorHandler[Job], info: ValidationInfo) -> Job:
        try:
            return handler(values)
        except ValidationError as error:
            raise UsageError(_sentence(error, info.context or _Origins()), code=_code_of(error)) from None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The fields for the repr, without the values of secret ones."""
        for name, value in super().__repr_args__():
            yield name, _HIDDEN if value is not None and name in _FIELDS and _FIELDS[name].option.is_secret else value

    @property
    def source_names(self) -> tuple[str, ...]:
        """`sources` as text."""
        return _sources(self.sources)

    @property
    def results_root(self) -> str | None:
        """`from_results` as text."""
        return None if self.from_results is None else _path(self.from_results)

    @property
    def root(self) -> str:
        """`out` as text."""
        return _path(self.out)

    @property
    def tolerance(self) -> Tolerance:
        """`max_failures`, parsed."""
        return Tolerance.parse(self.max_failures or "0")

    @property
    def encryption(self) -> Encryption:
        """`sse` and `sse_kms_key_id`."""
        return Encryption(self.sse, self.sse_kms_key_id)

    def deadline_s(self, now: dt.datetime) -> float | None:
        """Seconds from `now` to `deadline`."""
        return None if self.deadline is None else deadline_s(str(self.deadline), now=now)

    @property
    def max_wait_s(self) -> float | None:
        """`max_wait` in seconds."""
        return None if self.max_wait is None else parse_duration(str(self.max_wait))

    @property
    def ends_at_time_of_day(self) -> bool:
        """Whether `deadline` is a time of day, not a duration."""
        return ":" in str(self.deadline or "")

    def has_passed_deadline(self, *, since: dt.datetime, now: dt.datetime) -> bool:
        """Whether `deadline` is a time of day that a run of `since` has passed, less than twelve hours ago."""
        if not self.ends_at_time_of_day:
            return False
        passed = now + dt.timedelta(seconds=deadline_s(str(self.deadline), now=now), days=-1)
        return passed > max(since, now - _MISSED_NIGHT)

    @property
    def grace_s(self) -> float:
        """`grace` in seconds."""
        return grace_seconds(str(self.grace))

    @property
    def lease_s(self) -> float | None:
        """`lease` in seconds; None for a model without a lease."""
        return lease_seconds(str(self.lease))

    @property
    def units(self) -> Units | AutoUnits | None:
        """`start_model`, parsed."""
        return None if self.start_model is None else parse_units(str(self.start_model))

    @property
    def lists(self) -> ListOptions:
        """How lists are read."""
        return ListOptions(
            kind=self.source_kind,
            columns=Columns(uri=self.uri_column, bucket=self.bucket_column, key=self.key_column),
            uri_field=self.uri_field,
            attribute=self.attribute,
            all_versions=self.all_versions,
            as_of=None if self.as_of is None else str(self.as_of),
            any_extension=self.any_extension,
            skip_bad_lines=self.skip_bad_lines,
        )

    def filters(self, at: dt.datetime) -> Filters:
        """Which images are scored by a run that started, or starts, `at`. Raises `UsageError`."""
        newer_than, older_than = (
            None if text is None else parse_datetime(str(text), now=at) for text in (self.newer_than, self.older_than)
        )
        if newer_than is not None and older_than is not None and newer_than >= older_than:
            raise UsageError(
                f"newer_than {self.newer_than} is not before older_than {self.older_than}: no image matches both"
            )
        return Filters(
            include=_globs(self.include),
            exclude=_globs(self.exclude),
            newer_than=newer_than,
            older_than=older_than,
            min_size_bytes=None if self.min_size is None else int(self.min_size),
            max_size_bytes=None if self.max_size is None else int(self.max_size),
            sample=None if self.sample is None else Sample.parse(str(self.sample), seed=self.sample_seed),
            limit=self.limit,
        )

    def scored_as(self, model: ModelArn) -> dict[str, Any]:
        """What determines the rows of a run; a run id stands for one value of it."""
        return {
            "sources": list(self.source_names),
            **({} if self.from_results is None else {"from_results": self.results_root}),
            "source_kind": self.source_kind,
            **{name: value for name in _LIST_KEYS if (value := getattr(self, name))},
            "include": list(_globs(self.include)),
            "exclude": list(_globs(self.exclude)),
            **{name: value for name in _FILTER_KEYS if (value := getattr(self, name)) is not None},
            **({} if self.sample is None else {"sample_seed": self.sample_seed}),
            "limit": self.limit,
            "incremental": self.incremental,
            **({"retry_failed": True} if self.retry_failed else {}),
            **({"cross_region": True} if self.cross_region else {}),
            "model": model.text,
            "min_confidence": self.min_confidence,
            "max_results": self.max_results,
            **({"fit": True} if self.fit else {}),
            "schema": SCHEMA_VERSION,
        }


def _describe_job() -> None:
    """Let `help(Job)` and editors show each field in one line, without pydantic's and Typer's metadata."""
    lines = [f"    {name}: {each.description}" for name, each in _FIELDS.items()]
    Job.__doc__ = "\n".join([inspect.cleandoc(Job.__doc__ or ""), "", "Attributes:", *lines])
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.is_required else each.default,
            annotation=each.annotation,
        )
        for name, each in _FIELDS.items()
    ]
    Job.__signature__ = inspect.Signature(parameters)


_describe_job()


_EMULATOR_FLAGS: Final = frozenset({"emulator", "emulator_state"})


def fingerprint(scored_as: Mapping[str, Any]) -> str:
    """A short digest of `Job.scored_as`."""
    return hashlib.sha256(orjson.dumps(scored_as, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origins:
    """Where the values of a job come from, which decides how an error names them. By default Python.

    Attributes:
        config: the job file, if any.
        keys: options that it sets.
        variables: options that the environment sets.
        is_python: whether the other options are arguments of `Job`, rather than flags.
    """

    config: Path | None = None
    keys: Collection[str] = ()
    variables: Collection[str] = ()
    is_python: bool = True

    def name(self, field: str) -> str:
        """`Job.max_tps`, `--max-tps`, `BATCHCL_MAX_TPS` or `max_tps in nightly.toml`."""
        if field in self.variables:
            return variable_of(field)
        if field in self.keys:
            return field if self.config is None else f"{field} in {self.config}"
        return f"Job.{field}" if self.is_python else flag_of(field)

    def unknown(self, field: str) -> str:
        """What to say about a key, or argument, that is not an option."""
        similar = get_close_matches(field, _FIELDS, 1)
        if field in _EMULATOR_FLAGS and not self.is_python:
            return f"{self.name(field)} is not an option of a job; pass {flag_of(field)} on the command line"
        what = f"there is no {self.name(field)}" if self.is_python else f"the key {self.name(field)} is unknown"
        if similar:
            return f"{what}; did you mean {similar[0]}?"
        return f"{what}; {'help(batchcl.Job)' if self.is_python else '`batchcl run --help`'} lists the options"


def load_job(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Job:
    """The job of a TOML file, the environment (`BATCHCL_MODEL` and so on) and flags; later ones override earlier ones.

    Paths in the file are relative to the working directory, as on the command line.

    Args:
        config: the TOML file.
        flags: values by the names of `Job`'s fields; None means not given.
        defaults: values of options that are set nowhere.

    Raises:
        UsageError: the file is missing or not valid TOML, a key is unknown, or a value or combination is not valid.
    """
    keys = {} if config is None else _read_file(config)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    variables = _environment()
    values = {**keys, **variables, **given}
    if "from_results" in values:
        defaults = {name: value for name, value in (defaults or {}).items() if name != "sources"}
    origins = _Origins(
        config=config,
        keys=keys.keys() - variables.keys() - given.keys(),
        variables=variables.keys() - given.keys(),
        is_python=False,
    )
    return Job.model_validate({**(defaults or {}), **values}, context=origins)


def _environment() -> dict[str, Any]:
    """The options that `BATCHCL_<NAME>` sets; a list is one value, or a JSON list."""
    texts = {name: os.environ[variable_of(name)] for name in _FIELDS if variable_of(name) in os.environ}
    return {name: _json_list(name, text) if _FIELDS[name].is_list else text for name, text in texts.items()}


def _json_list(name: str, text: str) -> object:
    if not text.startswith("["):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(
            f"{variable_of(name)} {text!r}: not valid JSON: {error}; write one value, or a list such as "
            '["s3://bucket/"]'
        ) from error


def job_of(scored_as: Mapping[str, Any], settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Job:
    """The job in a run's record, with the flags `changes`. Raises `UsageError`."""
    values = {name: value for name, value in {**settings, **scored_as, **changes}.items() if name in _FIELDS}
    return Job.model_validate(values, context=_Origins(is_python=False))


def _read_file(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no job file {config}; check --config", code=ErrorCode.INVALID_JOB_FILE) from error
    except OSError as error:
        raise UsageError(
            f"reading the job file {config} failed: {error.strerror}", code=ErrorCode.INVALID_JOB_FILE
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the job file {config} is not valid TOML: {error}", code=ErrorCode.INVALID_JOB_FILE
        ) from error


_MESSAGES: Final = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "enum": "expected {expected}",
    "finite_number": "expected a finite number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "string_type": "expected text",
}
"""Pydantic's error types, in words; others keep pydantic's message."""


def _code_of(error: ValidationError) -> str | None:
    """The code of the first finding; None if pydantic has found it."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    ours = (
        each for each in (cause, getattr(cause, "__cause__", None)) if isinstance(each, _InvalidJobError | UsageError)
    )
    return next((each.code for each in ours), None)


def _sentence(error: ValidationError, origins: _Origins) -> str:
    """All findings in one sentence, which names options as the user wrote them."""
    names = {name: origins.name(name) for name in _FIELDS}
    parts = []
    for finding in error.errors():
        field, context = str(finding["loc"][0]) if finding["loc"] else "", finding.get("ctx", {})
        cause = context.get("error")
        if isinstance(cause, _InvalidJobError):
            parts.append(cause.text.format_map(names))
        elif finding["type"] == "extra_forbidden":
            parts.append(origins.unknown(field))
        elif finding["type"] == "missing":
            parts.append(f"{names[field]} is missing")
        else:
            message = str(cause) if cause else _MESSAGES.get(finding["type"], finding["msg"]).format_map(context)
            is_secret = field in _FIELDS and _FIELDS[field].option.is_secret
            value = _HIDDEN if is_secret else repr(finding["input"])
            message = message.removeprefix(f"{flag_of(field)} {value}: ")
            parts.append(f"{names[field]} {message if message.startswith(value) else f'{value}: {message}'}")
    return "; ".join(parts)
