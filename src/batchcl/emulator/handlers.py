"""Handles HTTP requests: checks signatures, injects faults, calls the operation, and encodes the response."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import uuid
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

import anyio
import orjson
from aiohttp import web

from batchcl.emulator import protocol
from batchcl.emulator.errors import ApiError
from batchcl.emulator.operations import OPERATIONS
from batchcl.emulator.other_services import STS, answer_quotas, answer_sts, other_service, sts_error
from batchcl.emulator.service import Call

if TYPE_CHECKING:
    from batchcl.emulator.fault_injection import Injection
    from batchcl.emulator.service import EmulatorService
    from batchcl.emulator.signature import Caller, Verifier

__all__ = ["RequestHandler"]

_log: Final = logging.getLogger(__name__)

_INTERNAL_ERROR: Final = 500


class RequestHandler:
    """Handles requests to the API of Rekognition and of the two other services."""

    def __init__(self, service: EmulatorService, verifier: Verifier) -> None:
        self._service = service
        self._verifier = verifier

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Respond to one request."""
        request_id = str(uuid.uuid4())
        if (other := other_service(request)) is not None:
            return await self._answer_other_service(request, other, request_id)
        name = request.headers.get("X-Amz-Target", "").removeprefix(protocol.TARGET_PREFIX)
        injection = self._service.injector.draw(name, now=self._service.clock.monotonic())
        if injection.latency_s:
            await anyio.sleep(injection.latency_s)
        if injection.wire == "reset":
            _reset(request)
            return web.Response()
        headers = {
            "x-amzn-RequestId": request_id,
            "Content-Type": protocol.CONTENT_TYPE,
            "Date": formatdate(self._service.clock.time() + injection.skew_s, usegmt=True),
        }
        if injection.wire == "http-503":
            headers["Content-Type"] = "text/html"
            page = b"<html><body><h1>503 Service Unavailable</h1></body></html>"
            return web.Response(body=page, status=503, headers=headers)
        body, status = await self._outcome(request, name, injection, request_id)
        if injection.wire == "malformed":
            body = body[:-1] + b"\x00"
        if injection.wire == "truncated":
            return await _send_half(request, body, status, headers)
        return web.Response(body=body, status=status, headers=headers)

    async def _outcome(
        self, request: web.Request, name: str, injection: Injection, request_id: str
    ) -> tuple[bytes, int]:
        """Body and status of the response."""
        try:
            return await self._answer(request, name, injection), 200
        except ApiError as error:
            return _error(error), error.status
        except web.HTTPRequestEntityTooLarge:
            too_large = ApiError("RequestEntityTooLargeException", "Request is too large", status=413)
            return _error(too_large), too_large.status
        except Exception:  # noqa: BLE001 - logged, and the client gets a 500
            _log.exception("request %s failed", request_id)
            message = "Amazon Rekognition experienced a service issue."
            return _error(ApiError("InternalServerError", message)), _INTERNAL_ERROR

    async def _answer_other_service(self, request: web.Request, name: str, request_id: str) -> web.Response:
        """Respond for STS or Service Quotas; faults are only injected into Rekognition."""
        try:
            body = await request.read()
            caller = self._caller(request, body, skew_s=0.0, service=name)
            if name == STS:
                response = answer_sts(body, caller, request_id)
            else:
                quota = answer_quotas(
                    request.headers["X-Amz-Target"],
                    body,
                    caller,
                    account_tps=self._service.settings.account_tps,
                    quotas=self._service.quotas,
                )
                response = web.Response(body=quota)
        except ApiError as error:
            response = sts_error(error, request_id) if name == STS else web.Response(body=_error(error), status=400)
        response.headers["x-amzn-RequestId"] = request_id
        response.headers["Date"] = formatdate(self._service.clock.time(), usegmt=True)
        return response

    def _caller(self, request: web.Request, body: bytes, *, skew_s: float, service: str) -> Caller:
        return self._verifier.verify(
            method=request.method,
            path=request.rel_url.raw_path,
            query=request.rel_url.raw_query_string,
            headers=list(request.headers.items()),
            body=body,
            now=self._service.clock.signed_time() + skew_s,
            service=service,
        )

    async def _answer(self, request: web.Request, name: str, injection: Injection) -> bytes:
        service = self._service
        body = await request.read()
        caller = self._caller(request, body, skew_s=injection.skew_s, service="rekognition")
        operation = OPERATIONS.get(name)
        if request.method != "POST" or operation is None:
            reason = "is not one of Custom Labels" if name in protocol.operation_names() else "is unknown"
            raise ApiError("UnknownOperationException", f"The operation {name!r} {reason}.")
        if injection.error is not None:
            raise injection.error
        service.capacity.admit_call(name, account=caller.account, region=caller.region, now=service.clock.monotonic())
        parameters = protocol.decode(name, body)
        now = service.clock.time()
        if name != "DetectCustomLabels":  # fast path: it settles only its own version
            service.state.settle(now)
        if injection.stops:
            self._stop_model(parameters, now)
        call = Call(service=service, operation=name, account=caller.account, region=caller.region, now=now)
        return protocol.encode(name, await operation(call, parameters))

    def _stop_model(self, parameters: dict[str, Any], now: float) -> None:
        state = self._service.state
        version = state.version(parameters.get("ProjectVersionArn", ""), now=now)
        if version is not None and version.status == "RUNNING":
            self._service.halt(version, "STOPPED", "The model stopped because of an injected fault.", now=now)
            state.save()


def _error(error: ApiError) -> bytes:
    body = {"__type": error.code, "Code": error.code, "Logref": str(uuid.uuid4()), "Message": str(error)}
    return orjson.dumps(body)


def _reset(request: web.Request) -> None:
    """Close the connection with a TCP reset."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _send_half(request: web.Request, body: bytes, status: int, headers: dict[str, str]) -> web.StreamResponse:
    """Send the Content-Length of the whole body but only half of it, and close the connection."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()  # after what was written is sent
    return response
