"""The life cycle of a model from the view of one run: states, events, and a table of transitions.

This module is pure; `manager` executes the actions.

```
             tag written          start answered 200          RUNNING
  NOT_OURS ───────────────▶ CLAIMED ──────────────▶ STARTING ─────────▶ RUNNING ◀── restart, at most 3 times
     │  ▲                   │  │                       ▲                  │
     │  └── refused, in use ┘  │ no response           │ the model is up  │ run ends: own tag is `leaving`,
     │                         ▼                       │                  │ and no other lease is live
     │ another run's lease  UNKNOWN ───────────────────┴────────────────▶ ▼
     ▼                         │  down for 120 s: send again, twice   STOPPING ──▶ STOPPED
   SHARED                      ▼                                          │
  (using)                     LEFT ◀── timed out, or handed over ─────────┘
```

In `LEFT`, the model may be running and its tag stays; another session of the run, `batchcl model reap` or the scheduled
stop will stop it. In NOT_OURS, this run never stops the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from batchcl.aws.models import STARTABLE

__all__ = [
    "RESEND_AFTER_S",
    "TRANSITIONS",
    "ModelAction",
    "ModelEvent",
    "ModelLife",
    "ModelState",
    "event_for_status",
    "step",
]

RESEND_AFTER_S: Final = 120.0
"""A model that is not up this long after a start was sent was not started. Descriptions lag by seconds only."""

_MAX_SENDS: Final = 3


class ModelState(StrEnum):
    """The model's state and whether this run is responsible for stopping it."""

    NOT_OURS = "not ours"
    """This run did not start the model, or is no longer responsible for it."""
    SHARED = "shared"
    """Another run started it; this run holds a lease with the role `using`."""
    CLAIMED = "claimed"
    """The model has this run's tag; no start has taken effect yet."""
    UNKNOWN = "unknown"
    """A start was sent and its response was lost."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    LEFT = "left"


class ModelEvent(StrEnum):
    """The result of an action, an observation, or a request."""

    STARTABLE = "startable"
    """A call is due, and the model is down and can be started."""
    ADOPT_STARTING = "adopt starting"
    """The model is STARTING and has the tag of an earlier session of this run."""
    ADOPT_RUNNING = "adopt running"
    """The model is RUNNING and has the tag of an earlier session of this run."""
    CLAIM_WRITTEN = "claim written"
    CLAIM_FAILED = "claim failed"
    START_ACCEPTED = "start accepted"
    START_THROTTLED = "start throttled"
    START_IN_USE = "start in use"
    START_REFUSED = "start refused"
    """A definite error response: nothing was started."""
    START_UNANSWERED = "start unanswered"
    """The response was lost; the start may have taken effect."""
    SEEN_DOWN = "seen down"
    """SEEN_…: DescribeProjectVersions has returned this status."""
    SEEN_DOWN_LONG = "seen down long"
    """Down for 120 s after a start was sent."""
    SEEN_FAILED = "seen failed"
    SEEN_STARTING = "seen starting"
    SEEN_RUNNING = "seen running"
    SEEN_STOPPING = "seen stopping"
    NOT_DESCRIBED = "not described"
    """The model could not be described."""
    TAG_GONE = "tag gone"
    """The own lease has expired and its tag is gone: the model was reaped, and if it runs, others started it."""
    END = "end"
    """The run ends."""
    KEEP = "keep"
    """The run ends, with `--keep-model`."""
    SHARED_LEASE = "shared lease"
    """Another run has a lease; this run has written its own with the role `using`."""
    NO_LEASE = "no lease"
    """No run has a lease: the model was started by other means."""
    LAST_LEASE = "last lease"
    """The own tag is `leaving`, and there is no other live lease."""
    INHERITED = "inherited"
    """LAST_LEASE, and the run that started the model has left it (`leaving`), so this run stops it."""
    OTHER_LEASES = "other leases"
    """There is another live lease, whose holder will stop the model."""
    TAKEN_OVER = "taken over"
    """Another session of the same run has taken over and will stop the model."""
    LAPSED = "lapsed"
    """The own lease expired before the stop was sent (the process was suspended): the tags must be read again."""
    STOP_SENT = "stop sent"
    """A stop was sent, with any response: only a description shows the result."""
    TIMED_OUT = "timed out"


class ModelAction(StrEnum):
    """What the manager does next."""

    DESCRIBE = "describe"
    """Wait, then call DescribeProjectVersions."""
    CLAIM = "claim"
    """Write the own tag and read it back; create the schedule."""
    START = "start"
    """Send StartProjectVersion once, without SDK retries."""
    SHARE = "share"
    """Write a lease with the role `using` if another run has a lease."""
    LEAVE = "leave"
    """Change the own tag to `leaving`, then read all tags."""
    STOP = "stop"
    """Send StopProjectVersion."""
    RELEASE = "release"
    """Delete the schedule and the own tag."""
    HAND_OVER = "hand over"
    """Leave the model to the holders of other leases."""
    FAIL = "fail"
    """Raise the error of the last action."""


_S, _E, _A = ModelState, ModelEvent, ModelAction

TRANSITIONS: Final[dict[tuple[ModelState, ModelEvent], tuple[ModelState, tuple[ModelAction, ...]]]] = {
    # down, or started by others
    (_S.NOT_OURS, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
    (_S.NOT_OURS, _E.CLAIM_WRITTEN): (_S.CLAIMED, (_A.START,)),
    (_S.NOT_OURS, _E.CLAIM_FAILED): (_S.NOT_OURS, (_A.RELEASE, _A.FAIL)),
    (_S.NOT_OURS, _E.ADOPT_STARTING): (_S.STARTING, (_A.CLAIM,)),
    (_S.NOT_OURS, _E.ADOPT_RUNNING): (_S.RUNNING, (_A.CLAIM,)),
    (_S.NOT_OURS, _E.SEEN_STARTING): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.NOT_OURS, _E.SEEN_RUNNING): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.NOT_OURS, _E.SEEN_STOPPING): (_S.NOT_OURS, (_A.DESCRIBE,)),
    (_S.NOT_OURS, _E.NOT_DESCRIBED): (_S.NOT_OURS, (_A.DESCRIBE,)),
    (_S.NOT_OURS, _E.SHARED_LEASE): (_S.SHARED, ()),
    (_S.NOT_OURS, _E.END): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.NOT_OURS, _E.TIMED_OUT): (_S.NOT_OURS, (_A.FAIL,)),
    # under another run's lease
    (_S.SHARED, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
    (_S.SHARED, _E.SEEN_STARTING): (_S.SHARED, (_A.SHARE,)),
    (_S.SHARED, _E.SEEN_RUNNING): (_S.SHARED, (_A.SHARE,)),
    (_S.SHARED, _E.NO_LEASE): (_S.NOT_OURS, ()),
    (_S.SHARED, _E.SEEN_STOPPING): (_S.SHARED, (_A.DESCRIBE,)),
    (_S.SHARED, _E.NOT_DESCRIBED): (_S.SHARED, (_A.DESCRIBE,)),
    (_S.SHARED, _E.TAG_GONE): (_S.NOT_OURS, ()),
    (_S.SHARED, _E.END): (_S.SHARED, (_A.LEAVE,)),
    (_S.SHARED, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.SHARED, _E.OTHER_LEASES): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.SHARED, _E.LAST_LEASE): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.SHARED, _E.INHERITED): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.SHARED, _E.TIMED_OUT): (_S.LEFT, ()),
    # claimed: the start is being sent
    (_S.CLAIMED, _E.START_ACCEPTED): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.CLAIMED, _E.START_THROTTLED): (_S.CLAIMED, (_A.START,)),
    (_S.CLAIMED, _E.START_IN_USE): (_S.NOT_OURS, (_A.RELEASE, _A.DESCRIBE)),
    (_S.CLAIMED, _E.START_REFUSED): (_S.NOT_OURS, (_A.RELEASE, _A.FAIL)),
    (_S.CLAIMED, _E.START_UNANSWERED): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.CLAIMED, _E.END): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.CLAIMED, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.CLAIMED, _E.TIMED_OUT): (_S.NOT_OURS, (_A.RELEASE, _A.FAIL)),
    # the response to the start was lost: tags and descriptions decide
    (_S.UNKNOWN, _E.SEEN_STARTING): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.SEEN_RUNNING): (_S.RUNNING, ()),
    (_S.UNKNOWN, _E.SEEN_STOPPING): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.SEEN_DOWN): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.SEEN_FAILED): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.UNKNOWN, _E.SEEN_DOWN_LONG): (_S.UNKNOWN, (_A.START,)),
    (_S.UNKNOWN, _E.NOT_DESCRIBED): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.START_ACCEPTED): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.START_THROTTLED): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.START_IN_USE): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.START_UNANSWERED): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.START_REFUSED): (_S.LEFT, (_A.FAIL,)),
    (_S.UNKNOWN, _E.TAG_GONE): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.UNKNOWN, _E.END): (_S.UNKNOWN, (_A.DESCRIBE,)),
    (_S.UNKNOWN, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.UNKNOWN, _E.TIMED_OUT): (_S.LEFT, (_A.FAIL,)),
    # starting: it can't be stopped yet
    (_S.STARTING, _E.CLAIM_WRITTEN): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.STARTING, _E.CLAIM_FAILED): (_S.STARTING, (_A.FAIL,)),
    (_S.STARTING, _E.SEEN_STARTING): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.STARTING, _E.SEEN_RUNNING): (_S.RUNNING, ()),
    (_S.STARTING, _E.SEEN_DOWN): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.STARTING, _E.SEEN_DOWN_LONG): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.STARTING, _E.SEEN_FAILED): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.STARTING, _E.SEEN_STOPPING): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.STARTING, _E.NOT_DESCRIBED): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.STARTING, _E.TAG_GONE): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.STARTING, _E.END): (_S.STARTING, (_A.DESCRIBE,)),
    (_S.STARTING, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.STARTING, _E.TIMED_OUT): (_S.LEFT, (_A.FAIL,)),
    # running
    (_S.RUNNING, _E.CLAIM_WRITTEN): (_S.RUNNING, ()),
    (_S.RUNNING, _E.CLAIM_FAILED): (_S.RUNNING, (_A.FAIL,)),
    (_S.RUNNING, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
    (_S.RUNNING, _E.SEEN_RUNNING): (_S.RUNNING, ()),
    (_S.RUNNING, _E.SEEN_STARTING): (_S.RUNNING, (_A.DESCRIBE,)),
    (_S.RUNNING, _E.SEEN_STOPPING): (_S.RUNNING, (_A.DESCRIBE,)),
    (_S.RUNNING, _E.NOT_DESCRIBED): (_S.RUNNING, (_A.DESCRIBE,)),
    (_S.RUNNING, _E.TAG_GONE): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.RUNNING, _E.END): (_S.RUNNING, (_A.LEAVE,)),
    (_S.RUNNING, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.RUNNING, _E.LAST_LEASE): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.RUNNING, _E.INHERITED): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.RUNNING, _E.OTHER_LEASES): (_S.LEFT, (_A.HAND_OVER,)),
    (_S.RUNNING, _E.TIMED_OUT): (_S.LEFT, (_A.FAIL,)),
    # stopping: a description decides
    (_S.STOPPING, _E.END): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.STOPPING, _E.LAPSED): (_S.RUNNING, (_A.LEAVE,)),
    (_S.STOPPING, _E.STOP_SENT): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.STOPPING, _E.SEEN_RUNNING): (_S.STOPPING, (_A.STOP,)),
    (_S.STOPPING, _E.SEEN_STARTING): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.STOPPING, _E.SEEN_STOPPING): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.SEEN_DOWN): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.SEEN_DOWN_LONG): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.SEEN_FAILED): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.NOT_DESCRIBED): (_S.STOPPING, (_A.DESCRIBE,)),
    (_S.STOPPING, _E.TIMED_OUT): (_S.LEFT, (_A.FAIL,)),
    # stopped; if another call is due, the cycle starts again
    (_S.STOPPED, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
}
"""(state, event) → (new state, actions). Events that aren't listed for a state are ignored."""

TRANSITIONS.update(
    {(state, ModelEvent.TAKEN_OVER): (ModelState.LEFT, ()) for state in ModelState if state is not ModelState.STOPPED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLife:
    """The state of the state machine.

    Attributes:
        state: see `ModelState`.
        sends: number of starts sent since the model was claimed, except throttled ones.
        sent_at: time of the last start, in seconds of the caller's clock.
        was_failed: the model was FAILED before the start, so a lagging description may say so after it.
    """

    state: ModelState = ModelState.NOT_OURS
    sends: int = 0
    sent_at: float = 0.0
    was_failed: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether the run may have started the model and therefore stops it."""
        return self.state in {
            ModelState.CLAIMED,
            ModelState.UNKNOWN,
            ModelState.STARTING,
            ModelState.RUNNING,
            ModelState.STOPPING,
        }

    def with_start_sent(self, now: float) -> ModelLife:
        """The new state after a start was sent at `now`."""
        return replace(self, sends=self.sends + 1, sent_at=now)


def step(life: ModelLife, event: ModelEvent) -> tuple[ModelLife, tuple[ModelAction, ...]]:
    """The new state after `event`, and the actions to take."""
    state, actions = TRANSITIONS.get((life.state, event), (life.state, ()))
    sends = 0 if state is ModelState.CLAIMED and life.state is not ModelState.CLAIMED else life.sends
    return replace(life, state=state, sends=sends), actions


def event_for_status(life: ModelLife, status: str, *, now: float, ending: bool) -> ModelEvent:
    """The event for a description of the model.

    Args:
        life: the current state.
        status: the status that DescribeProjectVersions has returned.
        now: time of the description, on the clock of `ModelLife.sent_at`.
        ending: whether the run is ending, so that the model is not started again.
    """
    up = {
        "STARTING": ModelEvent.SEEN_STARTING,
        "RUNNING": ModelEvent.SEEN_RUNNING,
        "STOPPING": ModelEvent.SEEN_STOPPING,
    }
    if status in up:
        return up[status]
    if life.state in {ModelState.NOT_OURS, ModelState.SHARED, ModelState.RUNNING, ModelState.STOPPED} and not ending:
        return ModelEvent.STARTABLE if status in STARTABLE else ModelEvent.SEEN_DOWN
    if status == "FAILED" and not life.was_failed:
        return ModelEvent.SEEN_FAILED
    if now - life.sent_at < RESEND_AFTER_S:
        return ModelEvent.SEEN_DOWN
    if life.state is ModelState.UNKNOWN and (ending or life.sends >= _MAX_SENDS):
        return ModelEvent.TIMED_OUT
    return ModelEvent.SEEN_DOWN_LONG
