"""What the emulator tells and takes beside the API: its meter, its faults and its clock, below `/_emulator/`."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchcl.emulator.fault_injection import Faults, parse_faults
from batchcl.errors import UsageError

if TYPE_CHECKING:
    from batchcl.emulator.service import EmulatorService

__all__ = ["add_routes", "refuse_foreign", "usage"]

_HOUR_S: Final = 3600
_ADMIN: Final = "/_emulator/"


@web.middleware
async def refuse_foreign(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a page in a browser on this machine might send, as it can reach loopback.

    Such a page always says where it comes from. If its own name was made to lead to this machine (DNS rebinding), it
    doesn't, but then its requests carry that name as their Host.
    """
    if not _is_loopback(request.headers.get("Host", "")):
        what = "The emulator answers to this machine's own names only; call it as http://127.0.0.1:PORT."
    elif request.path.startswith(_ADMIN) and "Origin" in request.headers:
        what = "The emulator's own pages are not for browsers."
    else:
        return await handler(request)
    return _json({"__type": "AccessDeniedException", "Message": what}, status=403)


def add_routes(application: web.Application, service: EmulatorService) -> None:
    """Serve `/_emulator/usage`, `faults` and `clock`. No signature is asked for: the emulator is on loopback."""

    async def show_usage(_: web.Request) -> web.Response:
        return _json(usage(service, now=service.clock.time()))

    async def show_faults(_: web.Request) -> web.Response:
        return _json(service.injector.report())

    async def set_faults(request: web.Request) -> web.Response:
        try:
            plan = parse_faults(orjson.loads(await request.read()), where="the request")
        except (UsageError, orjson.JSONDecodeError) as error:
            return _json({"error": str(error)}, status=400)
        service.injector.replace(plan, now=service.clock.monotonic())
        return _json(service.injector.report())

    async def clear_faults(_: web.Request) -> web.Response:
        service.injector.replace(Faults(), now=service.clock.monotonic())
        return _json(service.injector.report())

    async def show_clock(_: web.Request) -> web.Response:
        return _json(_clock(service))

    async def set_clock(request: web.Request) -> web.Response:
        try:
            wanted = _Forward.model_validate_json(await request.read())
        except ValidationError as error:
            return _json({"error": f"the request can't be used: {error.errors()[0]['msg']}"}, status=400)
        if wanted.ahead_seconds < service.clock.ahead_s:
            ahead_s = service.clock.ahead_s
            return _json({"error": f"time doesn't go back: the clock is {ahead_s:g} s ahead already"}, status=400)
        service.clock.ahead_s = wanted.ahead_seconds
        return _json(_clock(service))

    application.router.add_get("/_emulator/clock", show_clock)
    application.router.add_put("/_emulator/clock", set_clock)
    application.router.add_get("/_emulator/usage", show_usage)
    application.router.add_get("/_emulator/faults", show_faults)
    application.router.add_put("/_emulator/faults", set_faults)
    application.router.add_delete("/_emulator/faults", clear_faults)


def usage(service: EmulatorService, *, now: float) -> dict[str, Any]:
    """Billed hours of each version that ever trained or ran, deleted ones too, and in all."""
    state = service.state
    state.settle(now)
    versions = {}
    for version in state.versions.values():
        service.scale(version, now=now)
        version.meter(now)
        versions[version.arn] = {
            "status": version.status,
            "units_in_service": version.units or 0,
            "inference_unit_hours": version.unit_seconds / _HOUR_S,
            "training_hours": 0.0 if version.source_arn else (version.billable_seconds or 0) / _HOUR_S,
        }
    for arn, (unit_seconds, training_seconds) in state.deleted_usage.items():
        versions[arn] = {
            "status": "DELETED",
            "units_in_service": 0,
            "inference_unit_hours": unit_seconds / _HOUR_S,
            "training_hours": training_seconds / _HOUR_S,
        }
    totals = {
        name: sum(float(str(each[name])) for each in versions.values())
        for name in ("inference_unit_hours", "training_hours")
    }
    return {"versions": versions, **totals}


class _Forward(BaseModel):
    """The body of a request to `/_emulator/clock`; at most a year."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ahead_seconds: float = Field(ge=0, le=365 * 24 * _HOUR_S, allow_inf_nan=False)


def _clock(service: EmulatorService) -> dict[str, Any]:
    now = dt.datetime.fromtimestamp(service.clock.time(), dt.UTC)
    return {"ahead_seconds": service.clock.ahead_s, "now": now.isoformat(timespec="seconds")}


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine: a loopback address or localhost, with any port."""
    name, _, port = host.rpartition(":")
    if not port.isdigit():
        name = host
    name = name.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _json(body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body) + b"\n", status=status, content_type="application/json")
