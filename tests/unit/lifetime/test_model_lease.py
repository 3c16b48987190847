"""A lease is taken, renewed, shared and released in hours of virtual time, and evaluated as by `model reap`."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.errors import CredentialsError, ModelError, RefusedError, UnreachableError
from batchcl.lifetime.by_hand import end_lease, start, start_with_lease
from batchcl.lifetime.lease_tags import (
    MANUAL_KEY,
    LeaseTag,
    ReapAction,
    Role,
    decide,
    lease_key,
    leases_in,
    schedule_name_of,
)
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease, clear_leases
from batchcl.lifetime.state_machine import ModelEvent
from batchcl.quantities import Units
from batchcl.stop_signal import StopSignal
from fake_rekognition import EPOCH, Models, arn_of, now, refused
from observers import RecordingObserver
from virtual import run_virtual

NAME = "cats@v1"
CATS = ModelArn.parse(arn_of(NAME))
LENGTH_S = 900.0
HOLDER = "run a in s3://b"


def lease_of(service: Models, *, holder: str = HOLDER, length_s: float | None = LENGTH_S, **more: Any) -> ModelLease:
    options: dict[str, Any] = {"now": now, "rng": random.Random(1), **more}
    return ModelLease(service, CATS, key=lease_key(holder), holder=holder, length_s=length_s, **options)


def manager_of(service: Models, lease: ModelLease, listener: RecordingObserver | None = None) -> ModelManager:
    return ModelManager(
        service,
        CATS,
        units=Units(1),
        keep=False,
        lease=lease,
        observer=listener or RecordingObserver(),
        stop_signal=StopSignal(),
        rng=random.Random(1),
    )


class Schedule:
    """A scheduled stop without effect."""

    async def arm(self) -> None:
        pass

    async def disarm(self) -> None:
        pass


def put(service: Models, *, until_s: float, role: Role = Role.STARTED, holder: str = "run z in s3://b") -> LeaseTag:
    until = EPOCH + dt.timedelta(seconds=until_s)
    lease = LeaseTag(key=lease_key(holder), role=role, until=until, holder=holder)
    service.tags[NAME][lease.key] = lease.value
    return lease


def leases(service: Models) -> dict[str, LeaseTag]:
    return {lease.key: lease for lease in leases_in(service.tags[NAME])}


def reap_action(service: Models) -> ReapAction:
    return decide(service.statuses[NAME], list(leases(service).values()), now()).action


async def while_renewing(keeping: ModelManager, work: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(keeping.keep_lease_renewed)
        await work()
        group.cancel_scope.cancel()


def test_a_lease_is_live_while_renewed_and_expires_otherwise() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        lease = lease_of(service)
        await lease.claim()
        service.statuses[NAME] = "RUNNING"

        async def ten_hours() -> None:
            for _ in range(10 * 60):
                await anyio.sleep(60)
                assert reap_action(service) is ReapAction.LEAVE

        await while_renewing(manager_of(service, lease), ten_hours)
        last = leases(service)[lease_key(HOLDER)].until
        assert last is not None
        await anyio.sleep((last - now()).total_seconds() - 1)
        assert reap_action(service) is ReapAction.LEAVE
        await anyio.sleep(1.001)
        assert reap_action(service) is ReapAction.STOP

    run_virtual(main)
    assert 10 * 12 <= service.calls.count(f"tag {NAME}") <= 10 * 17, "three renewals per duration, with jitter"


def test_failing_renewals_are_reported_once() -> None:
    service, listener = Models({NAME: "RUNNING"}), RecordingObserver()

    async def main() -> None:
        lease = lease_of(service)
        await lease.claim()

        async def outage() -> None:
            await anyio.sleep(600)
            service.errors["tag"] = refused("ThrottlingException")
            for _ in range(8):
                await anyio.sleep(60)
                assert reap_action(service) is ReapAction.LEAVE
            assert listener.kinds == ["lease-not-renewed"]
            assert "`batchcl model reap` stops the model" in listener.notices[0].text
            del service.errors["tag"]
            await anyio.sleep(LENGTH_S / 9)
            assert listener.kinds == ["lease-not-renewed", "lease-renewed"]
            for _ in range(60):
                await anyio.sleep(60)
                assert reap_action(service) is ReapAction.LEAVE

        await while_renewing(manager_of(service, lease, listener), outage)

    run_virtual(main)


def test_a_lease_that_cannot_be_tagged_is_refused() -> None:
    service = Models({NAME: "STOPPED"}, errors={"tag": refused("AccessDeniedException")})

    async def main() -> None:
        with pytest.raises(CredentialsError, match=r"the model was not started without its lease.*--lease none"):
            await lease_of(service).claim()

    run_virtual(main)
    assert service.tags[NAME] == {}


def test_a_tag_with_a_lost_response_is_removed() -> None:
    service = Models({NAME: "STOPPED"}, errors={"tag": refused("InternalServerError", 500)})

    async def main() -> None:
        lease = lease_of(service)
        with pytest.raises(UnreachableError):
            await lease.claim()
        await lease.release()

    run_virtual(main)
    assert service.calls[-1] == f"untag {NAME}"


def test_claiming_keeps_expired_leases_with_schedules() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        await anyio.sleep(100)
        service.tags[NAME]["stage"] = "production"
        put(service, until_s=50, holder="dead")
        kept = [
            put(service, until_s=200, holder="alive"),
            put(service, until_s=50, role=Role.SCHEDULED, holder="dead with schedule"),
        ]
        await lease_of(service, schedule=Schedule()).claim()
        assert set(leases(service)) == {lease_key(HOLDER), *(each.key for each in kept)}
        assert leases(service)[lease_key(HOLDER)].role is Role.SCHEDULED
        assert service.tags[NAME]["stage"] == "production"

    run_virtual(main)


def test_claiming_removes_expired_leases_and_their_schedules() -> None:
    service = Models({NAME: "STOPPED"})
    removed: list[str] = []

    async def remove(name: str) -> None:
        removed.append(name)

    async def main() -> None:
        await anyio.sleep(100)
        dead = put(service, until_s=50, role=Role.SCHEDULED, holder="dead with schedule")
        put(service, until_s=200, role=Role.SCHEDULED, holder="alive with schedule")
        await lease_of(service, schedule=Schedule(), remove_schedule=remove).claim()
        assert dead.key not in leases(service)
        assert removed == [schedule_name_of(dead.key)]

    run_virtual(main)


def test_a_run_without_a_lease_removes_expired_leases() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        await anyio.sleep(100)
        put(service, until_s=50, holder="dead")
        put(service, until_s=900, holder=HOLDER)
        alive = put(service, until_s=900, holder="alive")
        bare = lease_of(service, length_s=None)
        await bare.claim()
        assert set(leases(service)) == {alive.key}
        service.errors["list"] = refused("AccessDeniedException")
        await bare.claim()
        assert await bare.share() is ModelEvent.NO_LEASE
        assert await bare.leave() is ModelEvent.LAST_LEASE
        await bare.release()
        assert set(leases(service)) == {alive.key}

    run_virtual(main)


def test_claiming_works_without_permission_to_list_tags() -> None:
    service = Models({NAME: "STOPPED"}, errors={"list": refused("AccessDeniedException")})
    run_virtual(lease_of(service).claim)
    assert lease_key(HOLDER) in leases(service)


def test_releasing_a_lease_keeps_other_tags() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        other = put(service, until_s=200)
        lease = lease_of(service)
        await lease.claim()
        await lease.release()
        await lease.release()
        assert set(leases(service)) == {other.key}

    run_virtual(main)
    assert service.calls.count(f"untag {NAME}") == 1


def test_a_using_lease_prevents_reaping() -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        put(service, until_s=300, holder="starter")
        lease = lease_of(service)
        assert await lease.share() is ModelEvent.SHARED_LEASE
        assert leases(service)[lease_key(HOLDER)].role is Role.USING

        async def two_hours() -> None:
            for _ in range(120):
                await anyio.sleep(60)
                assert reap_action(service) is ReapAction.LEAVE

        await while_renewing(manager_of(service, lease), two_hours)
        assert await lease.leave() is ModelEvent.LAST_LEASE
        await lease.release()
        assert reap_action(service) is ReapAction.STOP, "the starter is dead"

    run_virtual(main)


def test_a_model_without_lease_gets_no_using_lease() -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        put(service, until_s=9e9, role=Role.USING, holder="another user")
        lease = lease_of(service)
        assert await lease.share() is ModelEvent.NO_LEASE
        await while_renewing(manager_of(service, lease), lambda: anyio.sleep(7200))
        await lease.release()

    run_virtual(main)
    assert [call for call in service.calls if not call.startswith("list")] == []


def test_a_session_without_units_keeps_the_tag_for_the_reaper() -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        put(service, until_s=300, holder=HOLDER)
        later = lease_of(service)
        assert await later.share() is ModelEvent.NO_LEASE

        async def an_hour() -> None:
            for _ in range(60):
                await anyio.sleep(60)
                assert reap_action(service) is ReapAction.LEAVE

        await while_renewing(manager_of(service, later), an_hour)
        await later.release()
        assert leases(service)[lease_key(HOLDER)].started, "otherwise nothing would stop it"
        await anyio.sleep(LENGTH_S)
        assert reap_action(service) is ReapAction.STOP

    run_virtual(main)


@pytest.mark.parametrize(
    ("others", "event"),
    [
        ([], ModelEvent.LAST_LEASE),
        ([(Role.STARTED, 500.0)], ModelEvent.OTHER_LEASES),
        ([(Role.USING, 500.0)], ModelEvent.OTHER_LEASES),
        ([(Role.STARTED, 50.0)], ModelEvent.LAST_LEASE),
        ([(Role.LEAVING, 500.0)], ModelEvent.INHERITED),
        ([(Role.LEAVING_SCHEDULED, 500.0), (Role.USING, 500.0)], ModelEvent.OTHER_LEASES),
    ],
)
def test_the_tags_show_who_leaves_last(others: list[tuple[Role, float]], event: ModelEvent) -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        await anyio.sleep(100)
        lease = lease_of(service, schedule=Schedule())
        await lease.claim()
        for number, (role, until_s) in enumerate(others):
            put(service, until_s=until_s, role=role, holder=f"other {number}")
        assert await lease.leave() is event
        assert leases(service)[lease_key(HOLDER)].role is Role.LEAVING_SCHEDULED
        if event is ModelEvent.OTHER_LEASES:
            await lease.hand_over()
            assert leases(service)[lease_key(HOLDER)].role is Role.LEAVING, "the schedule is deleted, the tag stays"

    run_virtual(main)


def test_one_of_two_simultaneous_leavers_is_the_last() -> None:
    for gap in range(6):
        service = Models({NAME: "RUNNING"})
        events: list[ModelEvent] = []

        async def main(service: Models = service, events: list[ModelEvent] = events, gap: int = gap) -> None:
            first, second = lease_of(service, holder="a"), lease_of(service, holder="b")
            await first.claim()
            await second.claim()

            async def leave(lease: ModelLease, turns: int) -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                events.append(await lease.leave())

            async with anyio.create_task_group() as group:
                group.start_soon(leave, first, 0)
                group.start_soon(leave, second, gap)

        run_virtual(main)
        assert set(events) & {ModelEvent.LAST_LEASE, ModelEvent.INHERITED}, f"{gap}: {events}"


@pytest.mark.parametrize(
    ("slept_s", "is_removed", "kept"),
    [(60.0, True, True), (60.0, False, True), (LENGTH_S + 1, False, True), (LENGTH_S + 1, True, False)],
)
def test_a_missing_tag_of_an_expired_lease_is_not_rewritten(slept_s: float, *, is_removed: bool, kept: bool) -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        lease = lease_of(service)
        await lease.claim()
        if is_removed:
            service.tags[NAME].clear()
        await anyio.sleep(slept_s)
        assert await lease.renew() is kept
        assert bool(leases(service)) is kept
        assert await lease.leave() is ModelEvent.LAST_LEASE, "without a lease, other tags are not read"

    run_virtual(main)


@pytest.mark.parametrize("error", [refused("InternalServerError", 500), refused("ThrottlingException")])
def test_writing_a_tag_is_retried(error: Exception) -> None:
    service = Models({NAME: "STOPPED"}, errors={"tag": error})

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(lease_of(service).claim)
            await anyio.sleep(0.2)
            service.errors.clear()

    run_virtual(main)
    assert lease_key(HOLDER) in leases(service)


def test_a_manual_start_is_leased_before_it_is_sent() -> None:
    service = Models({NAME: "STOPPED"})
    schedules: list[str] = []

    async def remove(name: str) -> None:
        schedules.append(name)

    async def main() -> LeaseTag:
        await anyio.sleep(100)
        put(service, until_s=50, role=Role.SCHEDULED, holder="dead")
        return await start_with_lease(
            service, CATS, Units(1), seconds=7200, holder="me", now=now, remove_schedule=remove
        )

    lease = run_virtual(main)
    assert leases(service) == {MANUAL_KEY: lease}
    assert lease.until is not None
    assert (lease.until - EPOCH).total_seconds() == pytest.approx(7300, abs=1)
    assert [call for call in service.calls if not call.startswith("list")][-2:] == [f"tag {NAME}", f"start {NAME}"]
    assert len(schedules) == 1, "otherwise the old schedule would stop this model"


@pytest.mark.parametrize("status", ["STARTING", "RUNNING", "STOPPING"])
def test_a_model_that_is_up_gets_no_manual_lease(status: str) -> None:
    service = Models({NAME: status})

    async def main() -> None:
        with pytest.raises(ModelError, match=f"is {status} already"):
            await start_with_lease(service, CATS, Units(1), seconds=60, holder="me", now=now)

    run_virtual(main)
    assert service.tags[NAME] == {}


def test_a_refused_manual_start_leaves_no_lease() -> None:
    service = Models({NAME: "STOPPED"}, errors={"start": refused("LimitExceededException")})

    async def main() -> None:
        with pytest.raises(ModelError):
            await start_with_lease(service, CATS, Units(1), seconds=60, holder="me", now=now)

    run_virtual(main)
    assert service.tags[NAME] == {}


@pytest.mark.parametrize("leased", [True, False])
def test_a_manual_start_with_a_lost_response_succeeds(*, leased: bool) -> None:
    service = Models({NAME: "STOPPED"}, start_s=300)
    begin = service.start_project_version

    async def lost(**arguments: Any) -> None:
        await begin(**arguments)
        raise refused("InternalServerError", 500)

    service.start_project_version = lost  # type: ignore[method-assign]

    async def main() -> None:
        if leased:
            await start_with_lease(service, CATS, Units(1), seconds=7200, holder="me", now=now)
        else:
            await start(service, CATS, Units(1))
        assert service.status(NAME) == "STARTING"
        assert bool(leases(service)) is leased

    run_virtual(main)
    assert service.calls.count(f"start {NAME}") == 1


def test_a_manual_start_without_responses_keeps_its_lease() -> None:
    service = Models({NAME: "STOPPED"}, errors={"start": refused("InternalServerError", 500)})

    async def main() -> None:
        with pytest.raises(UnreachableError, match="it is unknown whether cats@v1 was started"):
            await start_with_lease(service, CATS, Units(1), seconds=7200, holder="me", now=now)
        assert MANUAL_KEY in leases(service)

    run_virtual(main)
    assert service.calls.count(f"start {NAME}") == 3


def test_a_manual_start_cancelled_early_leaves_no_lease() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        with anyio.CancelScope() as scope:
            write = service.tag_resource

            async def cancelled(**arguments: Any) -> None:
                await write(**arguments)
                scope.cancel()

            service.tag_resource = cancelled  # type: ignore[method-assign]
            await start_with_lease(service, CATS, Units(1), seconds=60, holder="me", now=now)

    run_virtual(main)
    assert (service.tags[NAME], service.calls.count(f"start {NAME}")) == ({}, 0)


def test_clearing_leases_keeps_other_tags() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        service.tags[NAME]["stage"] = "production"
        put(service, until_s=9e9)
        service.tags[NAME][MANUAL_KEY] = "unreadable"
        assert len(await clear_leases(service, CATS)) == 2
        assert await clear_leases(service, CATS) == ()
        service.tags[NAME][MANUAL_KEY] = "unreadable"
        await end_lease(service, CATS)

    run_virtual(main)
    assert service.tags[NAME] == {"stage": "production"}


def test_a_lease_is_kept_if_its_schedule_cannot_be_deleted() -> None:
    service = Models({NAME: "STOPPED"})

    async def remove(name: str) -> None:
        raise RefusedError(f"{name} stays")

    async def main() -> None:
        put(service, until_s=0, role=Role.SCHEDULED)
        with pytest.raises(RefusedError, match="stays"):
            await clear_leases(service, CATS, remove_schedule=remove)

    run_virtual(main)
    assert len(leases(service)) == 1


def test_renewals_and_later_sessions_keep_the_time_of_the_start() -> None:
    service = Models({NAME: "STOPPED"})
    sinces = []

    async def main() -> None:
        await anyio.sleep(10)
        first = lease_of(service)
        await first.claim()
        await anyio.sleep(60)
        await first.renew()
        sinces.append(leases(service)[lease_key(HOLDER)].since)
        resumed = lease_of(service)
        assert await resumed.find_own()
        await resumed.renew()
        sinces.append(leases(service)[lease_key(HOLDER)].since)
        service.statuses[NAME] = "RUNNING"
        unknowing = lease_of(service)
        await unknowing.share()
        sinces.append(leases(service)[lease_key(HOLDER)].since)
        await anyio.sleep(60)
        await resumed.claim()  # to start it again
        sinces.append(leases(service)[lease_key(HOLDER)].since)

    run_virtual(main)
    started = EPOCH + dt.timedelta(seconds=10)
    assert sinces == [started, started, started, EPOCH + dt.timedelta(seconds=130)]
