"""A job: what to score, with what model, to where. From a TOML file, the environment and flags; flags win."""

from __future__ import annotations

import datetime as dt
import hashlib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from batchcl.arns import ModelArn, valid_role
from batchcl.aws.models import Units
from batchcl.aws.names import valid_model
from batchcl.choices import Encryption, ServerSideEncryption, SourceKind, Transport
from batchcl.errors import UsageError
from batchcl.lifetime.lease_tags import lease_seconds
from batchcl.quantities import MAX_INT32, Tolerance, moment_of, seconds_of
from batchcl.runs.layout import expand_home, output_root, valid_run_id
from batchcl.runs.schema import SCHEMA_VERSION
from batchcl.sources.filters import Filters, Sample
from batchcl.sources.inventory import parse_as_of
from batchcl.sources.open import ListOptions
from batchcl.sources.tables import Columns
from batchcl.sources.where import Condition

__all__ = ["Job", "fingerprint", "job_of", "load_job"]

SHARD_SIZE: Final = 10_000
_LEAST_GRACE_S: Final = 2.0
_LIST_KEYS: Final = (
    "uri_column",
    "bucket_column",
    "key_column",
    "uri_field",
    "attribute",
    "all_versions",
    "as_of",
    "any_name",
)
_FILTER_KEYS: Final = ("newer_than", "older_than", "min_size", "max_size", "where", "sample")
_MOST: Final = 2**63 - 1
"""The largest whole number that a run's record can hold."""


class Job(BaseModel):
    """One scoring job; every field is a key of the job file and a flag of `batchcl run`.

    Attributes:
        sources: `s3://bucket/prefix`, directories, list files or `-`; scored in this order.
        from_results: instead of `sources`: an output root, whose images are scored again, those that fit `where`.
        model: `project@version`, `project` (its newest trained version) or the ARN of the trained model. May be left
            out with `emulator`, which then trains a demo model.
        out: output root, a directory or `s3://bucket/prefix`.
        run_id: names the run; made from the time when left out.
        min_confidence: 0 to 100; left out, each label's assumed threshold decides; 0 returns all.
        max_results: labels an image at most, highest confidence first.
        fit: shrink or convert images that the service would refuse; boxes stay ratios of the original.
        max_tps: hard ceiling of calls a second.
        max_in_flight: calls at once at most, a guard for memory.
        transport: how calls travel: `wire`, or `aioboto3` for set-ups that only the SDK understands.
        include: globs; an image must fit one of them, if any is given.
        exclude: globs; an image that fits one of them is left out.
        newer_than: images that were modified so long ago at most, such as `24h`, or since a day or time in UTC.
        older_than: images that were modified before.
        min_size: images of so many bytes or more, such as `10KB` (10,000) or `4MiB` (4 x 1024 x 1024).
        max_size: images of so many bytes or fewer.
        where: images that fit this SQL condition on the columns of their list, such as `size > 10000`.
        sample: of those, so many, or such a share, such as `2%`: always the same ones.
        sample_seed: another one gives another sample.
        limit: score the first so many images only.
        source_kind: what the sources are, where their content doesn't tell.
        uri_column: of tables: the column with `s3://bucket/key`.
        bucket_column: of tables: the column with the bucket, beside `key_column`.
        key_column: of tables: the column with the key.
        uri_field: of JSON Lines: the field with `s3://bucket/key`.
        attribute: of manifests: the label attribute that counts, where a line has several of a kind.
        all_versions: of S3 Inventories: score versions too that aren't the latest.
        as_of: of S3 Inventories: the newest one of this day, such as 2026-11-20, or earlier.
        any_name: of prefixes, directories, archives and inventories: take images whose names don't end in .jpg or .png.
        skip_bad_lines: leave lines out that name no image, instead of refusing the list.
        max_failures: a count or a share; more failures than this end the run with exit code 3. Left out, any failure
            does, but only when everything is done.
        deadline: `6h`, `90m` or `45s`: the run ends when so much time has passed.
        max_cost: dollars: the run ends when its model has cost so much.
        incremental: leave out image versions that have a result of this model already, or a permanent failure, from
            whichever run.
        retry_failed: with `incremental`, try versions again that have a permanent failure.
        allow_overlap: start even if another incremental run or a retry may be scoring the same images.
        sse: server-side encryption of what is written to `out` in S3: `AES256`, `aws:kms` or `aws:kms:dsse`; left out,
            the bucket's own.
        sse_kms_key_id: with `aws:kms` or `aws:kms:dsse`: the KMS key, by its ARN, id or alias.
        single_writer: nobody else writes to `out`: needed where the store has no conditional writes.
        shard_size: images a published part.
        start_model: `MIN[:MAX]` inference units: start the model if it isn't running, and stop what was started.
        keep_model: leave the model running that this run started.
        grace: from a signal to the end of the process, at most; a second ^C at a terminal ends it sooner.
        lease: `15m`: `batchcl model reap` stops the model that this run started so long after the run's last sign of
            life; `none` starts it without.
        dead_man_role: ARN of an IAM role with which EventBridge Scheduler stops the model after the deadline.
        cross_region: fetch images of buckets in other regions than the model's and send them as bytes.
        emulator: score with the local emulator instead of AWS.
        emulator_state: directory of the emulator's projects and models.
        profile: of the AWS configuration.
        region: of AWS; the one of the model's ARN, where `model` is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False)

    sources: tuple[str, ...] = ()
    from_results: Annotated[str, Field(min_length=1)] | None = None
    model: str | None = None
    out: Annotated[str, Field(min_length=1)]
    run_id: str | None = None
    min_confidence: Annotated[float, Field(ge=0, le=100)] | None = None
    max_results: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = None
    fit: bool = False
    max_tps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 256
    transport: Transport = Transport.WIRE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    newer_than: str | None = None
    older_than: str | None = None
    min_size: Annotated[ByteSize, Field(ge=0, le=_MOST)] | None = None
    max_size: Annotated[ByteSize, Field(ge=0, le=_MOST)] | None = None
    where: str | None = None
    sample: str | None = None
    sample_seed: Annotated[int, Field(ge=-_MOST, le=_MOST)] = 0
    limit: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    source_kind: SourceKind | None = None
    uri_column: str | None = None
    bucket_column: str | None = None
    key_column: str | None = None
    uri_field: str | None = None
    attribute: str | None = None
    all_versions: bool = False
    as_of: str | None = None
    any_name: bool = False
    skip_bad_lines: bool = False
    max_failures: str | None = None
    deadline: str | None = None
    grace: str = "25s"
    max_cost: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    incremental: bool = False
    retry_failed: bool = False
    allow_overlap: bool = False
    sse: ServerSideEncryption | None = None
    sse_kms_key_id: Annotated[str, Field(min_length=1)] | None = None
    single_writer: bool = False
    shard_size: Annotated[int, Field(ge=1, le=1_000_000)] = SHARD_SIZE
    start_model: str | None = None
    keep_model: bool = False
    lease: str = "15m"
    dead_man_role: str | None = None
    cross_region: bool = False
    emulator: bool = False
    emulator_state: str | None = None
    profile: str | None = None
    region: str | None = None

    @field_validator("max_failures", mode="before")
    @classmethod
    def _tolerance(cls, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str | int):
            raise ValueError("write a count such as 20 or a share such as 0.5%")  # noqa: TRY004 - pydantic's way
        Tolerance.parse(value)
        return str(value)

    @field_validator("newer_than", "older_than", "sample", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """TOML has days, times and numbers of its own."""
        if isinstance(value, dt.date):
            return value.isoformat()
        return str(value) if isinstance(value, int) else value

    @field_validator("sources")
    @classmethod
    def _with_home(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(expand_home(source) for source in value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @field_validator("out", "from_results")
    @classmethod
    def _clearly_a_root(cls, value: str | None) -> str | None:
        try:
            if value is None or not output_root(value):
                return value
            return value if value.startswith("s3://") else expand_home(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @field_validator(
        *("model", "start_model", "run_id", "deadline", "grace", "lease", "dead_man_role"),
        *("as_of", "newer_than", "older_than", "where", "sample"),
    )
    @classmethod
    def _readable(cls, value: str | None, info: Any) -> str | None:
        checks = {
            "model": valid_model,
            "start_model": Units.parse,
            "run_id": valid_run_id,
            "deadline": seconds_of,
            "grace": grace_seconds,
            "as_of": parse_as_of,
            "newer_than": _moment_before_now,
            "older_than": _moment_before_now,
            "where": Condition,
            "sample": Sample.parse,
            "lease": lease_seconds,
            "dead_man_role": valid_role,
        }
        if value is not None:
            try:
                checks[info.field_name](value)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _complete(self) -> Job:
        if not self.sources and self.from_results is None:
            raise ValueError("sources is missing: give SOURCE, or --from-results ROOT, or the key in the job file")
        if self.sources and self.from_results is not None:
            raise ValueError("SOURCE and --from-results exclude each other: a run reads lists or earlier results")
        if (self.bucket_column is None) != (self.key_column is None):
            raise ValueError("--bucket-column and --key-column go together")
        if self.uri_column is not None and self.bucket_column is not None:
            raise ValueError("--uri-column and --bucket-column with --key-column exclude each other")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(f"--min-size {self.min_size} is more than --max-size {self.max_size}: no image is both")
        if self.include and "*" in self.exclude:
            raise ValueError(
                "--exclude '*' leaves every image out, whatever --include says; --include alone takes what fits it only"
            )
        if self.sse is not None and not self.out.startswith("s3://"):
            raise ValueError(f"--sse {self.sse} is for an output root in S3, but --out is the directory {self.out}")
        try:
            _ = self.encryption
        except UsageError as error:
            raise ValueError(str(error)) from error
        if self.model is None and not self.emulator:
            raise ValueError(
                "name the model with --model PROJECT@VERSION (`batchcl model list` shows yours), or use --emulator"
            )
        if self.dead_man_role is not None and (self.start_model is None or self.deadline is None):
            raise ValueError(
                "--dead-man-role stops a model that the run started once its deadline has passed: "
                "give --start-model and --deadline too"
            )
        return self

    @property
    def tolerance(self) -> Tolerance:
        """`max_failures`, read."""
        return Tolerance.parse(self.max_failures or "0")

    @property
    def encryption(self) -> Encryption:
        """`sse` and `sse_kms_key_id`."""
        return Encryption(self.sse, self.sse_kms_key_id)

    @property
    def deadline_s(self) -> float | None:
        """`deadline` in seconds."""
        return None if self.deadline is None else seconds_of(self.deadline)

    @property
    def grace_s(self) -> float:
        """`grace` in seconds."""
        return grace_seconds(self.grace)

    @property
    def lease_s(self) -> float | None:
        """`lease` in seconds; None where the model has none."""
        return lease_seconds(self.lease)

    @property
    def units(self) -> Units | None:
        """`start_model`, read."""
        return None if self.start_model is None else Units.parse(self.start_model)

    @property
    def lists(self) -> ListOptions:
        """How list files are read."""
        return ListOptions(
            kind=self.source_kind,
            columns=Columns(uri=self.uri_column, bucket=self.bucket_column, key=self.key_column),
            uri_field=self.uri_field,
            attribute=self.attribute,
            all_versions=self.all_versions,
            as_of=self.as_of,
            any_name=self.any_name,
            skip_bad_lines=self.skip_bad_lines,
        )

    def filters(self, at: dt.datetime) -> Filters:
        """Which images of the sources are taken, by a run that begins, or began, `at`. Raises `UsageError`."""
        newer_than, older_than = (
            None if text is None else moment_of(text, now=at) for text in (self.newer_than, self.older_than)
        )
        if newer_than is not None and older_than is not None and newer_than >= older_than:
            raise UsageError(
                f"--newer-than {self.newer_than} is not before --older-than {self.older_than}: no image is both"
            )
        return Filters(
            include=self.include,
            exclude=self.exclude,
            newer_than=newer_than,
            older_than=older_than,
            min_size_bytes=self.min_size,
            max_size_bytes=self.max_size,
            sample=None if self.sample is None else Sample.parse(self.sample, seed=self.sample_seed),
            limit=self.limit,
        )

    def scored_as(self, model: ModelArn) -> dict[str, Any]:
        """What decides about the rows of a run: the same under the same run id, or the run is another one."""
        return {
            "sources": list(self.sources),
            **({} if self.from_results is None else {"from_results": self.from_results}),
            "source_kind": self.source_kind,
            **{name: value for name in _LIST_KEYS if (value := getattr(self, name))},
            "include": list(self.include),
            "exclude": list(self.exclude),
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


def grace_seconds(text: str) -> float:
    """The seconds of `grace`. Raises `UsageError`."""
    seconds = seconds_of(text)
    if seconds < _LEAST_GRACE_S:
        raise UsageError(f"{text!r} is too short; give at least {_LEAST_GRACE_S:.0f}s")
    return seconds


def fingerprint(scored_as: Mapping[str, Any]) -> str:
    """A short digest of `Job.scored_as`."""
    return hashlib.sha256(orjson.dumps(scored_as, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _moment_before_now(text: str) -> dt.datetime:
    return moment_of(text, now=dt.datetime.now(dt.UTC))


def _environment() -> dict[str, Any]:
    """The fields of `Job` that `BATCHCL_<FIELD>` sets; lists are written as JSON."""
    absent: dict[str, Any] = {name: (field.annotation | None, None) for name, field in Job.model_fields.items()}  # type: ignore[operator]
    reader = create_model("Environment", __base__=_Prefixed, **absent)
    return {name: value for name, value in dict(reader()).items() if value is not None}


class _Prefixed(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BATCHCL_", extra="ignore")


def load_job(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Job:
    """The job of a TOML file, the environment (`BATCHCL_MODEL` and so on) and flags; each wins over those before.

    Paths in the file are relative to the working directory, as on the command line. `defaults` are for keys that none
    of them has.

    Raises:
        UsageError: the file is missing or no TOML, a key is unknown, or a value doesn't fit, named with its place.
    """
    values: dict[str, Any] = {} if config is None else _read(config)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    variables: Collection[str] = Job.model_fields
    try:
        values |= (environment := _environment())
        variables = environment.keys() - given.keys()
        return Job.model_validate(_filled(values | given, defaults or {}))
    except ValidationError as error:
        raise UsageError(_sentence(error, config, variables=variables)) from error
    except SettingsError as error:
        raise UsageError(f'reading the environment: {error}; lists are JSON, such as ["s3://bucket/"]') from error


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `defaults` for what is missing; `from_results` stands for sources."""
    taken = {*values, "sources"} if "from_results" in values else {*values}
    return {**values, **{name: value for name, value in defaults.items() if name not in taken}}


def job_of(scored_as: Mapping[str, Any], settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Job:
    """The job that a run's record describes, with `changes`. Raises `UsageError`."""
    values = {name: value for name, value in {**settings, **scored_as, **changes}.items() if name in Job.model_fields}
    try:
        return Job.model_validate(values)
    except ValidationError as error:
        raise UsageError(_sentence(error, None)) from error


def _read(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no job file {config}; check --config") from error
    except OSError as error:
        raise UsageError(f"can't read the job file {config}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the job file {config} is no valid TOML: {error}") from error


def _sentence(error: ValidationError, config: Path | None, *, variables: Collection[str] = ()) -> str:
    """Pydantic's findings as one sentence that names flag or key, or variable for those that the environment set."""
    parts = []
    for finding in error.errors():
        field = str(finding["loc"][0]) if finding["loc"] else ""
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "tuple_type":
            message = 'Write a list, such as ["s3://bucket/"]; in the environment it is JSON'
        if finding["type"] == "extra_forbidden":
            parts.append(f"the key {field!r} is unknown; known are {', '.join(Job.model_fields)}")
        elif finding["type"] == "missing":
            parts.append(f"{field} is missing: give --{field.replace('_', '-')} or the key in the job file")
        elif field:
            flag = f"--{field.replace('_', '-')}"
            name = f"BATCHCL_{field.upper()}" if field in variables else flag
            if finding["type"].startswith("byte_size"):
                message = "it is no size; write bytes, or a number with a unit such as 10KB or 4MiB"
            if message.startswith(f"{flag} {finding['input']!r}: "):
                message = message.removeprefix(f"{flag} {finding['input']!r}: ")
            else:
                message = message[0].lower() + message[1:]
            parts.append(f"{name} {finding['input']!r}: {message}")
        else:
            parts.append(message)
    where = f" (job file {config})" if config is not None else ""
    return "; ".join(parts) + where
