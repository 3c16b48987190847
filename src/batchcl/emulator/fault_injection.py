"""Faults on demand: rules that say which calls fail, how, and how often.

Every rule draws from a random source of its own, once for each call that it is about, so the n-th such call has the
same fate whenever the seed is the same, whatever the other rules do.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchcl.emulator.errors import ApiError
from batchcl.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Faults", "Injection", "Injector", "Rule", "load_faults", "parse_faults"]

_ERRORS: Final[dict[str, tuple[str, str, int]]] = {
    "throttle": ("ProvisionedThroughputExceededException", "Provisioned Rate exceeded", 400),
    "throttle-s3": ("ProvisionedThroughputExceededException", "S3 download limit exceeded", 400),
    "slow-down": ("ThrottlingException", "Slow down; sudden increase in rate of requests", 400),
    "service-unavailable": ("ThrottlingException", "Service Unavailable", 500),
    "internal": ("InternalServerError", "Amazon Rekognition experienced a service issue.", 500),
    "expired-credentials": (
        "ExpiredTokenException",
        "The security token included in the request is expired",
        400,
    ),
}

Kind = Literal[
    "throttle",
    "throttle-s3",
    "slow-down",
    "service-unavailable",
    "internal",
    "expired-credentials",
    "error",
    "http-503",
    "latency",
    "reset",
    "truncated",
    "malformed",
    "clock-skew",
    "model-stops",
]


class Rule(BaseModel):
    """One fault.

    Attributes:
        kind: what goes wrong; see docs/emulator.md.
        operation: which calls the rule is about; `*` is all.
        share: of the calls that it is about, 0 to 1.
        skip: so many of them come first and are spared.
        times: it strikes at most so often; None for no end.
        after_s: seconds after the rules were given from which on it holds.
        until_s: seconds after which it doesn't any more; None for no end.
        milliseconds: of a `latency`.
        seconds: of a `clock-skew`: how far the service's clock is ahead.
        code: of an `error`.
        message: of an `error`.
        status: HTTP status of an `error`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    operation: str = "*"
    share: float = Field(1.0, ge=0, le=1)
    skip: int = Field(0, ge=0)
    times: int | None = Field(None, ge=0)
    after_s: float = Field(0.0, ge=0)
    until_s: float | None = Field(None, ge=0)
    milliseconds: float = Field(0.0, ge=0)
    seconds: float = 0.0
    code: str = "InternalServerError"
    message: str = "A fault on demand."
    status: int = Field(400, ge=400, le=599)

    def error(self) -> ApiError | None:
        """The error answer that the fault is, if it is one."""
        if self.kind == "error":
            return ApiError(self.code, self.message, status=self.status)
        if self.kind not in _ERRORS:
            return None
        code, message, status = _ERRORS[self.kind]
        return ApiError(code, message, status=status)


class Faults(BaseModel):
    """A faults file, or the body of a request to `/_emulator/faults`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    faults: list[Rule] = Field(default_factory=list)


@dataclass(slots=True)
class Injection:
    """What happens to one call.

    Attributes:
        skew_s: how far the service's clock is ahead for it.
        latency_s: it waits so long.
        error: it is answered with this.
        wire: what becomes of the connection or the answer on it.
        stops: the model that it is for stops.
    """

    skew_s: float = 0.0
    latency_s: float = 0.0
    error: ApiError | None = None
    wire: str | None = None
    stops: bool = False


@dataclass(slots=True)
class _Progress:
    rule: Rule
    random: random.Random
    met: int = 0
    struck: int = 0

    def strikes(self, operation: str, elapsed_s: float) -> bool:
        rule = self.rule
        if rule.operation not in {"*", operation}:
            return False
        if elapsed_s < rule.after_s or (rule.until_s is not None and elapsed_s >= rule.until_s):
            return False
        self.met += 1
        drawn = self.random.random()
        if self.met <= rule.skip or drawn >= rule.share or (rule.times is not None and self.struck >= rule.times):
            return False
        self.struck += 1
        return True


@dataclass(slots=True)
class Injector:
    """Decides call by call. Pure but for what it remembers; `now` is any clock that doesn't go back."""

    plan: Faults = field(default_factory=Faults)
    since: float = 0.0
    _progress: list[_Progress] = field(default_factory=list)

    def replace(self, plan: Faults, *, now: float) -> None:
        """Begin anew with other rules."""
        self.plan, self.since = plan, now
        self._progress = [_Progress(rule, random.Random(f"{plan.seed} {n}")) for n, rule in enumerate(plan.faults)]

    def draw(self, operation: str, *, now: float) -> Injection:
        """What the next call of `operation` meets; of several errors the first rule's."""
        met = Injection()
        for each in self._progress:
            if not each.strikes(operation, now - self.since):
                continue
            rule = each.rule
            met.error = met.error or rule.error()
            if rule.kind == "latency":
                met.latency_s += rule.milliseconds / 1000
            elif rule.kind == "clock-skew":
                met.skew_s += rule.seconds
            elif rule.kind == "model-stops":
                met.stops = True
            elif rule.kind in {"reset", "truncated", "malformed", "http-503"}:
                met.wire = met.wire or rule.kind
        return met

    def report(self) -> dict[str, Any]:
        """The rules, and how many calls each has met and struck."""
        rules = [
            {**each.rule.model_dump(exclude_defaults=True), "met": each.met, "struck": each.struck}
            for each in self._progress
        ]
        return {"seed": self.plan.seed, "faults": rules}


def parse_faults(document: Any, *, where: str) -> Faults:
    """Rules from a TOML or JSON document.

    Raises:
        UsageError: a rule is wrong; with its place and the reason.
    """
    try:
        return Faults.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise UsageError(f"the faults in {where} can't be used: {place}: {first['msg']}") from error


def load_faults(path: Path) -> Faults:
    """Rules from a file, TOML or by its name JSON.

    Raises:
        UsageError: the file can't be read, or a rule is wrong.
    """
    try:
        data = path.read_bytes()
        document = orjson.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"the faults file {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the faults file {path} can't be read: {error}") from error
    return parse_faults(document, where=str(path))
