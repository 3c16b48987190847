"""The life of a model as one run sees it: states, events, and one table of transitions. Pure; `manager` drives it.

```
             tag written          start answered 200          RUNNING
  NOT_OURS ───────────────▶ CLAIMED ──────────────▶ STARTING ─────────▶ RUNNING ◀── restart, at most 3 times
     │  ▲                   │  │                       ▲                  │
     │  └── refused, in use ┘  │ no answer             │ the model is up  │ end: the tag says `leaving`,
     │                         ▼                       │                  │ and no other live tag
     │ a lease of another   UNKNOWN ───────────────────┴────────────────▶ ▼
     ▼                         │  down for 120 s: send again, twice   STOPPING ──▶ STOPPED
   SHARED                      ▼                                          │
  (using)                     LEFT ◀── time is up, or handed over ────────┘
```

What `LEFT` means: the model may run, its tag stays, and another session of the run, `batchcl model reap` or the
scheduled stop stops it. From NOT_OURS a model is never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from batchcl.aws.models import STARTABLE

__all__ = ["RESEND_AFTER_S", "TRANSITIONS", "ModelAction", "ModelEvent", "ModelLife", "ModelState", "seen", "step"]

RESEND_AFTER_S: Final = 120.0
"""A model that is not up this long after its start was sent was not started: descriptions lag by seconds."""

_MAX_SENDS: Final = 3


class ModelState(StrEnum):
    """What the run has to do with the model."""

    NOT_OURS = "not ours"
    SHARED = "shared"
    """It runs under another run's lease, and this run holds a lease as its user."""
    CLAIMED = "claimed"
    """The own tag is on the model; no start has taken effect."""
    UNKNOWN = "unknown"
    """A start was sent, and its answer was lost."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    LEFT = "left"


class ModelEvent(StrEnum):
    """What was learned, or is asked for."""

    STARTABLE = "startable"
    """A call is due, and the model doesn't run."""
    ADOPT_STARTING = "adopt starting"
    """The own tag of an earlier session is on the model, which is STARTING."""
    ADOPT_RUNNING = "adopt running"
    CLAIM_WRITTEN = "claim written"
    CLAIM_FAILED = "claim failed"
    START_ACCEPTED = "start accepted"
    START_THROTTLED = "start throttled"
    START_IN_USE = "start in use"
    START_REFUSED = "start refused"
    """By a definite answer: nothing was started."""
    START_UNANSWERED = "start unanswered"
    """The start may have taken effect, or not."""
    SEEN_DOWN = "seen down"
    SEEN_DOWN_LONG = "seen down long"
    """For 120 s after a start was sent."""
    SEEN_FAILED = "seen failed"
    SEEN_STARTING = "seen starting"
    SEEN_RUNNING = "seen running"
    SEEN_STOPPING = "seen stopping"
    UNSEEN = "unseen"
    """The model could not be described."""
    TAG_GONE = "tag gone"
    """The own lease had lapsed, and its tag is gone: the model was reaped, and whoever runs it now is another one."""
    END = "end"
    KEEP = "keep"
    """The end of a run that keeps its model."""
    SHARE_TAKEN = "share taken"
    """There is another run's lease, and now this run's as a user."""
    SHARE_NONE = "share none"
    """No run has a lease: the model was started by other means."""
    ALONE = "alone"
    """The own tag says `leaving`, and nobody else holds the model."""
    INHERITED = "inherited"
    """Likewise for a user, to whom the starter has left the model."""
    OTHERS = "others"
    """Another live lease: its holder stops the model."""
    TAKEN_OVER = "taken over"
    """Another session of the same run is at work under the same tag, and stops the model."""
    LAPSED = "lapsed"
    """The own lease has ended before the stop was sent, as the process was suspended: the tags decide again."""
    STOP_SENT = "stop sent"
    """Whatever was answered: only a description shows what came of it."""
    TIME_UP = "time up"


class ModelAction(StrEnum):
    """What is to be done next. Those that write are not to be interrupted."""

    LOOK = "look"
    """Wait a little, and describe the model."""
    CLAIM = "claim"
    """Write the own tag and read it back; make the schedule."""
    START = "start"
    """Send StartProjectVersion once, without the SDK's retries."""
    SHARE = "share"
    """Take a lease as a user, where there is one."""
    LEAVE = "leave"
    """Change the own tag to `leaving`, then read all tags."""
    STOP = "stop"
    """Send StopProjectVersion."""
    RELEASE = "release"
    """Remove the schedule and the own tag."""
    HAND_OVER = "hand over"
    """Leave the model to the holders of other leases."""
    FAIL = "fail"
    """Raise what the last action failed with."""


_S, _E, _A = ModelState, ModelEvent, ModelAction

TRANSITIONS: Final[dict[tuple[ModelState, ModelEvent], tuple[ModelState, tuple[ModelAction, ...]]]] = {
    # nobody's, or somebody else's
    (_S.NOT_OURS, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
    (_S.NOT_OURS, _E.CLAIM_WRITTEN): (_S.CLAIMED, (_A.START,)),
    (_S.NOT_OURS, _E.CLAIM_FAILED): (_S.NOT_OURS, (_A.RELEASE, _A.FAIL)),
    (_S.NOT_OURS, _E.ADOPT_STARTING): (_S.STARTING, (_A.CLAIM,)),
    (_S.NOT_OURS, _E.ADOPT_RUNNING): (_S.RUNNING, (_A.CLAIM,)),
    (_S.NOT_OURS, _E.SEEN_STARTING): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.NOT_OURS, _E.SEEN_RUNNING): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.NOT_OURS, _E.SEEN_STOPPING): (_S.NOT_OURS, (_A.LOOK,)),
    (_S.NOT_OURS, _E.UNSEEN): (_S.NOT_OURS, (_A.LOOK,)),
    (_S.NOT_OURS, _E.SHARE_TAKEN): (_S.SHARED, ()),
    (_S.NOT_OURS, _E.END): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.NOT_OURS, _E.TIME_UP): (_S.NOT_OURS, (_A.FAIL,)),
    # under another run's lease
    (_S.SHARED, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
    (_S.SHARED, _E.SEEN_STARTING): (_S.SHARED, (_A.SHARE,)),
    (_S.SHARED, _E.SEEN_RUNNING): (_S.SHARED, (_A.SHARE,)),
    (_S.SHARED, _E.SHARE_NONE): (_S.NOT_OURS, ()),
    (_S.SHARED, _E.SEEN_STOPPING): (_S.SHARED, (_A.LOOK,)),
    (_S.SHARED, _E.UNSEEN): (_S.SHARED, (_A.LOOK,)),
    (_S.SHARED, _E.TAG_GONE): (_S.NOT_OURS, ()),
    (_S.SHARED, _E.END): (_S.SHARED, (_A.LEAVE,)),
    (_S.SHARED, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.SHARED, _E.OTHERS): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.SHARED, _E.ALONE): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.SHARED, _E.INHERITED): (_S.STOPPING, (_A.LOOK,)),
    (_S.SHARED, _E.TIME_UP): (_S.LEFT, ()),
    # claimed, and sent to start
    (_S.CLAIMED, _E.START_ACCEPTED): (_S.STARTING, (_A.LOOK,)),
    (_S.CLAIMED, _E.START_THROTTLED): (_S.CLAIMED, (_A.START,)),
    (_S.CLAIMED, _E.START_IN_USE): (_S.NOT_OURS, (_A.RELEASE, _A.LOOK)),
    (_S.CLAIMED, _E.START_REFUSED): (_S.NOT_OURS, (_A.RELEASE, _A.FAIL)),
    (_S.CLAIMED, _E.START_UNANSWERED): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.CLAIMED, _E.END): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.CLAIMED, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.CLAIMED, _E.TIME_UP): (_S.NOT_OURS, (_A.RELEASE, _A.FAIL)),
    # no answer: the tag and the description decide
    (_S.UNKNOWN, _E.SEEN_STARTING): (_S.STARTING, (_A.LOOK,)),
    (_S.UNKNOWN, _E.SEEN_RUNNING): (_S.RUNNING, ()),
    (_S.UNKNOWN, _E.SEEN_STOPPING): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.SEEN_DOWN): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.SEEN_FAILED): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.UNKNOWN, _E.SEEN_DOWN_LONG): (_S.UNKNOWN, (_A.START,)),
    (_S.UNKNOWN, _E.UNSEEN): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.START_ACCEPTED): (_S.STARTING, (_A.LOOK,)),
    (_S.UNKNOWN, _E.START_THROTTLED): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.START_IN_USE): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.START_UNANSWERED): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.START_REFUSED): (_S.LEFT, (_A.FAIL,)),
    (_S.UNKNOWN, _E.TAG_GONE): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.UNKNOWN, _E.END): (_S.UNKNOWN, (_A.LOOK,)),
    (_S.UNKNOWN, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.UNKNOWN, _E.TIME_UP): (_S.LEFT, (_A.FAIL,)),
    # starting: it can't be stopped yet
    (_S.STARTING, _E.CLAIM_WRITTEN): (_S.STARTING, (_A.LOOK,)),
    (_S.STARTING, _E.CLAIM_FAILED): (_S.STARTING, (_A.FAIL,)),
    (_S.STARTING, _E.SEEN_STARTING): (_S.STARTING, (_A.LOOK,)),
    (_S.STARTING, _E.SEEN_RUNNING): (_S.RUNNING, ()),
    (_S.STARTING, _E.SEEN_DOWN): (_S.STARTING, (_A.LOOK,)),
    (_S.STARTING, _E.SEEN_DOWN_LONG): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.STARTING, _E.SEEN_FAILED): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.STARTING, _E.SEEN_STOPPING): (_S.STOPPED, (_A.RELEASE, _A.FAIL)),
    (_S.STARTING, _E.UNSEEN): (_S.STARTING, (_A.LOOK,)),
    (_S.STARTING, _E.TAG_GONE): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.STARTING, _E.END): (_S.STARTING, (_A.LOOK,)),
    (_S.STARTING, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.STARTING, _E.TIME_UP): (_S.LEFT, (_A.FAIL,)),
    # running
    (_S.RUNNING, _E.CLAIM_WRITTEN): (_S.RUNNING, ()),
    (_S.RUNNING, _E.CLAIM_FAILED): (_S.RUNNING, (_A.FAIL,)),
    (_S.RUNNING, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
    (_S.RUNNING, _E.SEEN_RUNNING): (_S.RUNNING, ()),
    (_S.RUNNING, _E.SEEN_STARTING): (_S.RUNNING, (_A.LOOK,)),
    (_S.RUNNING, _E.SEEN_STOPPING): (_S.RUNNING, (_A.LOOK,)),
    (_S.RUNNING, _E.UNSEEN): (_S.RUNNING, (_A.LOOK,)),
    (_S.RUNNING, _E.TAG_GONE): (_S.NOT_OURS, (_A.SHARE,)),
    (_S.RUNNING, _E.END): (_S.RUNNING, (_A.LEAVE,)),
    (_S.RUNNING, _E.KEEP): (_S.NOT_OURS, (_A.RELEASE,)),
    (_S.RUNNING, _E.ALONE): (_S.STOPPING, (_A.LOOK,)),
    (_S.RUNNING, _E.INHERITED): (_S.STOPPING, (_A.LOOK,)),
    (_S.RUNNING, _E.OTHERS): (_S.LEFT, (_A.HAND_OVER,)),
    (_S.RUNNING, _E.TIME_UP): (_S.LEFT, (_A.FAIL,)),
    # stopping: a description decides
    (_S.STOPPING, _E.END): (_S.STOPPING, (_A.LOOK,)),
    (_S.STOPPING, _E.LAPSED): (_S.RUNNING, (_A.LEAVE,)),
    (_S.STOPPING, _E.STOP_SENT): (_S.STOPPING, (_A.LOOK,)),
    (_S.STOPPING, _E.SEEN_RUNNING): (_S.STOPPING, (_A.STOP,)),
    (_S.STOPPING, _E.SEEN_STARTING): (_S.STOPPING, (_A.LOOK,)),
    (_S.STOPPING, _E.SEEN_STOPPING): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.SEEN_DOWN): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.SEEN_DOWN_LONG): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.SEEN_FAILED): (_S.STOPPED, (_A.RELEASE,)),
    (_S.STOPPING, _E.UNSEEN): (_S.STOPPING, (_A.LOOK,)),
    (_S.STOPPING, _E.TIME_UP): (_S.LEFT, (_A.FAIL,)),
    # over; a session that goes on begins again
    (_S.STOPPED, _E.STARTABLE): (_S.NOT_OURS, (_A.CLAIM,)),
}
"""What is to be done in a state when something is learned. What isn't listed changes nothing and needs nothing."""

TRANSITIONS.update(
    {(state, ModelEvent.TAKEN_OVER): (ModelState.LEFT, ()) for state in ModelState if state is not ModelState.STOPPED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLife:
    """What is known of the model.

    Attributes:
        state: see `ModelState`.
        sends: starts that were sent since the model was claimed, throttled ones aside.
        sent_at: of the last one, on the caller's clock.
        was_failed: it was FAILED before the start, so that a lagging description may say so after it.
    """

    state: ModelState = ModelState.NOT_OURS
    sends: int = 0
    sent_at: float = 0.0
    was_failed: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether the run may have started the model, and so stops it."""
        return self.state in {
            ModelState.CLAIMED,
            ModelState.UNKNOWN,
            ModelState.STARTING,
            ModelState.RUNNING,
            ModelState.STOPPING,
        }

    def sent(self, now: float) -> ModelLife:
        """After a start was sent at `now`."""
        return replace(self, sends=self.sends + 1, sent_at=now)


def step(life: ModelLife, event: ModelEvent) -> tuple[ModelLife, tuple[ModelAction, ...]]:
    """The model's life after `event`, and what is to be done next."""
    state, actions = TRANSITIONS.get((life.state, event), (life.state, ()))
    sends = 0 if state is ModelState.CLAIMED and life.state is not ModelState.CLAIMED else life.sends
    return replace(life, state=state, sends=sends), actions


def seen(life: ModelLife, status: str, *, now: float, ending: bool) -> ModelEvent:
    """What it means that the model is described with `status` at `now`, on the clock of `ModelLife.sent_at`.

    Args:
        life: what is known of it.
        status: the service's own word.
        now: when.
        ending: whether the run is at its end, so that nothing is started any more.
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
        return ModelEvent.TIME_UP
    return ModelEvent.SEEN_DOWN_LONG
