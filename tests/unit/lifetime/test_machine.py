"""The table of transitions: what holds for all of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.statuses import STARTABLE
from batchcl.lifetime.machine import RESEND_AFTER_S, TRANSITIONS, Action, Event, Life, State, seen, step

FINAL = {State.STOPPED, State.LEFT, State.NOT_OURS}


def test_a_start_is_sent_only_under_a_tag_and_a_stop_only_of_our_own() -> None:
    for (state, event), (after, actions) in TRANSITIONS.items():
        if Action.START in actions:
            assert after in {State.CLAIMED, State.UNKNOWN}, (state, event)
        if Action.STOP in actions:
            assert (state, after) == (State.STOPPING, State.STOPPING), (state, event)


def test_only_what_is_ours_is_stopped() -> None:
    into = {state for (state, _), (after, _) in TRANSITIONS.items() if after is State.STOPPING}
    assert into == {State.RUNNING, State.STOPPING, State.SHARED}
    assert TRANSITIONS[State.SHARED, Event.INHERITED][0] is State.STOPPING


def test_what_may_run_keeps_its_tag_and_what_is_stopped_loses_it() -> None:
    for (state, event), (after, actions) in TRANSITIONS.items():
        if after is State.LEFT:
            assert Action.RELEASE not in actions, (state, event)
        if after is State.STOPPED:
            assert Action.RELEASE in actions, (state, event)


def test_a_model_is_stopped_only_when_a_description_says_so() -> None:
    into = {event for (_, event), (after, _) in TRANSITIONS.items() if after is State.STOPPED}
    assert into == {Event.SEEN_DOWN, Event.SEEN_DOWN_LONG, Event.SEEN_FAILED, Event.SEEN_STOPPING}
    assert (State.STARTING, Event.SEEN_DOWN) in TRANSITIONS
    assert TRANSITIONS[State.STARTING, Event.SEEN_DOWN][0] is State.STARTING, "a description may lag"


@pytest.mark.parametrize("state", [each for each in State if each not in FINAL])
def test_every_state_has_a_way_out_when_the_run_ends(state: State) -> None:
    reached, new = {state}, {state}
    while new:
        after = {
            TRANSITIONS[state, event][0]
            for state, event in itertools.product(new, Event)
            if (state, event) in TRANSITIONS
        }
        new = after - reached
        reached |= after
    assert reached & FINAL
    assert (state, Event.TIME_UP) in TRANSITIONS
    assert (state, Event.END) in TRANSITIONS


@given(st.sampled_from(State), st.sampled_from(Event))
def test_any_event_in_any_state_is_taken(state: State, event: Event) -> None:
    life, actions = step(Life(state=state), event)
    assert (life.state, actions) == TRANSITIONS.get((state, event), (state, ()))


@pytest.mark.parametrize("status", sorted(STARTABLE))
@pytest.mark.parametrize("ending", [True, False])
def test_an_unanswered_start_is_sent_again_only_after_two_minutes(status: str, *, ending: bool) -> None:
    life = Life(state=State.UNKNOWN, sends=1, sent_at=10.0, was_failed=True)
    assert seen(life, status, now=9.0 + RESEND_AFTER_S, ending=ending) is Event.SEEN_DOWN
    late = seen(life, status, now=11.0 + RESEND_AFTER_S, ending=ending)
    assert late is (Event.TIME_UP if ending else Event.SEEN_DOWN_LONG)
    last = Life(state=State.UNKNOWN, sends=3, sent_at=10.0, was_failed=True)
    assert seen(last, status, now=11.0 + RESEND_AFTER_S, ending=ending) is Event.TIME_UP
