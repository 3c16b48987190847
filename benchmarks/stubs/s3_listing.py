"""An S3 that only lists: pages rendered before the first request, so that answering costs less than any client.

    python benchmarks/stubs/s3_listing.py --keys 1000000 [--shape folders] [--latency-ms 50] [--server AmazonS3]

Prints one JSON line with its `endpoint` once it listens on a free port of the loopback interface. It answers HeadBucket
and ListObjectsV2 for every bucket: by key (`start-after`) or by its own token, in UTF-8 order, a thousand a page, of
`--prefix` only. It verifies no signature and ends with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import datetime as dt
import json
import random
import signal
import uuid
from bisect import bisect_left, bisect_right
from itertools import accumulate
from urllib.parse import parse_qs, quote_plus, urlsplit

PAGE = 1000
END = b"</ListBucketResult>"
TAKEN_AT = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
PR_SET_PDEATHSIG = 1

SHAPES = {
    "folders": lambda number: f"data/camera-{number // 10_000:05}/2026-11-01/frame-{number:09}.jpg",
    "counter": lambda number: f"data/{number:09}.jpg",
    "uuid": lambda number: f"data/{uuid.UUID(int=random.Random(number).getrandbits(128))}.jpg",
    "dates": lambda number: f"data/{TAKEN_AT + dt.timedelta(seconds=20 * number):%Y/%m/%d/%H%M%S}.jpg",
    "hot": lambda number: f"data/hot/{number:09}.jpg" if number % 1000 else f"data/{number:09}/one.jpg",
}


class Listing:
    """All pages of a bucket as one text, with the place of each object in it."""

    def __init__(self, count: int, shape: str) -> None:
        self.keys = sorted(map(SHAPES[shape], range(count)))
        entries = [_entry(number, key) for number, key in enumerate(self.keys)]
        self.places = [0, *accumulate(map(len, entries))]
        self.text = b"".join(entries)

    def page(self, query: dict[str, list[str]]) -> tuple[bytes, ...]:
        """The parts of the page that `query` asks for."""
        prefix = query.get("prefix", [""])[0]
        if token := query.get("continuation-token"):
            begin = int(token[0])
        elif after := query.get("start-after"):
            begin = max(bisect_right(self.keys, after[0]), bisect_left(self.keys, prefix))
        else:
            begin = bisect_left(self.keys, prefix)
        end = min(begin + PAGE, bisect_right(self.keys, prefix + chr(0x10FFFF)) if prefix else len(self.keys))
        more = end < len(self.keys) and self.keys[end].startswith(prefix)
        head = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><Prefix>{quote_plus(prefix)}</Prefix><KeyCount>{end - begin}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{f'<NextContinuationToken>{end}</NextContinuationToken>' if more else ''}"
        )
        return head.encode(), self.text[self.places[begin] : self.places[max(begin, end)]], END


def _entry(number: int, key: str) -> bytes:
    at = TAKEN_AT + dt.timedelta(seconds=number)
    return (
        f"<Contents><Key>{quote_plus(key, safe='/')}</Key><LastModified>{at:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
        f"<ETag>&quot;{number * 2654435761 % 2**128:032x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{200_000 + number % 1000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    ).encode()


class Connection(asyncio.Protocol):
    """One request after the other; no client here sends a body or a second request before the answer."""

    def __init__(self, listing: Listing, *, server: str, latency_s: float) -> None:
        self._listing = listing
        self._head = f"Server: {server}\r\nx-amz-bucket-region: us-east-1\r\nContent-Type: application/xml\r\n"
        self._latency_s = latency_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer, after the latency, once the head is whole."""
        self._received += data
        if b"\r\n\r\n" not in self._received:
            return
        method, target, _ = self._received.split(b"\r\n", 1)[0].decode().split(" ")
        self._received = b""
        asyncio.get_running_loop().call_later(self._latency_s, self._answer, method, target)

    def _answer(self, method: str, target: str) -> None:
        parts = () if method == "HEAD" else self._listing.page(parse_qs(urlsplit(target).query))
        length = sum(map(len, parts))
        self._transport.writelines(
            [f"HTTP/1.1 200 OK\r\n{self._head}Content-Length: {length}\r\n\r\n".encode(), *parts]
        )


async def serve(listing: Listing, *, server: str, latency_s: float) -> None:
    """Listen until the process ends."""
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(listing, server=server, latency_s=latency_s), "127.0.0.1", 0
    )
    print(json.dumps({"endpoint": f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"}), flush=True)
    await listener.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--shape", choices=SHAPES, default="folders")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--server", default="AmazonS3", help="what it says it is; only S3 is listed in parallel")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    listing = Listing(arguments.keys, arguments.shape)
    asyncio.run(serve(listing, server=arguments.server, latency_s=arguments.latency_ms / 1000))


if __name__ == "__main__":
    main()
