"""The model manager with a fake service: when it tags, starts, hands over and stops."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import anyio
import pytest
from botocore.exceptions import ConnectionClosedError

from batchcl.arns import ModelArn
from batchcl.errors import BatchclError, CredentialsError, ModelError, RefusedError, StoppedError
from batchcl.events import Notice, Progress
from batchcl.lifetime.lease_tags import LeaseTag, Role, lease_key
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease
from batchcl.lifetime.state_machine import ModelState
from batchcl.quantities import Units
from batchcl.stop_signal import StopSignal
from fake_rekognition import EPOCH, Models, arn_of, now, refused
from observers import RecordingObserver
from virtual import run_virtual

NAME = "cats@v1"
CATS = ModelArn.parse(arn_of(NAME))
HOLDER = "run a in s3://b"
KEY = lease_key(HOLDER)
LENGTH_S = 900.0
LOST = ConnectionClosedError(endpoint_url="https://x", request=None, error=OSError("reset"))


@dataclass
class Session:
    """One session of a run with the fake service."""

    service: Models
    units: Units | None = Units(1)  # noqa: RUF009 - frozen
    keep: bool = False
    leased: bool = True
    adopts: bool = False
    observer: Any = field(default_factory=RecordingObserver)
    stop_signal: StopSignal = field(default_factory=StopSignal)
    work: Callable[[Session], Awaitable[None]] | None = None
    manager: ModelManager = field(init=False)

    async def run(self) -> BatchclError | None:
        """Run the session; returns the error that ended it."""
        lease = ModelLease(
            self.service, CATS, key=KEY, holder=HOLDER, length_s=LENGTH_S if self.leased else None, now=now
        )
        self.manager = ModelManager(
            self.service,
            CATS,
            units=self.units,
            keep=self.keep,
            lease=lease,
            observer=self.observer,
            stop_signal=self.stop_signal,
        )
        if self.adopts:
            self.manager.adopt()
        try:
            async with self.manager.stopping():
                await self.manager.ensure_running()
                self.service.calls.append("SCORE")
                if self.work is not None:
                    await self.work(self)
        except BatchclError as error:
            return error
        return None


def session(service: Models, **options: Any) -> tuple[list[str], BatchclError | None]:
    """Run a session; returns its calls in order, and the error that ended it."""
    end = run_virtual(Session(service, **options).run)
    relevant = {"SCORE", *(f"{verb} {NAME}" for verb in ("start", "stop", "tag", "untag"))}
    return [call.removesuffix(f" {NAME}") for call in service.calls if call in relevant], end


def put(service: Models, role: Role, *, until_s: float, holder: str = HOLDER) -> None:
    until = EPOCH + dt.timedelta(seconds=until_s)
    lease = LeaseTag(key=lease_key(holder), role=role, until=until, holder=holder)
    service.tags[NAME][lease.key] = lease.value


def lose_responses(service: Models, operation: str, error: Exception, *, times: int, takes_effect: bool) -> None:
    """Let the first `times` calls of an operation raise `error`, after or before taking effect."""
    act, calls = getattr(service, operation), count()

    async def lossy(**arguments: Any) -> None:
        is_lost = next(calls) < times
        if takes_effect or not is_lost:
            await act(**arguments)
        else:
            service.calls.append(f"{operation.partition('_')[0]} {NAME}")
        if is_lost:
            raise error

    setattr(service, operation, lossy)


def test_the_tag_is_written_before_start_and_removed_after_stop() -> None:
    service = Models({NAME: "STOPPED"}, start_s=300, stop_s=60)
    done, end = session(service)
    assert done == ["tag", "start", "SCORE", "tag", "stop", "untag"]
    assert (end, service.tags[NAME]) == (None, {})


def test_a_model_that_is_stopping_is_started_when_it_has_stopped() -> None:
    """Also on a machine that has been up for days, as the loop's clock shows."""
    service = Models({NAME: "STOPPING"})

    async def main() -> BatchclError | None:
        service.due[NAME] = (anyio.current_time() + 60, "STOPPED")
        return await Session(service).run()

    assert run_virtual(main, start_s=1e6) is None
    assert f"start {NAME}" in service.calls


def test_a_model_that_cannot_be_tagged_is_not_started() -> None:
    service = Models({NAME: "STOPPED"}, errors={"tag": refused("AccessDeniedException")})
    done, end = session(service)
    assert done == ["tag"]
    assert isinstance(end, CredentialsError)
    assert "was not started without its lease" in str(end)
    assert service.statuses[NAME] == "STOPPED"


def test_a_kept_model_loses_its_tag() -> None:
    service = Models({NAME: "STOPPED"})
    assert session(service, keep=True)[0] == ["tag", "start", "SCORE", "untag"]
    assert service.statuses[NAME] == "RUNNING"


@pytest.mark.parametrize("units", [None, Units(1)])
@pytest.mark.parametrize("status", ["RUNNING", "STARTING"])
def test_a_model_started_by_others_is_never_stopped(units: Units | None, status: str) -> None:
    service = Models({NAME: status}, due={NAME: (100.0, "RUNNING")})
    assert session(service, units=units) == (["SCORE"], None)
    assert service.statuses[NAME] == "RUNNING"


@pytest.mark.parametrize("until_s", [-1.0, 500.0])
def test_a_session_adopts_the_model_of_an_earlier_session(until_s: float) -> None:
    service = Models({NAME: "RUNNING"})
    put(service, Role.STARTED, until_s=until_s)
    assert session(service)[0] == ["tag", "SCORE", "tag", "stop", "untag"]


def test_a_session_does_not_adopt_a_model_whose_tag_is_gone() -> None:
    """The run was killed, its model was reaped, and then started by other means."""
    service = Models({NAME: "RUNNING"})
    assert session(service, adopts=True) == (["SCORE"], None)
    assert service.statuses[NAME] == "RUNNING"


def test_without_a_lease_the_run_record_decides_about_adoption() -> None:
    service = Models({NAME: "RUNNING"})
    assert session(service, adopts=True, leased=False)[0] == ["SCORE", "stop"]
    service = Models({NAME: "STOPPED"})
    assert session(service, leased=False)[0] == ["start", "SCORE", "stop"]


@pytest.mark.parametrize("slept_s", [60.0, LENGTH_S + 60])
def test_after_the_lease_expires_a_missing_tag_prevents_the_stop(slept_s: float) -> None:
    async def suspend(each: Session) -> None:
        await anyio.sleep(slept_s)
        if slept_s > LENGTH_S:  # reaped, then started by other means
            each.service.tags[NAME].clear()

    service, listener = Models({NAME: "STOPPED"}), RecordingObserver()
    _, end = session(service, work=suspend, observer=listener)
    assert end is None
    is_stopped = slept_s < LENGTH_S
    assert (service.statuses[NAME] == "STOPPED") is is_stopped
    assert ("model-not-ours" in listener.kinds) is not is_stopped
    assert ("model-stopped" in listener.kinds) is is_stopped


@pytest.mark.parametrize("value", [None, "mine", "2030-01-01T00:00:00Z using somebody"])
def test_a_live_lease_survives_removal_or_change_of_its_tag(value: str | None) -> None:
    async def remove_tag(each: Session) -> None:
        each.service.tags[NAME].clear()
        if value is not None:
            each.service.tags[NAME][KEY] = value

    service = Models({NAME: "STOPPED"})
    assert session(service, work=remove_tag)[1] is None
    assert (service.statuses[NAME], service.tags[NAME]) == ("STOPPED", {})


@pytest.mark.parametrize("error", [LOST, refused("InternalServerError", 500), refused("503", 503), ValueError("cut")])
@pytest.mark.parametrize("takes_effect", [True, False])
def test_after_a_lost_start_response_the_status_decides(error: Exception, *, takes_effect: bool) -> None:
    service = Models({NAME: "STOPPED"}, start_s=300)
    lose_responses(service, "start_project_version", error, times=1, takes_effect=takes_effect)
    done, end = session(service)
    assert end is None
    assert done == ["tag", *["start"] * (1 if takes_effect else 2), "SCORE", "tag", "stop", "untag"]
    assert service.status(NAME) == "STOPPED"


def test_a_start_without_responses_is_sent_three_times() -> None:
    service = Models({NAME: "STOPPED"}, errors={"start": refused("InternalServerError", 500)})
    done, end = session(service)
    assert done == ["tag", "start", "start", "start"]
    assert isinstance(end, StoppedError)
    assert "by `batchcl model reap` after 2026-11-21T" in str(end)
    assert KEY in service.tags[NAME]


def test_a_throttled_start_is_sent_again() -> None:
    service = Models({NAME: "STOPPED"})
    lose_responses(service, "start_project_version", refused("ThrottlingException"), times=3, takes_effect=False)
    done, end = session(service)
    assert (done.count("start"), end) == (4, None)


def test_a_model_that_others_start_first_is_untagged_and_kept() -> None:
    service = Models({NAME: "STOPPED"})

    async def too_late(**_: Any) -> None:
        service.calls.append(f"start {NAME}")
        service.statuses[NAME] = "RUNNING"
        raise refused("ResourceInUseException")

    service.start_project_version = too_late  # type: ignore[method-assign]
    assert session(service) == (["tag", "start", "untag", "SCORE"], None)
    assert service.statuses[NAME] == "RUNNING"


@pytest.mark.parametrize(
    ("code", "kind"), [("LimitExceededException", ModelError), ("AccessDeniedException", CredentialsError)]
)
def test_a_refused_start_leaves_no_tag(code: str, kind: type[RefusedError]) -> None:
    done, end = session(Models({NAME: "STOPPED"}, errors={"start": refused(code)}))
    assert done == ["tag", "start", "untag"]
    assert isinstance(end, kind)


def test_a_model_that_fails_to_start_is_reported_with_reason() -> None:
    service = Models({NAME: "STOPPED"}, start_s=60)
    begin = service.start_project_version

    async def failing(**arguments: Any) -> None:
        await begin(**arguments)
        service.due[NAME] = (service.due[NAME][0], "FAILED")

    service.start_project_version = failing  # type: ignore[method-assign]
    done, end = session(service)
    assert done == ["tag", "start", "untag"]
    assert isinstance(end, ModelError)
    assert "is FAILED and will not become RUNNING" in str(end)


@pytest.mark.parametrize("error", [LOST, refused("InternalServerError", 500), refused("ThrottlingException")])
@pytest.mark.parametrize("takes_effect", [True, False])
def test_after_a_lost_stop_response_the_status_decides(error: Exception, *, takes_effect: bool) -> None:
    service, listener = Models({NAME: "STOPPED"}, stop_s=60), RecordingObserver()
    lose_responses(service, "stop_project_version", error, times=1, takes_effect=takes_effect)
    done, end = session(service, observer=listener)
    assert (done[-1], end) == ("untag", None)
    assert done.count("stop") == (1 if takes_effect else 2)
    assert "its billing has ended" in listener.notices[-1].text


def test_a_model_that_cannot_be_stopped_keeps_its_tag() -> None:
    service, listener = (
        Models({NAME: "STOPPED"}, errors={"stop": refused("InternalServerError", 500)}),
        RecordingObserver(),
    )
    done, end = session(service, observer=listener)
    assert "untag" not in done
    assert isinstance(end, StoppedError)
    assert "could not be stopped" in str(end)
    assert "it is stopped by the same command or by `batchcl model reap` after" in str(end)
    assert "model-stopped" not in listener.kinds
    assert " leaving " in service.tags[NAME][KEY]


def test_a_running_model_is_usable_without_describe_permission() -> None:
    errors: dict[str, Exception] = {"describe": refused("AccessDeniedException")}
    assert session(Models({NAME: "RUNNING"}, errors=errors), units=None) == (["SCORE"], None)
    assert isinstance(session(Models({NAME: "RUNNING"}, errors=errors))[1], CredentialsError)


@pytest.mark.parametrize("start_s", [300.0, 40 * 60.0])
def test_a_stop_requested_during_the_start_waits_for_running(start_s: float) -> None:
    service, stop_signal, listener = Models({NAME: "STOPPED"}, start_s=start_s), StopSignal(), RecordingObserver()
    done, end = _ended_at(service, 100.0, stop_signal=stop_signal, observer=listener)
    assert end is stop_signal.error
    assert done == ["tag", "start", *["tag"] * (len(done) - 4), "stop", "untag"]
    assert listener.kinds[-1] == "model-stopped"


def test_a_starting_model_is_left_after_a_second_signal() -> None:
    """The error says what will stop it; no notice claims that billing has ended."""
    service, listener = Models({NAME: "STOPPED"}, start_s=1800.0), RecordingObserver()
    done, end = _ended_at(service, 100.0, observer=listener, hurry_s=5.0)
    assert done == ["tag", "start"]
    assert isinstance(end, StoppedError)
    assert "is still STARTING, so it could not be stopped" in str(end)
    assert "`batchcl model reap` after" in str(end)
    assert "model-stopped" not in listener.kinds
    assert KEY in service.tags[NAME]


def test_a_starting_model_is_left_at_the_end_of_the_grace() -> None:
    service = Models({NAME: "STOPPED"}, start_s=1800.0)
    begun: list[float] = []

    class Limited(StopSignal):
        def request(self, reason: str, *, by_user: bool = False, limit_s: float = 25.0) -> None:
            begun.append(anyio.current_time())
            super().request(reason, by_user=by_user, limit_s=limit_s)

    observer = RecordingObserver()
    done, end = _ended_at(service, 100.0, observer=observer, stop_signal=Limited())
    assert done == ["tag", "start"]
    assert isinstance(end, StoppedError)
    assert "is still STARTING, so it could not be stopped" in str(end)
    assert "it is stopped by the same command or by `batchcl model reap` after" in str(end)
    assert KEY in service.tags[NAME]
    assert max(begun + observer.times) <= 100 + 25


def test_a_lagging_description_is_not_taken_for_a_stop() -> None:
    """After a start, descriptions say STOPPED for some time."""
    service, stop_signal, listener = Models({NAME: "STOPPED"}), StopSignal(), RecordingObserver()

    async def slowly(**_: Any) -> None:
        service.calls.append(f"start {NAME}")
        stop_signal.request("ended by SIGTERM")
        await anyio.sleep(2)
        service.due[NAME] = (anyio.current_time() + 20, "RUNNING")

    service.start_project_version = slowly  # type: ignore[method-assign]
    done, end = session(service, stop_signal=stop_signal, observer=listener)
    assert end is stop_signal.error
    assert done == ["tag", "start", "tag", "stop", "untag"]


def _ended_at(
    service: Models,
    seconds: float,
    *,
    hurry_s: float | None = None,
    stop_signal: StopSignal | None = None,
    **options: Any,
) -> tuple[list[str], BatchclError | None]:
    each = Session(service, stop_signal=stop_signal or StopSignal(), **options)

    async def main() -> None:
        async def ask() -> None:
            await anyio.sleep(seconds)
            each.stop_signal.request("ended by SIGTERM")
            if hurry_s is not None:
                await anyio.sleep(hurry_s)
                each.stop_signal.hurry()

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            ends.append(await each.run())

    ends: list[BatchclError | None] = []
    run_virtual(main)
    (end,) = ends
    relevant = {"SCORE", *(f"{verb} {NAME}" for verb in ("start", "stop", "tag", "untag"))}
    return [call.removesuffix(f" {NAME}") for call in service.calls if call in relevant], end


def test_an_adopted_model_that_stays_starting_is_reported() -> None:
    service = Models({NAME: "STARTING"})
    put(service, Role.STARTED, until_s=500)
    done, end = session(service, adopts=True)
    assert "untag" not in done
    assert isinstance(end, StoppedError)
    assert f"batchcl model stop {CATS}" in str(end)


def test_after_a_takeover_the_model_and_its_tag_are_kept() -> None:
    async def taken_over(each: Session) -> None:
        each.manager.hand_over()
        assert not each.manager.owned

    service = Models({NAME: "STOPPED"})
    assert session(service, work=taken_over) == (["tag", "start", "SCORE"], None)
    assert (service.statuses[NAME], list(service.tags[NAME])) == ("RUNNING", [KEY])


@pytest.mark.parametrize("role", [Role.STARTED, Role.USING])
def test_the_starter_leaves_a_shared_model_to_other_holders(role: Role) -> None:
    async def shared(each: Session) -> None:
        put(each.service, role, until_s=5000, holder="other")

    service, listener = Models({NAME: "STOPPED"}), RecordingObserver()
    _, end = session(service, work=shared, observer=listener)
    assert (end, service.statuses[NAME], listener.kinds[-1]) == (None, "RUNNING", "model-handed-over")
    assert " leaving " in service.tags[NAME][KEY], "the other tag may belong to a run that did not start the model"


@pytest.mark.parametrize(("role", "is_stopped"), [(Role.STARTED, False), (Role.LEAVING, True)])
def test_the_last_user_stops_a_model_whose_starter_has_left(role: Role, *, is_stopped: bool) -> None:
    async def left(each: Session) -> None:
        put(each.service, role, until_s=5000, holder="starter")

    service = Models({NAME: "RUNNING"})
    put(service, Role.STARTED, until_s=5000, holder="starter")
    _, end = session(service, work=left)
    assert end is None
    assert (service.statuses[NAME] == "STOPPED") is is_stopped
    assert bool(service.tags[NAME]) is not is_stopped


class Broken:
    """An observer with a closed stream or a full disk."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.notices = 0

    def started(self, progress: Progress) -> None:
        raise self.error

    def notice(self, notice: Notice) -> None:
        self.notices += 1
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
def test_failing_observers_do_not_prevent_the_stop(error: Exception) -> None:
    observer = Broken(error)
    service = Models({NAME: "STOPPED"}, start_s=300)
    assert session(service, observer=observer)[1] is None
    assert service.status(NAME) == "STOPPED"
    assert observer.notices == 1  # dropped after its first exception


def test_unreadable_tags_do_not_prevent_the_stop() -> None:
    async def break_service(each: Session) -> None:
        each.service.errors["list"] = refused("InternalServerError", 500)

    service = Models({NAME: "STOPPED"})
    assert session(service, work=break_service)[1] is None
    assert service.statuses[NAME] == "STOPPED"


def test_an_unreachable_model_is_not_reported_as_stopped() -> None:
    async def break_service(each: Session) -> None:
        each.service.errors["describe"] = LOST

    service, listener = Models({NAME: "STOPPED"}), RecordingObserver()
    _, end = session(service, work=break_service, observer=listener)
    assert isinstance(end, StoppedError)
    assert "model-stopped" not in listener.kinds
    assert KEY in service.tags[NAME]


def test_no_stop_is_sent_under_an_expired_lease() -> None:
    async def asleep(each: Session) -> None:
        describe = each.service.describe_projects

        async def slept(**arguments: Any) -> Any:
            if each.manager.state is ModelState.STOPPING and not each.service.calls.count("SLEPT"):
                each.service.calls.append("SLEPT")
                await anyio.sleep(LENGTH_S + 60)
                each.service.tags[NAME].clear()
            return await describe(**arguments)

        each.service.describe_projects = slept  # type: ignore[method-assign]

    service = Models({NAME: "STOPPED"})
    done, end = session(service, work=asleep)
    assert ("stop" in done, end, service.statuses[NAME]) == (False, None, "RUNNING")
