"""Fault injection: rules that define which calls fail, how, and how often.

Each rule has its own random generator and draws once for each call that it applies to: with the same seed, the n-th
such call has the same result, whatever the other rules do.
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
        kind: of the fault; see docs/emulator-service.md.
        operation: the operation whose calls the rule applies to; `*` for all.
        share: of these calls that fail, 0 to 1.
        skip: number of calls that are skipped first.
        times: maximum number of faults; None for no limit.
        after_s: start of the rule, in seconds after the rules were set.
        until_s: end of the rule, likewise; None for no end.
        milliseconds: for `latency`.
        seconds: for `clock-skew`: how far the service's clock is ahead.
        code: for `error`.
        message: for `error`.
        status: HTTP status for `error`.
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
    message: str = "An injected fault."
    status: int = Field(400, ge=400, le=599)

    def error(self) -> ApiError | None:
        """The error response of the fault; None for the other kinds."""
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
    """The faults of one call.

    Attributes:
        skew_s: how far the service's clock is ahead, in seconds.
        latency_s: added to the call, in seconds.
        error: the response, instead of a result.
        wire: the kind of fault in the connection or the response body.
        stops: whether the model stops.
    """

    skew_s: float = 0.0
    latency_s: float = 0.0
    error: ApiError | None = None
    wire: str | None = None
    stops: bool = False


@dataclass(slots=True)
class _RuleState:
    rule: Rule
    random: random.Random
    met: int = 0
    struck: int = 0

    def applies(self, operation: str, elapsed_s: float) -> bool:
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
    """Decides for each call which faults it has. `now` is in seconds of a monotonic clock."""

    plan: Faults = field(default_factory=Faults)
    since: float = 0.0
    _states: list[_RuleState] = field(default_factory=list)

    def replace(self, plan: Faults, *, now: float) -> None:
        """Replace the rules, and reset all counters."""
        self.plan, self.since = plan, now
        self._states = [_RuleState(rule, random.Random(f"{plan.seed} {n}")) for n, rule in enumerate(plan.faults)]

    def draw(self, operation: str, *, now: float) -> Injection:
        """The faults of the next call of `operation`. If several rules return an error, the first one counts."""
        injection = Injection()
        for each in self._states:
            if not each.applies(operation, now - self.since):
                continue
            rule = each.rule
            injection.error = injection.error or rule.error()
            if rule.kind == "latency":
                injection.latency_s += rule.milliseconds / 1000
            elif rule.kind == "clock-skew":
                injection.skew_s += rule.seconds
            elif rule.kind == "model-stops":
                injection.stops = True
            elif rule.kind in {"reset", "truncated", "malformed", "http-503"}:
                injection.wire = injection.wire or rule.kind
        return injection

    def report(self) -> dict[str, Any]:
        """The rules, each with the number of calls that it applied to (`met`) and made fail (`struck`)."""
        rules = [
            {**each.rule.model_dump(exclude_defaults=True), "met": each.met, "struck": each.struck}
            for each in self._states
        ]
        return {"seed": self.plan.seed, "faults": rules}


def parse_faults(document: Any, *, where: str) -> Faults:
    """Parse rules from a TOML or JSON document; `where` names it in errors.

    Raises:
        UsageError: a rule is invalid.
    """
    try:
        return Faults.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "the document"
        raise UsageError(f"reading the faults in {where} failed: {location}: {first['msg']}") from error


def load_faults(path: Path) -> Faults:
    """Read rules from a file: JSON if its name ends in `.json`, else TOML.

    Raises:
        UsageError: the file can't be read, or a rule is invalid.
    """
    try:
        data = path.read_bytes()
        document = orjson.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"reading the faults file {path} failed: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"reading the faults file {path} failed: {error}") from error
    return parse_faults(document, where=str(path))
