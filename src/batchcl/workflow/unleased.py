"""The event that reports models which run without a lease: `batchcl model reap --alarm`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from batchcl.errors import ExitCode
from batchcl.lifetime.running import RunningModel
from batchcl.monitoring import Event
from batchcl.quantities import pluralize

__all__ = ["age_text", "unleased", "unleased_event"]

_MINUTE_S = 60
_HOUR_S = 3600


def unleased(models: Iterable[RunningModel], *, older_than_s: float = 0) -> list[RunningModel]:
    """The models without a lease, which nothing stops.

    Args:
        models: running models.
        older_than_s: exclude models that are STARTING or younger. One of unknown age counts as older.
    """
    return [
        model
        for model in models
        if model.is_leased is False
        and not (older_than_s and (model.status == "STARTING" or _is_younger(model, older_than_s)))
    ]


def _is_younger(model: RunningModel, seconds: float) -> bool:
    return model.age_s is not None and model.age_s < seconds


def unleased_event(models: Sequence[RunningModel], *, unread: Sequence[str] = ()) -> Event:
    """The event to send with `batchcl.monitoring.send_event`.

    Args:
        models: the models without a lease. Without any, the event is a success.
        unread: regions that did not respond. If there are any, the event is not a success.
    """
    if models:
        found = "; ".join(f"{each.model} in {each.region}, {_since(each)}" for each in models)
        text = (
            f"{pluralize(len(models), 'model')} without a lease, which nothing stops: {found}; stop with "
            "`batchcl model stop`"
        )
    else:
        text = "no model runs without a lease"
    if unread:
        text = f"{text}; no response from {', '.join(unread)}"
    fields = ("model", "arn", "region", "status", "min_units", "max_units", "age_s", "cost_usd")
    return Event(
        kind="models-without-lease",
        text=text,
        severity="warning" if models else "info",
        exit_code=ExitCode.FAILURES if models else ExitCode.STOPPED if unread else ExitCode.DONE,
        fields={"models": [{name: getattr(each, name) for name in fields} for each in models]},
        gauges={"batchcl_models_without_lease": float(len(models))},
    )


def _since(model: RunningModel) -> str:
    if model.age_s is None:
        return "age unknown"
    cost = "" if model.cost_usd is None else f", ${model.cost_usd:,.2f} so far"
    return f"running for {age_text(model.age_s)}{cost}"


def age_text(seconds: float) -> str:
    """An age in its two largest units, such as `3d4h`, `5h2m` or `7m`."""
    minutes = round(seconds) // _MINUTE_S
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days}d{hours}h"
    return f"{hours}h{minutes}m" if hours else f"{minutes}m"
