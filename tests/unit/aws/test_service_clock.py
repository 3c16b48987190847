from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from batchcl.aws.service_clock import ServiceClock

HERE = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)


class Events:
    def register(self, name: str, handler: Any) -> None:
        assert name == "after-call"
        self.hear = handler


def clock() -> tuple[ServiceClock, Any]:
    events = Events()
    return ServiceClock(SimpleNamespace(meta=SimpleNamespace(events=events)), utcnow=lambda: HERE), events


def answer(date: str | None) -> dict[str, Any]:
    return {"parsed": {"ResponseMetadata": {"HTTPHeaders": {} if date is None else {"date": date}}}, "model": None}


@pytest.mark.parametrize("off", [-3600, 0, 1200])
def test_the_last_response_sets_the_clock(off: int) -> None:
    found, events = clock()
    assert found.now() == HERE
    there = HERE + dt.timedelta(seconds=off)
    events.hear(**answer(f"{there:%a, %d %b %Y %H:%M:%S} GMT"))
    assert found.now() == there


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sat, 99 Nov 2026 00:00:00 GMT"])
def test_a_response_without_a_date_changes_nothing(date: str | None) -> None:
    found, events = clock()
    events.hear(**answer(date))
    assert found.now() == HERE


def test_a_date_without_zone_is_utc() -> None:
    found, events = clock()
    events.hear(**answer("Sat, 21 Nov 2026 12:00:30 -0000"))
    assert found.now() == HERE + dt.timedelta(seconds=30)
