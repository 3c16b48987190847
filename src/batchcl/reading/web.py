"""Images on the web, where they are allowed: bounded in bytes, time and redirects, from public addresses only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from batchcl.__about__ import __version__
from batchcl.errors import FatalCallError, HostError, ImageError
from batchcl.images import MAX_BYTES_INLINE, ImageRef
from batchcl.reading.addresses import PrivateAddressError, public_socket

__all__ = ["WebReader", "open_web_reader"]

DEADLINE_S: Final = 30.0
"""For one image, redirects included, but not the wait until its host may be asked."""

MAX_REDIRECTS: Final = 5

_CONNECT_TIMEOUT_S: Final = 5.0
_CONNECTIONS_PER_HOST: Final = 16
_HEADERS: Final = {"User-Agent": f"batchcl/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
_OK: Final = 200
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SERVER_ERROR: Final = 500
_BUSY: Final = frozenset({408, 425, 429})
_SCHEMES: Final = frozenset({"http", "https"})


class WebReader:
    """Fetches images from their addresses. See `ImageReader`.

    Args:
        session: with which; None where the user hasn't allowed it, so that reading one is refused.
        most_bytes: that an image may have.
    """

    def __init__(self, session: aiohttp.ClientSession | None, *, most_bytes: int = MAX_BYTES_INLINE) -> None:
        self._session = session
        self._most_bytes = most_bytes
        self._turns: WeakValueDictionary[tuple[str | None, int | None], asyncio.Semaphore] = WeakValueDictionary()

    def carries(self, image: ImageRef) -> bool:
        """Images on the web do."""
        return image.web

    async def read(self, image: ImageRef) -> bytes:
        """What the address gives, within `DEADLINE_S` of its turn.

        Raises `HostError` for what may pass: an outage of a host isn't one of the service.
        """
        if self._session is None:
            raise FatalCallError(f"{image.uri} is on the web; take it with --allow-http-sources", code="NotAllowed")
        try:
            async with asyncio.timeout(DEADLINE_S) as deadline:
                return await self._fetched(self._session, _url(image.key), deadline)
        except TimeoutError as error:
            raise HostError(f"no whole answer within {DEADLINE_S:.0f} s", code="Timeout") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddressError):
                raise ImageError(str(error.os_error), code="PrivateAddress") from error
            if isinstance(error, aiohttp.ClientSSLError):
                raise ImageError(f"its certificate isn't trusted: {error}", code="Tls") from error
            raise HostError(f"its host can't be reached: {error}", code="Unreachable") from error
        except ValueError as error:  # aiohttp's InvalidURL, yarl's own, and what is no host name
            raise ImageError(f"it is no address: {error}", code="InvalidUrl") from error
        except (aiohttp.ClientError, OSError) as error:
            raise HostError(f"its host gave no whole answer: {error}", code="ConnectionLost") from error

    async def _fetched(self, session: aiohttp.ClientSession, url: URL, deadline: asyncio.Timeout) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._turn(url, deadline), session.get(url, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and "Location" in answer.headers:
                    url = _followed(url, answer.headers["Location"])
                    continue
                _check_status(answer)
                return await self._body(answer)
        raise ImageError(f"it redirects more than {MAX_REDIRECTS} times", code="TooManyRedirects")

    @asynccontextmanager
    async def _turn(self, url: URL, deadline: asyncio.Timeout) -> AsyncIterator[None]:
        """Wait while others keep the host of `url` busy; the deadline stands still meanwhile."""
        host = (url.host, url.port)
        turns = self._turns.get(host)
        if turns is None:
            turns = self._turns[host] = asyncio.Semaphore(_CONNECTIONS_PER_HOST)
        loop, due_at = asyncio.get_running_loop(), deadline.when()
        assert due_at is not None
        left_s = due_at - loop.time()
        deadline.reschedule(None)
        async with turns:
            deadline.reschedule(loop.time() + left_s)
            yield

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        coding = answer.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise ImageError(f"its host sends it in {coding[:40]}, though it was asked not to", code="ContentEncoding")
        if (answer.content_length or 0) > self._most_bytes:
            raise self._too_large(f"{answer.content_length:,}")
        data = bytearray()
        async for chunk in answer.content.iter_any():
            data += chunk
            if len(data) > self._most_bytes:
                raise self._too_large(f"more than {self._most_bytes:,}")
        return bytes(data)

    def _too_large(self, size: str) -> ImageError:
        return ImageError(f"{size} bytes, and an image sent as bytes may have {self._most_bytes:,}", code="TooLarge")


@asynccontextmanager
async def open_web_reader(
    *,
    connections: int,
    most_bytes: int = MAX_BYTES_INLINE,
    socket_for: Callable[[tuple[Any, ...]], Any] = public_socket,
) -> AsyncIterator[WebReader]:
    """A reader whose connections are closed at the end of the block. It sends no cookies, and asks no proxy.

    Args:
        connections: at once, at most.
        most_bytes: that an image may have.
        socket_for: the socket to connect to an address with; raises `PrivateAddressError` where that isn't wanted.
    """
    connector = aiohttp.TCPConnector(
        limit=connections, limit_per_host=min(connections, _CONNECTIONS_PER_HOST), socket_factory=socket_for
    )
    async with aiohttp.ClientSession(
        connector=connector,
        headers=_HEADERS,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        trust_env=False,
    ) as session:
        yield WebReader(session, most_bytes=most_bytes)


def _url(address: str) -> URL:
    """The address as it stands, where that can be sent: a signature in it may be about each letter."""
    return URL(address, encoded=address.isascii())


def _followed(url: URL, location: str) -> URL:
    """Where a redirect leads. Raises `ImageError` where it isn't followed."""
    try:
        found = url.join(_url(location))
    except ValueError as error:
        raise ImageError(f"it redirects to {location[:200]!r}, which is no address", code="BadRedirect") from error
    if found.scheme not in _SCHEMES or not found.host or found.user is not None:
        raise ImageError(f"it redirects to {location[:200]!r}, which is no web address", code="BadRedirect")
    if url.scheme == "https" and found.scheme == "http":
        raise ImageError("it redirects from https to http", code="BadRedirect")
    return found


def _check_status(answer: aiohttp.ClientResponse) -> None:
    if answer.status == _OK:
        return
    said = f"its host answered {answer.status} {answer.reason or ''}".rstrip()
    if answer.status >= _SERVER_ERROR or answer.status in _BUSY:
        raise HostError(said, code=f"Http{answer.status}")
    raise ImageError(said, code=f"Http{answer.status}")
