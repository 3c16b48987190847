"""A lease taken, renewed, shared and given back, hours of it in virtual time; judged as `model reap` would."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from batchcl.aws.arn import ModelArn
from batchcl.lifetime.leases import MANUAL_KEY, Action, Lease, Role, judge, lease_key, leases_in, schedule_name_of
from batchcl.lifetime.leasing import LeaseGuard, NoLease, clear_leases, end_lease, start_for
from batchcl.aws.lifecycle import Units
from batchcl.errors import CredentialsError, ModelError, RefusedError, UnreachableError
from unit.aws.models_service import EPOCH, Listener, Models, arn_of, now, refused
from virtual import run_virtual

NAME = "cats@v1"
CATS = ModelArn.parse(arn_of(NAME))
LENGTH_S = 900.0
HOLDER = "run a in s3://b"


def guard(service: Models, listener: Listener | None = None, *, holder: str = HOLDER, **more: Any) -> LeaseGuard:
    options: dict[str, Any] = {"length_s": LENGTH_S, "now": now, "rng": random.Random(1), **more}
    return LeaseGuard(service, CATS, holder=holder, observer=listener or Listener(), **options)


def put(service: Models, *, until_s: float, role: Role = Role.STARTED, holder: str = "run z in s3://b") -> Lease:
    until = EPOCH + dt.timedelta(seconds=until_s)
    lease = Lease(key=lease_key(holder), role=role, until=until, holder=holder)
    service.tags[NAME][lease.key] = lease.value
    return lease


def leases(service: Models) -> dict[str, Lease]:
    return {lease.key: lease for lease in leases_in(service.tags[NAME])}


def verdict(service: Models) -> Action:
    return judge(service.statuses[NAME], list(leases(service).values()), now()).action


async def beside(keeping: LeaseGuard, work: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(keeping.keep)
        await work()
        group.cancel_scope.cancel()


def test_a_lease_that_is_kept_never_ends_and_one_that_is_not_does() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        found = guard(service)
        await found.arm()
        service.statuses[NAME] = "RUNNING"

        async def ten_hours() -> None:
            for _ in range(10 * 60):
                await anyio.sleep(60)
                assert verdict(service) is Action.LEAVE

        await beside(found, ten_hours)
        last = leases(service)[lease_key(HOLDER)].until
        assert last is not None
        await anyio.sleep((last - now()).total_seconds() - 1)
        assert verdict(service) is Action.LEAVE
        await anyio.sleep(1.001)
        assert verdict(service) is Action.STOP

    run_virtual(main)
    assert 10 * 12 <= service.calls.count(f"tag {NAME}") <= 10 * 17, "three times in its length, with jitter"


def test_it_lives_through_failing_renewals_and_says_so_once() -> None:
    service, listener = Models({NAME: "RUNNING"}), Listener()

    async def main() -> None:
        found = guard(service, listener)
        await found.arm()

        async def outage() -> None:
            await anyio.sleep(600)
            service.errors["tag"] = refused("ThrottlingException")
            for _ in range(8):
                await anyio.sleep(60)
                assert verdict(service) is Action.LEAVE
            assert listener.kinds == ["lease-not-renewed"]
            assert "`batchcl model reap` stops the model" in listener.notices[0].text
            del service.errors["tag"]
            await anyio.sleep(LENGTH_S / 9)
            assert listener.kinds == ["lease-not-renewed", "lease-renewed"]
            for _ in range(60):
                await anyio.sleep(60)
                assert verdict(service) is Action.LEAVE

        await beside(found, outage)

    run_virtual(main)


def test_without_a_tag_there_is_no_start() -> None:
    service = Models({NAME: "STOPPED"}, errors={"tag": refused("AccessDeniedException")})

    async def main() -> None:
        with pytest.raises(CredentialsError, match=r"the model isn't started without its lease.*--lease none"):
            await guard(service).arm()

    run_virtual(main)
    assert service.tags[NAME] == {}


def test_a_tag_whose_answer_was_lost_is_taken_back() -> None:
    service = Models({NAME: "STOPPED"}, errors={"tag": refused("InternalServerError", 500)})

    async def main() -> None:
        found = guard(service)
        with pytest.raises(UnreachableError):
            await found.arm()
        await found.disarm()

    run_virtual(main)
    assert service.calls[-1] == f"untag {NAME}"


def test_arming_removes_what_the_dead_left_but_for_what_tells_of_a_schedule() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        await anyio.sleep(100)
        service.tags[NAME]["stage"] = "production"
        put(service, until_s=50, holder="dead")
        kept = [
            put(service, until_s=200, holder="alive"),
            put(service, until_s=50, role=Role.SCHEDULED, holder="dead with schedule"),
        ]
        await guard(service, scheduled=True).arm()
        assert set(leases(service)) == {lease_key(HOLDER), *(each.key for each in kept)}
        assert leases(service)[lease_key(HOLDER)].role is Role.SCHEDULED
        assert service.tags[NAME]["stage"] == "production"

    run_virtual(main)


def test_arming_takes_the_schedules_of_the_dead_along_where_it_can() -> None:
    service = Models({NAME: "STOPPED"})
    removed: list[str] = []

    async def remove(name: str) -> None:
        removed.append(name)

    async def main() -> None:
        await anyio.sleep(100)
        dead = put(service, until_s=50, role=Role.SCHEDULED, holder="dead with schedule")
        put(service, until_s=200, role=Role.SCHEDULED, holder="alive with schedule")
        await guard(service, scheduled=True, remove_schedule=remove).arm()
        assert dead.key not in leases(service)
        assert removed == [schedule_name_of(dead.key)]

    run_virtual(main)


def test_a_run_without_a_lease_is_not_stopped_by_an_old_one() -> None:
    service, listener = Models({NAME: "STOPPED"}), Listener()

    async def main() -> None:
        await anyio.sleep(100)
        put(service, until_s=50, holder="dead")
        put(service, until_s=900, holder=HOLDER)
        alive = put(service, until_s=900, holder="alive")
        bare = NoLease(service, CATS, holder=HOLDER, now=now, observer=listener)
        await bare.arm()
        assert set(leases(service)) == {alive.key}
        service.errors["list"] = refused("AccessDeniedException")
        await bare.arm()
        for act in (bare.share, bare.keep, bare.disarm):
            await act()

    run_virtual(main)
    assert listener.kinds == ["lease-unknown"]


def test_who_may_not_list_tags_can_still_start() -> None:
    service = Models({NAME: "STOPPED"}, errors={"list": refused("AccessDeniedException")})
    run_virtual(guard(service).arm)
    assert lease_key(HOLDER) in leases(service)


def test_giving_it_back_leaves_other_tags() -> None:
    service = Models({NAME: "STOPPED"})

    async def main() -> None:
        other = put(service, until_s=200)
        found = guard(service)
        await found.arm()
        await found.disarm()
        await found.disarm()
        assert set(leases(service)) == {other.key}

    run_virtual(main)
    assert service.calls.count(f"untag {NAME}") == 1


def test_a_lease_that_cannot_be_given_back_is_said_to_stay() -> None:
    for error in (refused("AccessDeniedException"), None):
        service, listener = Models({NAME: "STOPPED"}), Listener()

        async def main(service: Models = service, listener: Listener = listener, error: Any = error) -> None:
            found = guard(service, listener)
            await found.arm()
            if error is not None:
                service.errors["untag"] = error
            else:
                service.untag_resource = lambda **_: anyio.sleep_forever()  # type: ignore[method-assign]
            await found.disarm()
            assert anyio.current_time() < 60

        run_virtual(main)
        assert listener.kinds == ["lease-left"]


def test_a_user_of_a_leased_model_keeps_it_from_being_reaped_until_it_is_done() -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        put(service, until_s=300, holder="starter")
        user = guard(service)
        await user.share()
        assert leases(service)[lease_key(HOLDER)].role is Role.USING

        async def two_hours() -> None:
            for _ in range(120):
                await anyio.sleep(60)
                assert verdict(service) is Action.LEAVE

        await beside(user, two_hours)
        await user.disarm()
        assert verdict(service) is Action.STOP, "its starter died long ago"

    run_virtual(main)


def test_a_user_of_a_model_without_lease_takes_none() -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        put(service, until_s=9e9, role=Role.USING, holder="another user")
        user = guard(service)
        await user.share()
        await beside(user, lambda: anyio.sleep(7200))
        await user.disarm()

    run_virtual(main)
    assert [call for call in service.calls if not call.startswith("list")] == []


def test_a_session_that_does_not_stop_the_model_of_a_dead_one_leaves_it_to_be_reaped() -> None:
    service = Models({NAME: "RUNNING"})

    async def main() -> None:
        put(service, until_s=300, holder=HOLDER)
        later = guard(service)
        await later.share()

        async def an_hour() -> None:
            for _ in range(60):
                await anyio.sleep(60)
                assert verdict(service) is Action.LEAVE

        await beside(later, an_hour)
        await later.disarm()
        assert leases(service)[lease_key(HOLDER)].started, "or it would run for ever"
        await anyio.sleep(LENGTH_S)
        assert verdict(service) is Action.STOP

    run_virtual(main)


def test_who_cannot_see_leases_is_told_and_goes_on() -> None:
    service, listener = Models({NAME: "RUNNING"}, errors={"list": refused("AccessDeniedException")}), Listener()
    run_virtual(guard(service, listener).share)
    assert listener.kinds == ["lease-unknown"]


def test_a_start_by_hand_has_a_lease_before_it_starts() -> None:
    service = Models({NAME: "STOPPED"})
    schedules: list[str] = []

    async def remove(name: str) -> None:
        schedules.append(name)

    async def main() -> Lease:
        await anyio.sleep(100)
        put(service, until_s=50, role=Role.SCHEDULED, holder="dead")
        return await start_for(service, CATS, Units(1), seconds=7200, holder="me", now=now, remove_schedule=remove)

    lease = run_virtual(main)
    assert leases(service) == {MANUAL_KEY: lease}
    assert lease.until is not None
    assert (lease.until - EPOCH).total_seconds() == pytest.approx(7300, abs=1)
    assert service.calls[-2:] == [f"tag {NAME}", f"start {NAME}"]
    assert len(schedules) == 1, "the dead one's schedule would stop this one"


@pytest.mark.parametrize("status", ["STARTING", "RUNNING", "STOPPING"])
def test_a_model_that_somebody_runs_gets_no_lease_by_hand(status: str) -> None:
    service = Models({NAME: status})

    async def main() -> None:
        with pytest.raises(ModelError, match=f"is {status} already"):
            await start_for(service, CATS, Units(1), seconds=60, holder="me", now=now)

    run_virtual(main)
    assert service.tags[NAME] == {}


def test_a_start_by_hand_that_is_refused_leaves_no_lease() -> None:
    service = Models({NAME: "STOPPED"}, errors={"start": refused("LimitExceededException")})

    async def main() -> None:
        with pytest.raises(ModelError):
            await start_for(service, CATS, Units(1), seconds=60, holder="me", now=now)

    run_virtual(main)
    assert service.tags[NAME] == {}


def test_clearing_removes_leases_only() -> None:
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


def test_a_lease_stays_while_its_schedule_does() -> None:
    service = Models({NAME: "STOPPED"})

    async def remove(name: str) -> None:
        raise RefusedError(f"{name} stays")

    async def main() -> None:
        put(service, until_s=0, role=Role.SCHEDULED)
        with pytest.raises(RefusedError, match="stays"):
            await clear_leases(service, CATS, remove_schedule=remove)

    run_virtual(main)
    assert len(leases(service)) == 1
