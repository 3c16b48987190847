"""Connections that are kept, lost and given up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from batchcl.aws import connections
from batchcl.aws.connections import ConnectionPool, NotConnectedError, Route, open_pool
from unit.aws.raw_server import CUT, HANG, RawServer, answering, http

OK = http(200, b"{}")
CALL = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def pooled(*answers: bytes, limit: int = 4) -> AsyncIterator[tuple[ConnectionPool, RawServer]]:
    async with (
        answering(*answers) as server,
        open_pool(Route(url=server.url), limit=limit, connect_timeout_s=5) as pool,
    ):
        yield pool, server


def run(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        with anyio.fail_after(20):
            await act()

    anyio.run(within)


def test_a_connection_that_was_closed_while_it_was_idle_costs_no_attempt() -> None:
    """The server answers, and hangs up on the next request without a word, as load balancers do."""

    async def act() -> None:
        async with pooled(OK, CUT, OK, OK, CUT, CUT) as (pool, server):
            for _ in range(3):
                assert (await pool.exchange(CALL, deadline_s=5)).status == 200
            assert (len(server.asked), server.connections) == (4, 2)
            with pytest.raises(ConnectionResetError, match="closed without an answer"):
                await pool.exchange(CALL, deadline_s=5)  # and then on a new connection too

    run(act)


def test_a_connection_that_is_closed_in_an_answer_is_an_error_at_once() -> None:
    async def act() -> None:
        async with pooled(OK, http(200, b"{}", length=10) + CUT) as (pool, server):
            await pool.exchange(CALL, deadline_s=5)
            with pytest.raises(ConnectionResetError, match="in the middle of the answer"):
                await pool.exchange(CALL, deadline_s=5)
            assert len(server.asked) == 2

    run(act)


def test_a_call_that_was_given_up_leaves_no_connection_with_an_answer_to_come() -> None:
    async def act() -> None:
        async with pooled(OK, HANG, OK, limit=1) as (pool, server):
            await pool.exchange(CALL, deadline_s=5)
            with anyio.move_on_after(0.05) as given_up:
                await pool.exchange(CALL, deadline_s=5)
            assert given_up.cancelled_caught
            assert (await pool.exchange(CALL, deadline_s=5)).status == 200
            assert server.connections == 2

    run(act)


def test_the_wait_for_a_connection_counts_for_the_deadline() -> None:
    async def act() -> None:
        async with pooled(HANG, OK, limit=1) as (pool, _), anyio.create_task_group() as group:

            async def hang() -> None:
                with pytest.raises(TimeoutError):
                    await pool.exchange(CALL, deadline_s=0.3)

            group.start_soon(hang)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(TimeoutError):
                await pool.exchange(CALL, deadline_s=0.02)
            assert (await pool.exchange(CALL, deadline_s=5)).status == 200

    run(act)


def test_old_connections_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        async with pooled(OK) as (pool, server):
            await pool.exchange(CALL, deadline_s=5)
            await pool.exchange(CALL, deadline_s=5)
            assert server.connections == 1
            monkeypatch.setattr(connections, "_KEEP_ALIVE_S", 0.0)
            await pool.exchange(CALL, deadline_s=5)
            assert server.connections == 2

    run(act)


def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async def act() -> None:
        async with pooled(OK + OK, OK) as (pool, server):
            for _ in range(2):
                assert (await pool.exchange(CALL, deadline_s=5)).body == b"{}"
            assert server.connections == 2

    run(act)


def test_an_early_answer_to_a_large_request_is_an_answer() -> None:
    """A server may refuse a body before it has read it."""

    async def act() -> None:
        async with answering() as server:
            big = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" + b"x" * 8_000_000
            server.answers = lambda _number, _asked: http(413, b"no")
            async with open_pool(Route(url=server.url), limit=1, connect_timeout_s=5) as pool:
                try:
                    answer = await pool.exchange(big, deadline_s=5)
                except ConnectionError:
                    return  # the reset may overtake it
                assert answer.status == 413

    run(act)


def test_a_closed_pool_leaves_nothing_open() -> None:
    async def act() -> None:
        async with pooled(HANG) as (pool, server), anyio.create_task_group() as group:
            arrived = anyio.Event()

            def hang_up(number: int, _: object) -> bytes:
                if number == 2:
                    arrived.set()
                return HANG

            async def call() -> None:
                with pytest.raises(ConnectionError):
                    await pool.exchange(CALL, deadline_s=10)

            server.answers = hang_up
            for _ in range(3):
                group.start_soon(call)
            await arrived.wait()
            await pool.aclose()
            assert not pool._open

    run(act)


def test_nobody_listening_is_told_with_host_and_port() -> None:
    async def act() -> None:
        async with pooled(OK) as (_, server):
            pass
        async with open_pool(Route(url=server.url), limit=1, connect_timeout_s=5) as pool:
            with pytest.raises(NotConnectedError, match=rf"127\.0\.0\.1 port {server.port}: "):
                await pool.exchange(CALL, deadline_s=5)

    run(act)


def test_a_route_hides_what_the_proxy_is_told() -> None:
    assert "Basic" not in repr(Route(url="http://x", proxy="http://p", proxy_authorization="Basic s3cr3t"))
