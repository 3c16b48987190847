"""Invariants of the transition table."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.models import STARTABLE
from batchcl.lifetime.state_machine import (
    RESEND_AFTER_S,
    TRANSITIONS,
    ModelAction,
    ModelEvent,
    ModelLife,
    ModelState,
    event_for_status,
    step,
)

FINAL = {ModelState.STOPPED, ModelState.LEFT, ModelState.NOT_OURS}


def test_starts_require_a_tag_and_stops_require_ownership() -> None:
    for (state, event), (after, actions) in TRANSITIONS.items():
        if ModelAction.START in actions:
            assert after in {ModelState.CLAIMED, ModelState.UNKNOWN}, (state, event)
        if ModelAction.STOP in actions:
            assert (state, after) == (ModelState.STOPPING, ModelState.STOPPING), (state, event)


def test_only_own_or_inherited_models_are_stopped() -> None:
    into = {state for (state, _), (after, _) in TRANSITIONS.items() if after is ModelState.STOPPING}
    assert into == {ModelState.RUNNING, ModelState.STOPPING, ModelState.SHARED}
    assert TRANSITIONS[ModelState.SHARED, ModelEvent.INHERITED][0] is ModelState.STOPPING


def test_left_models_keep_their_tag_and_stopped_ones_lose_it() -> None:
    for (state, event), (after, actions) in TRANSITIONS.items():
        if after is ModelState.LEFT:
            assert ModelAction.RELEASE not in actions, (state, event)
        if after is ModelState.STOPPED:
            assert ModelAction.RELEASE in actions, (state, event)


def test_only_descriptions_lead_to_stopped() -> None:
    into = {event for (_, event), (after, _) in TRANSITIONS.items() if after is ModelState.STOPPED}
    assert into == {ModelEvent.SEEN_DOWN, ModelEvent.SEEN_DOWN_LONG, ModelEvent.SEEN_FAILED, ModelEvent.SEEN_STOPPING}
    assert (ModelState.STARTING, ModelEvent.SEEN_DOWN) in TRANSITIONS
    assert TRANSITIONS[ModelState.STARTING, ModelEvent.SEEN_DOWN][0] is ModelState.STARTING, "a description may lag"


@pytest.mark.parametrize("state", [each for each in ModelState if each not in FINAL])
def test_every_state_has_a_way_out_when_the_run_ends(state: ModelState) -> None:
    reached, new = {state}, {state}
    while new:
        after = {
            TRANSITIONS[state, event][0]
            for state, event in itertools.product(new, ModelEvent)
            if (state, event) in TRANSITIONS
        }
        new = after - reached
        reached |= after
    assert reached & FINAL
    assert (state, ModelEvent.TIMED_OUT) in TRANSITIONS
    assert (state, ModelEvent.END) in TRANSITIONS


@given(st.sampled_from(ModelState), st.sampled_from(ModelEvent))
def test_events_that_are_not_listed_are_ignored(state: ModelState, event: ModelEvent) -> None:
    life, actions = step(ModelLife(state=state), event)
    if (state, event) not in TRANSITIONS:
        assert (life.state, actions) == (state, ())


@pytest.mark.parametrize("status", sorted(STARTABLE))
@pytest.mark.parametrize("ending", [True, False])
def test_a_start_is_sent_again_only_after_two_minutes(status: str, *, ending: bool) -> None:
    life = ModelLife(state=ModelState.UNKNOWN, sends=1, sent_at=10.0, was_failed=True)
    assert event_for_status(life, status, now=9.0 + RESEND_AFTER_S, ending=ending) is ModelEvent.SEEN_DOWN
    late = event_for_status(life, status, now=11.0 + RESEND_AFTER_S, ending=ending)
    assert late is (ModelEvent.TIMED_OUT if ending else ModelEvent.SEEN_DOWN_LONG)
    last = ModelLife(state=ModelState.UNKNOWN, sends=3, sent_at=10.0, was_failed=True)
    assert event_for_status(last, status, now=11.0 + RESEND_AFTER_S, ending=ending) is ModelEvent.TIMED_OUT
