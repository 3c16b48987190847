"""Images on the web, from a server that isn't public: tests alone may connect to it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web

from batchcl.errors import CallError, FatalCallError, HostError, ImageError
from batchcl.images import ImageRef, unfit
from batchcl.reading import web as reading
from batchcl.reading.addresses import PrivateAddressError, is_public
from batchcl.reading.web import WebReader, open_web_reader

PICTURE = bytes(range(256)) * 100
ASKED: list[web.Request] = []


async def answer(request: web.Request) -> web.StreamResponse:
    ASKED.append(request)
    match request.path.split("/")[1:]:
        case ["status", code]:
            return web.Response(status=int(code))
        case ["redirect", count]:
            raise web.HTTPFound(f"/redirect/{int(count) - 1}" if int(count) > 1 else "/picture.png")
        case ["to"]:
            return web.Response(status=302, headers={"Location": request.query["where"]})
        case ["large"]:
            return web.Response(body=bytes(1001))
        case ["endless"]:
            stream = web.StreamResponse()
            stream.enable_chunked_encoding()
            await stream.prepare(request)
            while True:
                await stream.write(bytes(100))
        case ["slow"]:
            await anyio.sleep(60)
        case ["a-moment"]:
            await anyio.sleep(0.05)
        case ["packed"]:
            return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})
        case ["cut"]:
            cut = web.StreamResponse(headers={"Content-Length": "500"})
            await cut.prepare(request)
            await cut.write(b"x")
            assert request.transport is not None
            request.transport.abort()
            return cut
    return web.Response(body=PICTURE[:1000])


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ASKED.clear()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def any_socket(info: tuple[Any, ...]) -> socket.socket:
    return socket.socket(*info[:3])


def image(address: str) -> ImageRef:
    return ImageRef(uri=address, bucket="", key=address)


def run(work: Callable[[str, WebReader], Awaitable[None]], socket_for: Callable[..., Any] = any_socket) -> None:
    async def main() -> None:
        async with serving() as root, open_web_reader(connections=4, most_bytes=1000, socket_for=socket_for) as reader:
            await work(root, reader)

    anyio.run(main)


def failing(path: str, socket_for: Callable[..., Any] = any_socket) -> CallError:
    found: list[CallError] = []

    async def work(root: str, reader: WebReader) -> None:
        with pytest.raises(CallError) as caught:
            await reader.read(image(path if path.startswith("http:") else root + path))
        found.append(caught.value)

    run(work, socket_for)
    return found[0]


def test_an_image_comes_from_its_address_letter_by_letter_and_over_redirects() -> None:
    async def work(root: str, reader: WebReader) -> None:
        for path in ("/a%2Bb+c%20d%41.png?sign=%2f%2F&x=a+b", "/é/日本.png", "/redirect/5"):
            assert reader.carries(image(root + path))
            assert await reader.read(image(root + path)) == PICTURE[:1000]
        assert ASKED[0].raw_path == "/a%2Bb+c%20d%41.png?sign=%2f%2F&x=a+b"
        assert ASKED[1].path == "/é/日本.png"
        assert ASKED[0].headers["User-Agent"].startswith("batchcl/")
        assert not {"Cookie", "Authorization"} & set(ASKED[0].headers)

    run(work)


@pytest.mark.parametrize(
    ("path", "kind", "code"),
    [
        ("/status/404", ImageError, "Http404"),
        ("/status/403", ImageError, "Http403"),
        ("/status/204", ImageError, "Http204"),
        ("/status/304", ImageError, "Http304"),
        ("/status/429", HostError, "Http429"),
        ("/status/503", HostError, "Http503"),
        ("/redirect/6", ImageError, "TooManyRedirects"),
        ("/to?where=file:///etc/passwd", ImageError, "BadRedirect"),
        ("/to?where=http://user:word@example.com/", ImageError, "BadRedirect"),
        ("/to?where=http://[/", ImageError, "BadRedirect"),
        ("/large", ImageError, "TooLarge"),
        ("/endless", ImageError, "TooLarge"),
        ("/packed", ImageError, "ContentEncoding"),
        ("/cut", HostError, "ConnectionLost"),
        ("http://127.0.0.1:1/x.png", HostError, "Unreachable"),
        ("http://nobody.invalid/x.png", HostError, "Unreachable"),
        ("http://a..b/x.png", ImageError, "InvalidUrl"),
        (f"http://{'a' * 64}.invalid/x.png", ImageError, "InvalidUrl"),
        ("http://a\\b/x.png", ImageError, "InvalidUrl"),
        ("/to?where=http://a..b/x.png", ImageError, "InvalidUrl"),
    ],
)
def test_what_a_host_does_wrong_is_that_images_outcome(path: str, kind: type[CallError], code: str) -> None:
    error = failing(path)
    assert (type(error), error.code, error.status) == (kind, code, None)


def test_a_redirect_from_https_to_http_is_not_followed() -> None:
    from yarl import URL  # noqa: PLC0415

    with pytest.raises(ImageError, match="from https to http"):
        reading._followed(URL("https://a/x"), "http://a/x")
    assert str(reading._followed(URL("http://a/x"), "https://b/y%2f?z=+")) == "https://b/y%2f?z=+"


def test_a_host_that_keeps_us_waiting_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DEADLINE_S", 0.2)
    error = failing("/slow")
    assert (type(error), error.code) == (HostError, "Timeout")


def test_who_waits_for_a_host_that_others_keep_busy_does_not_run_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty images, two at a time, take twice the deadline of one."""
    monkeypatch.setattr(reading, "DEADLINE_S", 0.5)
    monkeypatch.setattr(reading, "_CONNECTIONS_PER_HOST", 2)

    async def work(root: str, reader: WebReader) -> None:
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(reader.read, image(f"{root}/a-moment?{number}"))
        assert len(ASKED) == 40
        assert not reader._turns, "hosts that nobody waits for are forgotten"

    run(work)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_connected_to_however_it_is_written(host: str) -> None:
    async def main() -> None:
        async with serving() as root, open_web_reader(connections=4) as reader:
            with pytest.raises(ImageError, match=r"isn't public|no address") as caught:
                await reader.read(image(root.replace("127.0.0.1", host) + "/picture.png"))
            assert caught.value.code == ("InvalidUrl" if host.isdigit() else "PrivateAddress")
        assert ASKED == []

    anyio.run(main)


def test_an_address_is_judged_again_at_each_connection_a_redirects_too() -> None:
    """As when a name is resolved to another address the second time, or a public host redirects inwards."""
    judged: list[str] = []

    def once(info: tuple[Any, ...]) -> socket.socket:
        judged.append(info[4][0])
        if len(judged) > 1 and not is_public(info[4][0]):
            raise PrivateAddressError("it leads to an address that isn't public")
        return any_socket(info)

    async def work(root: str, reader: WebReader) -> None:
        inwards = root.replace("127.0.0.1", "localhost") + "/picture.png"
        with pytest.raises(ImageError) as caught:
            await reader.read(image(f"{root}/to?where={inwards}"))
        assert caught.value.code == "PrivateAddress"
        assert [request.path for request in ASKED] == ["/to"]

    run(work, once)
    assert judged[0] == "127.0.0.1"


def test_without_leave_nothing_is_fetched() -> None:
    with pytest.raises(FatalCallError, match="--allow-http-sources"):
        anyio.run(WebReader(None).read, image("https://example.com/x.png"))


def test_an_address_is_no_file_and_its_end_no_format() -> None:
    for address in ("https://example.com/x.php?id=1", "http://example.com/"):
        assert image(address).web
        assert image(address).inline
        assert not image(address).local
        assert unfit(image(address)) is None
    assert not image("/https://x").web
