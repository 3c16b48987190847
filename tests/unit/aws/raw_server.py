"""A server that responds with exactly the given bytes, also malformed ones."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson

HANG: Final = b"<hang>"
"""No response."""

CUT: Final = b"<cut>"
"""After a response: the connection is closed. Alone: it is closed without a response."""

JSON: Final = "application/x-amz-json-1.1"


@dataclass(slots=True)
class Asked:
    """One received request."""

    line: str
    headers: dict[str, str]
    body: bytes


Answers = Callable[[int, Asked], bytes]


@dataclass(slots=True)
class RawServer:
    """Its port and the received requests; `answers` can be changed at any time."""

    port: int
    answers: Answers
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def http(
    status: int,
    body: bytes = b"",
    *headers: tuple[str, str],
    version: str = "HTTP/1.1",
    length: int | None = None,
    reason: str = "Because",
) -> bytes:
    """A response that is well-formed except for the arguments."""
    lines = [f"{version} {status} {reason}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in (("Content-Type", JSON), *headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(status: int, code: str, message: str = "as it said", *headers: tuple[str, str]) -> bytes:
    """An error response in Rekognition's format."""
    said = {"__type": code, "Code": code, "Logref": "l-1", "Message": message}
    return http(status, orjson.dumps(said), ("x-amzn-RequestId", "r-1"), *headers)


def in_turn(answers: Iterable[bytes]) -> Answers:
    """Each response once; the last one repeats."""
    all_of_them = list(answers)
    return lambda number, _: all_of_them[min(number, len(all_of_them) - 1)]


@asynccontextmanager
async def answering(*answers: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Run a server on the loopback interface during the block."""
    server = RawServer(0, in_turn(answers or [CUT]))
    open_now: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        open_now.add(writer)
        try:
            while (asked := await _read(reader)) is not None:
                number = len(server.asked)
                server.asked.append(asked)
                answer = server.answers(number, asked)
                if answer == HANG:
                    await reader.read()
                    return
                writer.write(answer.removesuffix(CUT))
                await writer.drain()
                if answer.endswith(CUT):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            open_now.discard(writer)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in list(open_now):
            writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def tunnelling() -> AsyncIterator[RawServer]:
    """Run a proxy with tunnels on the loopback interface during the block."""
    proxy = RawServer(0, in_turn([b""]))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (asked := await _read(reader)) is None:
            return
        proxy.asked.append(asked)
        host, _, port = asked.line.split()[1].rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, back), copy(there, writer))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *rest = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
    return Asked(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
