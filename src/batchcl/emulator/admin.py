"""The emulator's own HTTP routes below `/_emulator/`: usage, faults and the clock."""

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
    """Refuse requests of web pages in a browser on this machine, which can reach loopback addresses.

    Their requests have an Origin header or, with DNS rebinding, the page's own host name in the Host header.
    """
    if not _is_loopback(request.headers.get("Host", "")):
        message = "The emulator only accepts names of this machine as Host. Use http://127.0.0.1:PORT."
    elif request.path.startswith(_ADMIN) and "Origin" in request.headers:
        message = "The routes below /_emulator/ are not available to browsers."
    else:
        return await handler(request)
    return _json({"__type": "AccessDeniedException", "Message": message}, status=403)


def add_routes(application: web.Application, service: EmulatorService) -> None:
    """Add `/_emulator/usage`, `faults` and `clock`. They need no signature: the emulator is on a loopback address."""

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
            body = _SetClock.model_validate_json(await request.read())
        except ValidationError as error:
            return _json(
                {"error": f'setting the clock failed: {error.errors()[0]["msg"]}. Send {{"ahead_seconds": N}}.'},
                status=400,
            )
        if body.ahead_seconds < service.clock.ahead_s:
            ahead_s = service.clock.ahead_s
            return _json(
                {"error": f"setting the clock failed: it can't be set back, and is already {ahead_s:g} s ahead"},
                status=400,
            )
        service.clock.ahead_s = body.ahead_seconds
        return _json(_clock(service))

    application.router.add_get("/_emulator/clock", show_clock)
    application.router.add_put("/_emulator/clock", set_clock)
    application.router.add_get("/_emulator/usage", show_usage)
    application.router.add_get("/_emulator/faults", show_faults)
    application.router.add_put("/_emulator/faults", set_faults)
    application.router.add_delete("/_emulator/faults", clear_faults)


def usage(service: EmulatorService, *, now: float) -> dict[str, Any]:
    """Billed hours of each version, including deleted ones, and in total. `now` is in seconds since the epoch."""
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


class _SetClock(BaseModel):
    """Body of a PUT to `/_emulator/clock`; at most one year."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ahead_seconds: float = Field(ge=0, le=365 * 24 * _HOUR_S, allow_inf_nan=False)


def _clock(service: EmulatorService) -> dict[str, Any]:
    now = dt.datetime.fromtimestamp(service.clock.time(), dt.UTC)
    return {"ahead_seconds": service.clock.ahead_s, "now": now.isoformat(timespec="seconds")}


def _is_loopback(host: str) -> bool:
    """Whether a Host header is a loopback address or localhost, with any port."""
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
