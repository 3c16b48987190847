"""Leases of models: tags that say until when a run needs a model. Pure; `model_lease` reads and writes them.

A model that a run has started has the tag `batchcl:lease/<digest of the holder>` with the value
`<until> <role> <holder>`, such as `2026-11-21T03:15:00Z started run 2026-11-21 in s3://acme-tables/labels`, and, if the
holder started the model, ` since <time>` with the time of the start, and ` left <time>` once it has left the model to
other holders. The run renews it regularly. When all leases of a
model have expired, its runs are dead, and `batchcl model reap` stops it.

A model without a lease of the run that started it was started by other means; batchcl never stops it.

Tags are limited to 50 a resource, keys to 128 and values to 256 characters: letters, digits, spaces and `_.:/=+-@`.
Source: the service model of TagResource; the developer guide on tagging models.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from batchcl.aws.models import UP
from batchcl.errors import UsageError
from batchcl.quantities import parse_duration

__all__ = [
    "MANUAL_KEY",
    "LeaseTag",
    "ReapAction",
    "ReapDecision",
    "Role",
    "decide",
    "lease_key",
    "lease_seconds",
    "leases_in",
    "schedule_name_of",
]

PREFIX: Final = "batchcl:lease/"
MANUAL_KEY: Final = f"{PREFIX}by-hand"
"""The lease of `batchcl model start --for`."""

_MIN_S: Final = 60.0
_MAX_S: Final = 24 * 3600.0
_MAX_VALUE_CHARACTERS: Final = 256
_INVALID_CHARACTERS: Final = re.compile(r"[^\w .:/=+@-]")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_SINCE: Final = re.compile(r" since (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$")
_LEFT: Final = re.compile(r" left (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$")


class Role(StrEnum):
    """The holder's relation to the model."""

    STARTED = "started"
    """It started the model and will stop it."""
    SCHEDULED = "started+schedule"
    """STARTED, and a schedule named after the lease stops the model at the holder's deadline."""
    LEAVING = "leaving"
    """It is ending: it stops the model unless another holder needs it, which then stops it."""
    LEAVING_SCHEDULED = "leaving+schedule"
    """LEAVING, and its schedule still exists."""
    USING = "using"
    """It needs the model, which another holder has started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTag:
    """One lease. A tag that can't be decoded has neither role nor end: the model is not stopped until it is removed.

    Attributes:
        key: of the tag.
        role: None if the value can't be decoded.
        until: when the lease expires, by the service's clock; None if the value can't be decoded.
        holder: text that identifies the holder.
        since: when the holder requested the start of the model, by the service's clock; None if it did not.
        left: when the holder, which started the model, left it to others; None if it has not.
    """

    key: str
    role: Role | None
    until: dt.datetime | None
    holder: str
    since: dt.datetime | None = None
    left: dt.datetime | None = None

    @property
    def value(self) -> str:
        """Value of the tag."""
        assert self.role is not None
        assert self.until is not None
        holder = _INVALID_CHARACTERS.sub("_", self.holder)
        times = {"since": self.since, "left": self.left}
        end = "".join(f" {name} {time.astimezone(dt.UTC):{_TIME}}" for name, time in times.items() if time is not None)
        value = f"{self.until.astimezone(dt.UTC):{_TIME}} {self.role} {holder}"
        return value[: _MAX_VALUE_CHARACTERS - len(end)].rstrip() + end

    @property
    def started(self) -> bool:
        """Whether the holder started the model."""
        return self.role is not None and self.role is not Role.USING

    @property
    def is_leaving(self) -> bool:
        """Whether the holder is ending."""
        return self.role in {Role.LEAVING, Role.LEAVING_SCHEDULED}

    @property
    def has_schedule(self) -> bool:
        """Whether a schedule named after the lease stops the model."""
        return self.role in {Role.SCHEDULED, Role.LEAVING_SCHEDULED}

    def holds(self, now: dt.datetime) -> bool:
        """Whether the lease is live at `now` and its holder still needs the model and will stop it."""
        return self.role is not None and not self.is_leaving and not self.ended(now)

    def ended(self, now: dt.datetime) -> bool:
        """Whether the lease has expired at `now`, by the service's clock."""
        return self.until is not None and self.until <= now


class ReapAction(StrEnum):
    """What the reaper does with a model."""

    STOP = "stop"
    """Stop it: it is RUNNING, and all its leases have expired."""
    WAIT = "wait"
    """Wait: all its leases have expired, but it is STARTING and can't be stopped yet."""
    CLEAR = "clear"
    """Remove expired leases from a model that is down; otherwise the next one who starts it would be taken for dead."""
    LEAVE = "leave"
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapDecision:
    """What the reaper does with a model, why, and which of its leases have expired."""

    action: ReapAction
    reason: str
    ended: tuple[LeaseTag, ...] = ()


def lease_seconds(text: str) -> float | None:
    """Parse the duration of a lease, such as `15m`; None for `none`.

    Raises:
        UsageError: it is not a duration from 1m to 24h. Leases are renewed three times per duration.
    """
    if text == "none":
        return None
    seconds = parse_duration(text)
    if not _MIN_S <= seconds <= _MAX_S:
        raise UsageError(f"{text!r} is not a valid duration of a lease; use 1m to 24h, or none")
    return seconds


def lease_key(holder: str) -> str:
    """The tag key of a holder's lease. All sessions of a run have the same one."""
    return f"{PREFIX}{hashlib.sha256(holder.encode()).hexdigest()[:16]}"


def schedule_name_of(key: str) -> str:
    """The name of the schedule that belongs to a lease, given the lease's tag key."""
    return f"batchcl-stop-{key.removeprefix(PREFIX)}"


def leases_in(tags: Mapping[str, str]) -> tuple[LeaseTag, ...]:
    """The leases among a model's tags, sorted by key."""
    return tuple(_decode(key, value) for key, value in sorted(tags.items()) if key.startswith(PREFIX))


def decide(status: str, leases: Collection[LeaseTag], now: dt.datetime) -> ReapDecision:
    """What the reaper does with a model of this status and these leases, at `now` by the service's clock."""
    ended = tuple(lease for lease in leases if lease.ended(now))
    if status not in UP:
        if ended:
            return ReapDecision(action=ReapAction.CLEAR, reason="not running, and its lease has expired", ended=ended)
        return ReapDecision(action=ReapAction.LEAVE, reason="not running")
    if (invalid := next((lease for lease in leases if lease.until is None), None)) is not None:
        reason = f"its tag {invalid.key} is not a valid lease; remove the tag or stop the model yourself"
        return ReapDecision(action=ReapAction.LEAVE, reason=reason)
    if not any(lease.started for lease in leases):
        return ReapDecision(action=ReapAction.LEAVE, reason="no lease: started by other means")
    if (alive := next((lease for lease in leases if not lease.ended(now)), None)) is not None:
        word = "leased" if alive.started else "in use"
        return ReapDecision(
            action=ReapAction.LEAVE, reason=f"{word} until {alive.until:%Y-%m-%dT%H:%M:%SZ} by {alive.holder}"
        )
    last = max(lease.until for lease in ended if lease.until is not None)
    holder = next(each for each in ended if each.started).holder
    reason = f"its lease expired at {last:%Y-%m-%dT%H:%M:%SZ} (holder: {holder})"
    if status == "STARTING":
        reason = f"{reason}; a model that is STARTING can't be stopped before it is RUNNING"
        return ReapDecision(action=ReapAction.WAIT, reason=reason, ended=ended)
    return ReapDecision(action=ReapAction.STOP, reason=reason, ended=ended)


def _decode(key: str, value: str) -> LeaseTag:
    until_text, _, rest = value.partition(" ")
    role, _, holder = rest.partition(" ")
    try:
        until = dt.datetime.fromisoformat(until_text)
        left, holder = _split_time(_LEFT, holder)
        since, holder = _split_time(_SINCE, holder)
        if until.tzinfo is not None:
            return LeaseTag(key=key, role=Role(role), until=until, holder=holder, since=since, left=left)
    except ValueError:
        pass
    return LeaseTag(key=key, role=None, until=None, holder=value)


def _split_time(pattern: re.Pattern[str], text: str) -> tuple[dt.datetime | None, str]:
    """The time at the end of `text`, and the text without it."""
    found = pattern.search(text)
    return (None, text) if found is None else (dt.datetime.fromisoformat(found[1]), text[: found.start()])
