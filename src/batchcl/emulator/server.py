"""The emulator on the wire: an HTTP server that authenticates, counts, decodes, calls and encodes."""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import orjson
from aiohttp import web
from threadpoolctl import threadpool_limits

from batchcl.emulator import protocol
from batchcl.emulator.buckets import DirectoryBuckets, NoBuckets, S3Buckets
from batchcl.emulator.capacity import Capacity
from batchcl.emulator.clock import SystemClock
from batchcl.emulator.dataset_files import DatasetFiles
from batchcl.emulator.faults import ServiceError
from batchcl.emulator.operations import OPERATIONS
from batchcl.emulator.service import Call, Service
from batchcl.emulator.signature import Verifier, known_credentials
from batchcl.emulator.state import State
from batchcl.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchcl.emulator.buckets import Buckets
    from batchcl.emulator.clock import Clock
    from batchcl.emulator.settings import EmulatorSettings

__all__ = ["Listening", "serve"]

_log: Final = logging.getLogger(__name__)

_LARGEST_BODY: Final = 24 * 1024 * 1024
_GRACE_S: Final = 1.0
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """Where an emulator listens, and where it keeps its state."""

    endpoint: str
    state: Path


async def serve(
    settings: EmulatorSettings,
    *,
    listening: Callable[[Listening], None],
    until: anyio.Event,
    environment: Mapping[str, str],
    clock: Clock | None = None,
) -> None:
    """Run an emulator until `until` is set.

    Args:
        settings: how.
        listening: called once, when the first request can be answered.
        until: ends the emulator; a training in progress is given up.
        environment: where `known_credentials` looks.
        clock: None for the machine's own.

    Raises:
        RefusedError: the port is taken, or the state folder can't be had.
        UsageError: --buckets is not a folder, or the environment's credentials are malformed.
    """
    clock = clock or SystemClock()
    verifier = Verifier(known_credentials(environment))
    async with AsyncExitStack() as stack:
        directory = settings.state
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchcl-emulator-")))
        state = State.open(directory)
        stack.callback(state.close)
        # images are looked at in several threads; a linear algebra that splits each one further only gets in their way
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        buckets = await _buckets(settings, stack)
        listener = stack.enter_context(_bind(settings))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        service = Service(
            settings=settings,
            clock=clock,
            state=state,
            dataset_files=DatasetFiles(state),
            buckets=buckets,
            capacity=Capacity(
                tps_per_unit=settings.tps_per_unit,
                account_tps=settings.account_tps,
                control_tps=settings.control_tps,
            ),
            tasks=tasks,
            threads=anyio.CapacityLimiter(max(2, os.cpu_count() or 2)),
        )
        stack.callback(tasks.cancel_scope.cancel)
        await _listen(_Front(service, verifier), listener, stack)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        listening(Listening(f"http://{host}:{listener.getsockname()[1]}", directory))
        try:
            await until.wait()
        finally:
            service.closing = True


class _Front:
    """Between HTTP and the operations."""

    def __init__(self, service: Service, verifier: Verifier) -> None:
        self._service = service
        self._verifier = verifier

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request, whatever it is."""
        request_id = str(uuid.uuid4())
        try:
            body = await self._answer(request)
        except ServiceError as error:
            return _error(error, request_id)
        except web.HTTPRequestEntityTooLarge:
            too_large = ServiceError("RequestEntityTooLargeException", "Request is too large", status=413)
            return _error(too_large, request_id)
        except Exception:  # noqa: BLE001 - the last place: logged, and the client gets its 500
            _log.exception("request %s failed", request_id)
            return _error(
                ServiceError("InternalServerError", "Amazon Rekognition experienced a service issue.", status=500),
                request_id,
            )
        return _response(body, request_id, 200)

    async def _answer(self, request: web.Request) -> bytes:
        body = await request.read()
        caller = self._verifier.verify(
            method=request.method,
            path=request.rel_url.raw_path,
            query=request.rel_url.raw_query_string,
            headers=list(request.headers.items()),
            body=body,
            now=self._service.clock.time(),
        )
        name = request.headers.get("X-Amz-Target", "").removeprefix(protocol.TARGET_PREFIX)
        operation = OPERATIONS.get(name)
        if request.method != "POST" or operation is None:
            why = "is not in the emulator yet" if name in protocol.operation_names() else "is unknown"
            raise ServiceError("UnknownOperationException", f"The operation {name!r} {why}.")
        self._service.capacity.admit_call(
            name, account=caller.account, region=caller.region, now=self._service.clock.monotonic()
        )
        parameters = protocol.decode(name, body)
        if name != "DetectCustomLabels":  # which looks at its one version only: the quick way
            self._service.state.settle(self._service.clock.time())
        call = Call(
            service=self._service,
            operation=name,
            account=caller.account,
            region=caller.region,
            now=self._service.clock.time(),
        )
        return protocol.encode(name, await operation(call, parameters))


def _error(error: ServiceError, request_id: str) -> web.Response:
    body = {"__type": error.code, "Code": error.code, "Logref": str(uuid.uuid4()), "Message": str(error)}
    return _response(orjson.dumps(body), request_id, error.status)


def _response(body: bytes, request_id: str, status: int) -> web.Response:
    headers = {"x-amzn-RequestId": request_id, "Content-Type": protocol.CONTENT_TYPE}
    return web.Response(body=body, status=status, headers=headers)


async def _buckets(settings: EmulatorSettings, stack: AsyncExitStack) -> Buckets:
    if settings.buckets is not None:
        if not settings.buckets.is_dir():
            raise UsageError(f"--buckets {settings.buckets} is not a folder")
        return DirectoryBuckets(settings.buckets)
    if settings.s3_endpoint_url is not None:
        return await S3Buckets.open(settings.s3_endpoint_url, stack)
    return NoBuckets()


def _bind(settings: EmulatorSettings) -> socket.socket:
    """Take the port; done before anything runs, so that a refusal is the plain error."""
    try:
        family, kind, protocol_number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol_number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program has that port; give another --port, or 0 for a free one" if taken else error.strerror
        raise RefusedError(f"the emulator can't listen on {settings.host}:{settings.port}: {why}") from error
    return listener


async def _listen(front: _Front, listener: socket.socket, stack: AsyncExitStack) -> None:
    """Serve on `listener`; `stack` ends it."""
    application = web.Application(client_max_size=_LARGEST_BODY)
    application.router.add_route("*", "/{path:.*}", front.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_GRACE_S, handle_signals=False)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=_BACKLOG).start()
