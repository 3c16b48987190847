"""When the keeper arms and disarms what stops the model without it."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from batchcl.aws.arn import ModelArn
from batchcl.lifetime.manager import ModelManager
from batchcl.aws.lifecycle import Units
from batchcl.errors import BatchclError, CredentialsError, ModelError, RefusedError, StoppedError, UnreachableError
from batchcl.scoring.stopper import Stopper
from unit.aws.models_service import Listener, Models, arn_of, refused
from virtual import run_virtual

NAME = "cats@v1"


class Recorder:
    """A guard that writes down what it is told beside the calls of the service."""

    def __init__(self, service: Models, *, refuses: BatchclError | None = None) -> None:
        self._service = service
        self._refuses = refuses

    async def arm(self) -> None:
        self._service.calls.append("ARM")
        if self._refuses is not None:
            raise self._refuses

    async def share(self) -> None:
        self._service.calls.append("SHARE")

    async def keep(self) -> None:
        self._service.calls.append("KEEP")

    async def disarm(self) -> None:
        self._service.calls.append("DISARM")


def session(
    service: Models,
    *,
    units: Units | None = Units(1),  # noqa: B008 - frozen
    keep: bool = False,
    adopted: bool = False,
    handed_over: bool = False,
    refuses: BatchclError | None = None,
) -> tuple[list[str], BatchclError | None]:
    """What was done in its order, and how it ended."""

    async def main() -> BatchclError | None:
        keeper = ModelManager(
            service,
            ModelArn.parse(arn_of(NAME)),
            units=units,
            keep=keep,
            guards=[Recorder(service, refuses=refuses)],
            observer=Listener(),
            stopper=Stopper(),
        )
        if adopted:
            keeper.adopt()
        try:
            async with keeper.stopping():
                await keeper.have_running()
                await keeper.keep_guarded()
                service.calls.append("SCORE")
                if handed_over:
                    keeper.hand_over()
        except BatchclError as error:
            return error
        return None

    end = run_virtual(main)
    telling = {"ARM", "SHARE", "KEEP", "DISARM", "SCORE", f"start {NAME}", f"stop {NAME}"}
    return [call.removesuffix(f" {NAME}") for call in service.calls if call in telling], end


def test_it_is_armed_before_the_start_and_disarmed_after_the_stop() -> None:
    done, end = session(Models({NAME: "STOPPED"}))
    assert done == ["ARM", "start", "KEEP", "SCORE", "stop", "DISARM"]
    assert end is None


def test_a_model_that_cannot_be_guarded_is_not_started() -> None:
    service = Models({NAME: "STOPPED"})
    done, end = session(service, refuses=RefusedError("no tags here"))
    assert done == ["ARM", "DISARM", "DISARM"]
    assert str(end) == "no tags here"
    assert service.statuses[NAME] == "STOPPED"


def test_a_kept_model_is_no_longer_guarded() -> None:
    service = Models({NAME: "STOPPED"})
    assert session(service, keep=True)[0] == ["ARM", "start", "KEEP", "SCORE", "DISARM"]
    assert service.statuses[NAME] == "RUNNING"


@pytest.mark.parametrize("units", [None, Units(1)])
def test_a_model_that_somebody_else_runs_is_shared(units: Units | None) -> None:
    service = Models({NAME: "RUNNING"})
    assert session(service, units=units)[0] == ["SHARE", "KEEP", "SCORE", "DISARM"]
    assert service.statuses[NAME] == "RUNNING"


def test_the_model_of_a_session_that_died_is_guarded_again() -> None:
    service = Models({NAME: "RUNNING"})
    assert session(service, adopted=True)[0] == ["ARM", "KEEP", "SCORE", "stop", "DISARM"]


def test_when_somebody_was_faster_it_is_shared_rather_than_guarded() -> None:
    service = Models({NAME: "STOPPED"})

    async def too_late(**_: Any) -> None:
        service.calls.append(f"start {NAME}")
        service.statuses[NAME] = "RUNNING"
        raise refused("ResourceInUseException")

    service.start_project_version = too_late  # type: ignore[method-assign]
    assert session(service)[0] == ["ARM", "start", "DISARM", "SHARE", "KEEP", "SCORE", "DISARM"]
    assert service.statuses[NAME] == "RUNNING"


@pytest.mark.parametrize(
    ("code", "kind"), [("LimitExceededException", ModelError), ("AccessDeniedException", CredentialsError)]
)
def test_a_start_that_is_refused_is_no_longer_guarded(code: str, kind: type[RefusedError]) -> None:
    done, end = session(Models({NAME: "STOPPED"}, errors={"start": refused(code)}))
    assert done[:2] == ["ARM", "start"]
    assert done[-1] == "DISARM"
    assert isinstance(end, kind)


def test_a_start_without_an_answer_stays_guarded_as_it_may_have_come_through() -> None:
    """The description still shows STOPPED: nobody can tell."""
    done, end = session(Models({NAME: "STOPPED"}, errors={"start": refused("InternalServerError", 500)}))
    assert done == ["ARM", "start"]
    assert isinstance(end, UnreachableError)


def test_a_model_that_cannot_be_stopped_stays_guarded() -> None:
    done, end = session(Models({NAME: "STOPPED"}, errors={"stop": refused("InternalServerError", 500)}))
    assert done[:4] == ["ARM", "start", "KEEP", "SCORE"]
    assert "DISARM" not in done
    assert isinstance(end, StoppedError)


def test_who_may_not_see_the_model_can_use_it_all_the_same() -> None:
    errors: dict[str, Exception] = {"describe": refused("AccessDeniedException")}
    done, end = session(Models({NAME: "RUNNING"}, errors=errors), units=None)
    assert (done, end) == (["KEEP", "SCORE", "DISARM"], None)
    done, end = session(Models({NAME: "RUNNING"}, errors=errors))
    assert isinstance(end, CredentialsError)


def test_a_stop_that_fails_after_a_long_start_is_tried_again() -> None:
    service = Models({NAME: "RUNNING"})
    describe, looks, stop, stops = service.describe_projects, count(), service.stop_project_version, count()

    async def slowly(**arguments: Any) -> dict[str, Any]:
        service.statuses[NAME] = "STARTING" if next(looks) in range(1, 100) else "RUNNING"
        return await describe(**arguments)

    async def at_the_second_try(**arguments: Any) -> None:
        if not next(stops):
            raise refused("InternalServerError", 500)
        await stop(**arguments)

    service.describe_projects = slowly  # type: ignore[method-assign]
    service.stop_project_version = at_the_second_try  # type: ignore[method-assign]
    done, end = session(service, adopted=True)
    assert done == ["ARM", "KEEP", "SCORE", "stop", "DISARM"]
    assert end is None


def test_a_model_that_never_gets_to_run_is_waited_for_again_and_then_named() -> None:
    service = Models({NAME: "RUNNING"})
    describe, looks = service.describe_projects, count()

    async def stuck(**arguments: Any) -> dict[str, Any]:
        service.statuses[NAME] = "STARTING" if next(looks) else "RUNNING"
        return await describe(**arguments)

    service.describe_projects = stuck  # type: ignore[method-assign]
    done, end = session(service, adopted=True)
    assert "DISARM" not in done
    assert isinstance(end, StoppedError)
    assert f"batchcl model stop {arn_of(NAME)}" in str(end)
    assert next(looks) > 2 * 45 * 60 / 15, "a first wait of 45 minutes, and another try"


def test_a_model_that_is_handed_over_stays_as_it_is_with_its_guards() -> None:
    service = Models({NAME: "STOPPED"})
    assert session(service, handed_over=True) == (["ARM", "start", "KEEP", "SCORE"], None)
    assert service.statuses[NAME] == "RUNNING"
