"""Leases of models: tags that say until when somebody needs a model to run. Pure; `leasing` reads and writes them.

A model that a run started carries the tag `batchcl:lease/<holder>` with the value `<until> <role> <who>`, such as
`2026-11-21T03:15:00Z started run 2026-11-21 in s3://acme-tables/labels`. The run renews it while it lives. Once all
leases of a model have ended, nobody is there any more who would stop it, and `batchcl model reap` does.

A model without a lease of somebody who started it was started by other means, and is nobody's business here.

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
from batchcl.quantities import seconds_of

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

_SHORTEST_S: Final = 60.0
_LONGEST_S: Final = 24 * 3600.0
_LONGEST_VALUE: Final = 256
_UNFIT: Final = re.compile(r"[^\w .:/=+@-]")


class Role(StrEnum):
    """What the holder has to do with the model."""

    STARTED = "started"
    """It started the model, and stops it at its end."""
    SCHEDULED = "started+schedule"
    """Likewise, and a schedule named after the lease stops the model at the holder's deadline."""
    LEAVING = "leaving"
    """It is at its end: it stops the model unless somebody else holds it, who then does."""
    LEAVING_SCHEDULED = "leaving+schedule"
    """Likewise, and its schedule is still there."""
    USING = "using"
    """It found the model running by another one's lease, and needs it for some time yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTag:
    """One lease. What can't be read has neither role nor end: it holds the model until somebody removes it.

    Attributes:
        key: of the tag.
        role: None where the value can't be read.
        until: when it ends, by the service's clock; None where the value can't be read.
        holder: who has it, in words.
    """

    key: str
    role: Role | None
    until: dt.datetime | None
    holder: str

    @property
    def value(self) -> str:
        """Of the tag."""
        assert self.role is not None
        assert self.until is not None
        who = _UNFIT.sub("_", self.holder)
        return f"{self.until.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ} {self.role} {who}"[:_LONGEST_VALUE].rstrip()

    @property
    def started(self) -> bool:
        """Whether it tells that a run of batchcl started the model."""
        return self.role is not None and self.role is not Role.USING

    @property
    def is_leaving(self) -> bool:
        """Whether its holder is at its end."""
        return self.role in {Role.LEAVING, Role.LEAVING_SCHEDULED}

    @property
    def has_schedule(self) -> bool:
        """Whether a schedule named after the lease stops the model."""
        return self.role in {Role.SCHEDULED, Role.LEAVING_SCHEDULED}

    def holds(self, now: dt.datetime) -> bool:
        """Whether its holder is alive at `now`, needs the model, and will see to its end."""
        return self.role is not None and not self.is_leaving and not self.ended(now)

    def ended(self, now: dt.datetime) -> bool:
        """Whether it is over at `now`, by the service's clock."""
        return self.until is not None and self.until <= now


class ReapAction(StrEnum):
    """What is to be done with a model."""

    STOP = "stop"
    """It runs, and nobody is left who would stop it."""
    WAIT = "wait"
    """Likewise, but it is STARTING, and can't be stopped before it runs."""
    CLEAR = "clear"
    """It doesn't run; leases that have ended are to be removed, or whoever starts it next would seem to be dead."""
    LEAVE = "leave"
    """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapDecision:
    """What is to be done, why, and which leases have ended."""

    action: ReapAction
    reason: str
    ended: tuple[LeaseTag, ...] = ()


def lease_seconds(text: str) -> float | None:
    """The seconds of `15m`, or None for `none`. Raises `UsageError`, also for what could hardly be renewed in time."""
    if text == "none":
        return None
    seconds = seconds_of(text)
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise UsageError(f"a lease lasts from 1m to 24h, as it is renewed three times in that; {text!r} does not fit")
    return seconds


def lease_key(holder: str) -> str:
    """The key of a holder's lease: the same for each session of a run."""
    return f"{PREFIX}{hashlib.sha256(holder.encode()).hexdigest()[:16]}"


def schedule_name_of(key: str) -> str:
    """The schedule that belongs to a lease; the same for each session of a run."""
    return f"batchcl-stop-{key.removeprefix(PREFIX)}"


def leases_in(tags: Mapping[str, str]) -> tuple[LeaseTag, ...]:
    """The leases among a model's tags, sorted by key."""
    return tuple(_read(key, value) for key, value in sorted(tags.items()) if key.startswith(PREFIX))


def decide(status: str, leases: Collection[LeaseTag], now: dt.datetime) -> ReapDecision:
    """What is to be done with a model of this status that carries these leases, at `now` by the service's clock."""
    ended = tuple(lease for lease in leases if lease.ended(now))
    if status not in UP:
        if ended:
            return ReapDecision(action=ReapAction.CLEAR, reason="it doesn't run, and the lease has ended", ended=ended)
        return ReapDecision(action=ReapAction.LEAVE, reason="it doesn't run")
    if (unread := next((lease for lease in leases if lease.until is None), None)) is not None:
        reason = f"the tag {unread.key} can't be read; remove it, or stop the model, by hand"
        return ReapDecision(action=ReapAction.LEAVE, reason=reason)
    if not any(lease.started for lease in leases):
        return ReapDecision(action=ReapAction.LEAVE, reason="no lease: started by other means")
    if (alive := next((lease for lease in leases if not lease.ended(now)), None)) is not None:
        word = "leased" if alive.started else "in use"
        return ReapDecision(
            action=ReapAction.LEAVE, reason=f"{word} until {alive.until:%Y-%m-%dT%H:%M:%SZ} by {alive.holder}"
        )
    last = max(lease.until for lease in ended if lease.until is not None)
    reason = f"the lease ended at {last:%Y-%m-%dT%H:%M:%SZ}: {next(each for each in ended if each.started).holder}"
    if status == "STARTING":
        reason = f"{reason}; STARTING can't be stopped before it is RUNNING"
        return ReapDecision(action=ReapAction.WAIT, reason=reason, ended=ended)
    return ReapDecision(action=ReapAction.STOP, reason=reason, ended=ended)


def _read(key: str, value: str) -> LeaseTag:
    until, _, rest = value.partition(" ")
    role, _, holder = rest.partition(" ")
    try:
        moment = dt.datetime.fromisoformat(until)
        if moment.tzinfo is None:
            raise ValueError(until)  # noqa: TRY301 - read like any other value that is none of ours
        return LeaseTag(key=key, role=Role(role), until=moment, holder=holder)
    except ValueError:
        return LeaseTag(key=key, role=None, until=None, holder=value)
