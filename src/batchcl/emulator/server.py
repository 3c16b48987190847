"""Assembles the emulator and runs its HTTP server."""

from __future__ import annotations

import errno
import socket
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from aiohttp import web
from threadpoolctl import threadpool_limits

from batchcl.cores import usable_cores
from batchcl.emulator.admin import add_routes, refuse_foreign, usage
from batchcl.emulator.buckets import DirectoryObjectStore, NoObjectStore, S3ObjectStore
from batchcl.emulator.capacity import Capacity, Latency, Quotas
from batchcl.emulator.dataset_files import DatasetFiles
from batchcl.emulator.fault_injection import load_faults
from batchcl.emulator.handlers import RequestHandler
from batchcl.emulator.service import EmulatorService, ForwardClock, SystemClock
from batchcl.emulator.signature import Verifier, known_credentials
from batchcl.emulator.state import EmulatorState
from batchcl.errors import ErrorCode, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchcl.emulator.buckets import ObjectStore
    from batchcl.emulator.service import Clock
    from batchcl.emulator.settings import EmulatorSettings

__all__ = ["Listening", "serve"]

_MAX_BODY_BYTES: Final = 24 * 1024 * 1024
_SHUTDOWN_TIMEOUT_S: Final = 1.0
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """Endpoint URL and state folder of an emulator that is ready for requests."""

    endpoint: str
    state: Path


async def serve(
    settings: EmulatorSettings,
    *,
    listening: Callable[[Listening], None],
    until: anyio.Event,
    environment: Mapping[str, str],
    clock: Clock | None = None,
    quotas: Quotas | None = None,
) -> None:
    """Run an emulator until `until` is set.

    Args:
        settings: of the emulator.
        listening: called once, when requests can be answered.
        until: ends the emulator; a training in progress is abandoned.
        environment: environment variables with credentials; see `known_credentials`.
        clock: None for the clock of the machine.
        quotas: of accounts; None for the defaults of AWS.

    Raises:
        RefusedError: the port is in use, or the state folder can't be used.
        UsageError: --buckets is not a folder, the faults are invalid, or credentials in the environment are malformed.
    """
    faults = None if settings.faults is None else load_faults(settings.faults)
    forward = ForwardClock(clock or SystemClock())
    verifier = Verifier(known_credentials(environment))
    async with AsyncExitStack() as stack:
        directory = settings.state
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchcl-emulator-")))
        state = EmulatorState.open(directory)
        stack.callback(state.close)
        # images are scored in several threads; further threads of the linear algebra library would slow them down
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        buckets = await _buckets(settings, stack)
        listener = stack.enter_context(_bind(settings))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        service = EmulatorService(
            settings=settings,
            clock=forward,
            state=state,
            dataset_files=DatasetFiles(state),
            buckets=buckets,
            capacity=Capacity(
                tps_per_unit=settings.tps_per_unit,
                account_tps=settings.account_tps,
                control_tps=settings.control_tps,
                seconds_per_megapixel=settings.seconds_per_megapixel,
            ),
            quotas=quotas or Quotas(),
            tasks=tasks,
            threads=anyio.CapacityLimiter(max(2, usable_cores())),
            latency=Latency(
                median_s=settings.latency_ms / 1000, p99_s=settings.latency_p99_ms / 1000, seed=settings.seed
            ),
        )
        if faults is not None:
            service.injector.replace(faults, now=forward.monotonic())
        stack.callback(_settle_bill, service)
        stack.callback(tasks.cancel_scope.cancel)
        await _listen(RequestHandler(service, verifier), service, listener, stack)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        listening(Listening(f"http://{host}:{listener.getsockname()[1]}", directory))
        try:
            await until.wait()
        finally:
            service.closing = True


def _settle_bill(service: EmulatorService) -> None:
    """Bill running models up to the end of the emulator."""
    usage(service, now=service.clock.time())
    service.state.save()


async def _buckets(settings: EmulatorSettings, stack: AsyncExitStack) -> ObjectStore:
    if settings.buckets is not None:
        if not settings.buckets.is_dir():
            raise UsageError(
                f"--buckets {settings.buckets} is not a folder. Create it, with a sub-folder for each bucket."
            )
        return DirectoryObjectStore(settings.buckets)
    if settings.s3_endpoint_url is not None:
        return await S3ObjectStore.open(settings.s3_endpoint_url, stack)
    return NoObjectStore()


def _bind(settings: EmulatorSettings) -> socket.socket:
    """Bind the port. Done before any task is started, so that errors are not wrapped in an exception group."""
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
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use. Choose another --port, or 0 for a free one." if in_use else error.strerror
        raise RefusedError(
            f"listening on {settings.host}:{settings.port} failed: {reason}", code=ErrorCode.EMULATOR_FAILED
        ) from error
    return listener


async def _listen(
    handler: RequestHandler, service: EmulatorService, listener: socket.socket, stack: AsyncExitStack
) -> None:
    """Serve on `listener` until `stack` is closed."""
    application = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[refuse_foreign])
    add_routes(application, service)
    application.router.add_route("*", "/{path:.*}", handler.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_S, handle_signals=False)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=_BACKLOG).start()
