"""Connections that carry one request after the other: opened when they are needed, kept while they are good.

aiohttp's client takes three times the CPU for a call, however it is trimmed, for what the wire has no use for: cookies,
redirects, streams, tracing (`benchmarks/client_cost.py`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import anyio

from batchcl.aws.http1 import Answer, AnswerReader, NoHttpError

__all__ = ["ConnectionPool", "NotConnectedError", "ProxyRefusedError", "Route", "TlsError", "open_pool"]

_KEEP_ALIVE_S: Final = 12.0
"""A connection that was idle for longer isn't trusted: load balancers close them without a word from 60 s on, some
earlier."""

_NEXT_ADDRESS_AFTER_S: Final = 0.25
_GOODBYE_S: Final = 1.0
_PORTS: Final = {"http": 80, "https": 443}
_GOOD: Final = range(200, 300)


class NotConnectedError(Exception):
    """There is no connection: the name is unknown, or nobody listens."""


class ProxyRefusedError(Exception):
    """The proxy doesn't let us through."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the proxy answered {status}")
        self.status = status


class TlsError(Exception):
    """The two sides couldn't agree in the TLS handshake, or the certificate isn't trusted."""


class _StaleError(Exception):
    """The other side had given the connection up before it saw the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How to get to an origin.

    Attributes:
        url: scheme, host and port of the origin.
        proxy: URL of the proxy in between, without its user.
        proxy_authorization: the header that the proxy wants.
        tls: whom to trust, for the origin and the proxy.
    """

    url: str
    proxy: str | None = None
    proxy_authorization: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


class ConnectionPool:
    """At most `limit` connections to one origin. Safe for many concurrent callers."""

    def __init__(self, route: Route, *, limit: int, connect_timeout_s: float) -> None:
        self._route = route
        self._connect_timeout_s = connect_timeout_s
        self._slots = anyio.Semaphore(limit, fast_acquire=True)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()

    async def exchange(self, request: bytes, *, deadline_s: float) -> Answer:
        """The answer to `request`, which is a whole one as it goes over the wire and may be sent twice.

        Raises:
            TimeoutError: the answer wasn't whole in time, or no connection was there in time.
            NotConnectedError, ProxyRefusedError, TlsError: there is no connection.
            ConnectionError: it was lost.
            NoHttpError: what came is no HTTP.
        """
        until = self._loop.time() + deadline_s
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            async with asyncio.timeout_at(until):
                await self._slots.acquire()
        try:
            if (kept := self._kept()) is not None:
                try:
                    return await self._over(kept, request, until)
                except _StaleError:
                    pass
            return await self._over(await self._connected(until), request, until)
        finally:
            self._slots.release()

    async def aclose(self) -> None:
        """Close all connections; requests that are under way fail."""
        still_open = list(self._open)
        for connection in still_open:
            connection.abort()
        with anyio.move_on_after(_GOODBYE_S):
            for connection in still_open:
                await connection.lost.wait()

    async def _over(self, connection: _Connection, request: bytes, until: float) -> Answer:
        answer = await connection.exchange(request, until)
        if connection.usable:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()
        return answer

    def _kept(self) -> _Connection | None:
        """The connection that was used last, so that those that are needed no more grow old."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and self._loop.time() - connection.idle_since < _KEEP_ALIVE_S:
                return connection
            connection.abort()
        return None

    async def _connected(self, until: float) -> _Connection:
        """A new connection, through the proxy and with TLS where the route has them."""
        connection = _Connection(self._loop, self._open)
        try:
            async with asyncio.timeout_at(min(until, self._loop.time() + self._connect_timeout_s)):
                await self._connect(connection)
        except BaseException:
            connection.abort()
            self._open.discard(connection)  # in a TLS handshake nobody tells it that it is lost
            raise
        return connection

    async def _connect(self, connection: _Connection) -> None:
        origin = urlsplit(self._route.url)
        first = origin if self._route.proxy is None else urlsplit(self._route.proxy)
        port = first.port or _PORTS[first.scheme]
        try:
            await self._loop.create_connection(
                lambda: connection, first.hostname or "", port, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S
            )
        except TimeoutError:
            raise
        except OSError as error:
            raise NotConnectedError(f"{first.hostname} port {port}: {_why(error)}") from error
        if first.scheme == "https":
            await connection.start_tls(self._route.tls, first.hostname or "")
        if first is not origin and origin.scheme == "https":
            await self._tunnel(connection, origin.netloc.rpartition("@")[2], origin.port)
            await connection.start_tls(self._route.tls, origin.hostname or "")

    async def _tunnel(self, connection: _Connection, host: str, port: int | None) -> None:
        """Ask the proxy for a way to `host`; the connect timeout bounds it."""
        place = host if port is not None else f"{host}:443"
        told = self._route.proxy_authorization
        authorization = "" if told is None else f"Proxy-Authorization: {told}\r\n"
        asked = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{authorization}\r\n"
        answer = await connection.exchange(asked.encode(), None, tunnel=True)
        if answer.status not in _GOOD:
            raise ProxyRefusedError(answer.status)


class _Connection(asyncio.Protocol):
    """One connection. Its owner makes one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, registry: set[_Connection]) -> None:
        self.idle_since = 0.0
        self.lost = anyio.Event()
        self._loop = loop
        self._registry = registry
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._was_used = False

    @property
    def usable(self) -> bool:
        """Whether it may carry another request."""
        transport = self._transport
        return (
            transport is not None
            and self._reader.keeps_alive
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    async def exchange(self, request: bytes, until: float | None, *, tunnel: bool = False) -> Answer:
        """Send `request` and return its answer; on any error, and when it is cancelled, the connection is over."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("closed by the other side")
        waiting = self._waiting = self._loop.create_future()
        self._reader.expect(tunnel=tunnel)
        timer = None if until is None else self._loop.call_at(until, self._expire)
        transport.write(request)
        try:
            answer: Answer = await waiting
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()
        self._was_used = not tunnel
        return answer

    async def start_tls(self, context: ssl.SSLContext | None, name: str) -> None:
        """Go on in TLS with the server that is called `name`."""
        assert context is not None
        assert self._transport is not None
        try:
            secured = await self._loop.start_tls(self._transport, self, context, server_hostname=name)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
            raise ConnectionResetError("closed during the TLS handshake") from error
        except ssl.SSLError as error:
            raise TlsError(str(error)) from error
        if secured is None:
            raise ConnectionResetError("closed during the TLS handshake")
        self._transport = secured

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._registry.add(self)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.abort()  # nobody asked
            return
        try:
            answer = self._reader.feed(data)
        except NoHttpError as error:
            self._waiting.set_exception(error)
            return
        if answer is not None:
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self.lost.set()
        if self._waiting is None or self._waiting.done():
            return
        if (answer := self._reader.end()) is not None:
            self._waiting.set_result(answer)
        elif self._was_used and not self._reader.began:
            self._waiting.set_exception(_StaleError())
        elif exc is not None:
            self._waiting.set_exception(exc if isinstance(exc, OSError) else ConnectionResetError(str(exc)))
        else:
            how = "in the middle of the answer" if self._reader.began else "without an answer"
            self._waiting.set_exception(ConnectionResetError(f"closed {how}"))

    def _expire(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(TimeoutError())


def _why(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


@asynccontextmanager
async def open_pool(route: Route, *, limit: int, connect_timeout_s: float) -> AsyncIterator[ConnectionPool]:
    """A pool whose connections are closed at the end of the block."""
    pool = ConnectionPool(route, limit=limit, connect_timeout_s=connect_timeout_s)
    try:
        yield pool
    finally:
        with anyio.CancelScope(shield=True):
            await pool.aclose()
