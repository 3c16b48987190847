from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace
from typing import Any

import pytest
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from batchcl.errors import UsageError
from batchcl.lifetime.lease_tags import (
    MANUAL_KEY,
    LeaseTag,
    ReapAction,
    Role,
    decide,
    lease_key,
    lease_seconds,
    leases_in,
    schedule_name_of,
)

NOW = dt.datetime(2026, 11, 21, 3, 0, tzinfo=dt.UTC)
SOON, LATE = NOW + dt.timedelta(minutes=5), NOW - dt.timedelta(seconds=1)
OTHERS = ["TRAINING_IN_PROGRESS", "TRAINING_COMPLETED", "STOPPED", "STOPPING", "FAILED", "DELETING"]


def lease(until: dt.datetime = LATE, role: Role | None = Role.STARTED, holder: str = "run a in s3://b") -> LeaseTag:
    return LeaseTag(key=lease_key(holder), role=role, until=until, holder=holder)


BROKEN = LeaseTag(key=MANUAL_KEY, role=None, until=None, holder="mine")
USING = lease(role=Role.USING, holder="run b in s3://b")
ENDED = lease()


def test_a_lease_survives_a_round_trip_through_its_tag() -> None:
    for role in Role:
        written = lease(SOON, role)
        assert leases_in({written.key: written.value, "stage": "production"}) == (written,)
    assert lease(SOON).value == "2026-11-21T03:05:00Z started run a in s3://b"


def test_a_lease_keeps_the_time_of_the_start() -> None:
    written = replace(lease(SOON), since=LATE)
    assert written.value == "2026-11-21T03:05:00Z started run a in s3://b since 2026-11-21T02:59:59Z"
    assert leases_in({written.key: written.value}) == (written,)
    (long,) = leases_in({written.key: replace(written, holder="x" * 400).value})
    assert (long.since, long.holder) == (LATE, "x" * 200)
    (other,) = leases_in({written.key: f"{lease(SOON).value} since yesterday"})
    assert (other.since, other.holder) == (None, "run a in s3://b since yesterday")


@pytest.fixture(scope="module")
def shapes() -> Any:
    """The service model of Rekognition."""
    return get_session().get_service_model("rekognition")


@given(holder=st.text(max_size=400), seconds=st.integers(-(10**9), 10**9))
def test_any_holder_gives_a_valid_tag(shapes: Any, holder: str, seconds: int) -> None:
    key_shape, value_shape = shapes.shape_for("TagKey").metadata, shapes.shape_for("TagValue").metadata
    written = lease(NOW + dt.timedelta(seconds=seconds), holder=holder)
    assert key_shape["min"] <= len(written.key) <= key_shape["max"]
    assert len(written.value) <= value_shape["max"]
    # Python's re has no \p{…}: letters, numbers and space separators are what it says
    assert re.fullmatch(r"[\w \u00a0_.:/=+\-@]*", written.value)
    assert written.value.isprintable()
    (read,) = leases_in({written.key: written.value})
    assert (read.role, read.until) == (written.role, written.until)


@pytest.mark.parametrize(
    "value",
    ["", "x", "2026-11-21T03:05:00Z", "2026-11-21T03:05:00Z owns me", "2026-11-21T03:05:00 started me", "♥ ♥ ♥"],
)
def test_an_invalid_lease_tag_prevents_reaping(value: str) -> None:
    (read,) = leases_in({MANUAL_KEY: value})
    assert (read.role, read.until, read.holder) == (None, None, value)
    assert not read.ended(NOW)
    decision = decide("RUNNING", [ENDED, read], NOW)
    assert decision.action is ReapAction.LEAVE
    assert MANUAL_KEY in decision.reason


@pytest.mark.parametrize(
    ("status", "leases", "action", "why"),
    [
        ("RUNNING", [ENDED], ReapAction.STOP, "its lease expired at 2026-11-21T02:59:59Z (holder: run a in s3://b)"),
        ("RUNNING", [lease(role=Role.SCHEDULED)], ReapAction.STOP, "its lease expired"),
        ("RUNNING", [ENDED, USING], ReapAction.STOP, "run a"),
        ("STARTING", [ENDED], ReapAction.WAIT, "a model that is STARTING can't be stopped before it is RUNNING"),
        ("RUNNING", [], ReapAction.LEAVE, "started by other means"),
        ("RUNNING", [USING], ReapAction.LEAVE, "started by other means"),
        ("RUNNING", [lease(SOON)], ReapAction.LEAVE, "leased until 2026-11-21T03:05:00Z by run a in s3://b"),
        (
            "RUNNING",
            [ENDED, lease(SOON, Role.USING, "run b")],
            ReapAction.LEAVE,
            "in use until 2026-11-21T03:05:00Z by run b",
        ),
        (
            "RUNNING",
            [ENDED, lease(SOON, holder="run c")],
            ReapAction.LEAVE,
            "leased until 2026-11-21T03:05:00Z by run c",
        ),
        ("STARTING", [lease(SOON)], ReapAction.LEAVE, "leased until"),
        *((status, [ENDED], ReapAction.CLEAR, "not running") for status in OTHERS),
        *((status, [lease(SOON)], ReapAction.LEAVE, "not running") for status in OTHERS),
    ],
)
def test_reap_decisions_by_status_and_leases(status: str, leases: list[LeaseTag], action: ReapAction, why: str) -> None:
    decision = decide(status, leases, NOW)
    assert decision.action is action
    assert why in decision.reason
    assert decision.ended == (
        tuple(each for each in leases if each.until == LATE) if action is not ReapAction.LEAVE else ()
    )


_LEASES = st.lists(
    st.builds(
        lambda until, role, name: LeaseTag(key=lease_key(name), role=role, until=until, holder=name),
        st.sampled_from([LATE, SOON]),
        st.sampled_from(Role),
        st.text(max_size=3),
    ),
    max_size=5,
)


@given(st.sampled_from(["RUNNING", "STARTING", *OTHERS]), _LEASES)
def test_only_running_models_with_expired_leases_are_stopped(status: str, leases: list[LeaseTag]) -> None:
    orphaned = any(each.started for each in leases) and all(each.until == LATE for each in leases)
    assert (decide(status, leases, NOW).action is ReapAction.STOP) == (status == "RUNNING" and orphaned)


def test_a_lease_expires_exactly_at_its_end() -> None:
    assert lease(NOW).ended(NOW)
    assert not lease(NOW + dt.timedelta(seconds=1)).ended(NOW)


def test_keys_and_schedule_names_are_unique_per_holder() -> None:
    names = ["run a in s3://b", "run a in s3://c", "run b in s3://b"]
    assert len({lease_key(name) for name in names}) == 3
    schedules = {schedule_name_of(lease_key(name)) for name in names}
    assert len(schedules) == 3
    assert all(re.fullmatch(r"[0-9a-zA-Z-_.]{1,64}", name) for name in schedules)


@pytest.mark.parametrize(
    ("text", "seconds"), [("15m", 900), ("1m", 60), ("24h", 86_400), ("1d", 86_400), ("none", None)]
)
def test_valid_lease_durations(text: str, seconds: float | None) -> None:
    assert lease_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "59s", "25h", "off", "15", "-5m"])
def test_invalid_lease_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        lease_seconds(text)
