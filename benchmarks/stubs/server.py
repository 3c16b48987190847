"""A stub of DetectCustomLabels and ListObjectsV2 that costs less than any client of it.

It prints one JSON line with its `endpoint`, serves until its stdin ends, and then prints one with its `answers`,
`cpu_s`, and the times of its last answer to a call and of the call that it let hang. DetectCustomLabels gets the same
canned labels for each call; ListObjectsV2 gets pages of a bucket with `--keys` keys, which exist nowhere; whoever looks
the bucket or the model up finds it, RUNNING. Signatures are not looked at, and headers only for the body's length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/stub/version/v1/1700000000000"
LABELS = b'{"CustomLabels":[{"Name":"crack","Confidence":97.53611755371094},{"Name":"dent","Confidence":61.25}]}'
_JSON = (
    b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: 0a8a0ce8-3c7f-4ee1-a2a5-6a9dcd2c2f5b\r\n"
    b"Content-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n\r\n%s"
)
DETECTED = _JSON % (len(LABELS), LABELS)
PROJECT = json.dumps({"ProjectDescriptions": [{"ProjectArn": MODEL.partition("/version")[0] + "/1600000000000"}]})
VERSION = json.dumps({"ProjectVersionDescriptions": [{"ProjectVersionArn": MODEL, "Status": "RUNNING"}]})
CONTROL = {
    target: _JSON % (len(said), said.encode())
    for target, said in ((b"DescribeProjects", PROJECT), (b"DescribeProjectVersions", VERSION))
}
S3 = "HTTP/1.1 200 OK\r\nServer: AmazonS3\r\nx-amz-bucket-region: us-east-1\r\n"
FOUND = f"{S3}Content-Length: 0\r\n\r\n".encode()
PAGE = 1000
_PER_FOLDER = 10_000


class Keys:
    """`count` keys in S3's order, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return f"camera-{number // _PER_FOLDER:05}/2026-11-01/frame-{number:09}.jpg"


@lru_cache(maxsize=2048)
def page(count: int, prefix: str, after: str, start: int, size: int) -> bytes:
    """One answer of ListObjectsV2. `start` is the continuation token's number, -1 without one."""
    keys = Keys(count)
    first = bisect_left(keys, prefix)
    end = bisect_left(keys, prefix + chr(0x10FFFF)) if prefix else count
    begin = start if start >= 0 else max(first, bisect_right(keys, after) if after else 0)
    stop = min(begin + size, end)
    entries = [
        f"<Contents><Key>{keys[n]}</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{n:032x}&quot;</ETag><Size>{200_000 + n % 1000}</Size><StorageClass>STANDARD</StorageClass>"
        "</Contents>"
        for n in range(begin, stop)
    ]
    more = stop < end
    token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>stub</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>{size}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries)}"
        "</ListBucketResult>"
    ).encode()
    return f"{S3}Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def listed(target: str, count: int) -> bytes:
    """The answer to a GET of `target`."""
    asked = {name: values[-1] for name, values in parse_qs(target.partition("?")[2], keep_blank_values=True).items()}
    token = asked.get("continuation-token")
    size = min(PAGE, int(asked.get("max-keys", PAGE)))
    return page(
        count, asked.get("prefix", ""), unquote(asked.get("start-after", "")), int(token) if token else -1, size
    )


@dataclass(frozen=True)
class Manner:
    """How to answer.

    Attributes:
        keys: in the bucket.
        delay_s: before each answer.
        hang: the first call for this image is never answered.
    """

    keys: int
    delay_s: float
    hang: bytes | None


class Stub(asyncio.Protocol):
    """One connection."""

    answers = 0
    answered_at = 0.0
    hung_at = 0.0

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        data = self._buffer + data if self._buffer else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            if data.startswith(b"POST"):
                at = data.lower().find(b"content-length:", 0, end)
                size = int(data[at + 15 : data.find(b"\r\n", at)])
                if len(data) < end + 4 + size:
                    break
                self._post(data[: end + 4 + size], end)
                data = data[end + 4 + size :]
            else:
                method, target, _ = data[: data.find(b"\r\n")].split(b" ")
                self._answer(FOUND if method == b"HEAD" else listed(target.decode(), self._manner.keys))
                data = data[end + 4 :]
        self._buffer = data

    def _post(self, request: bytes, end: int) -> None:
        at = request.find(b"RekognitionService.", 0, end) + len(b"RekognitionService.")
        answer = CONTROL.get(request[at : request.find(b"\r\n", at)])
        if answer is not None:
            self._answer(answer)
        elif self._manner.hang is not None and not Stub.hung_at and self._manner.hang in request:
            Stub.hung_at = time.time()
        else:
            self._answer(DETECTED)

    def _answer(self, answer: bytes) -> None:
        if self._manner.delay_s:
            asyncio.get_running_loop().call_later(self._manner.delay_s, self._send, answer)
        else:
            self._send(answer)

    def _send(self, answer: bytes) -> None:
        Stub.answers += 1
        if answer is DETECTED:
            Stub.answered_at = time.time()
        self._transport.write(answer)


async def serve(listener: socket.socket, manner: Manner, until: asyncio.Event) -> None:
    """Serve until `until` is set."""
    server = await asyncio.get_running_loop().create_server(lambda: Stub(manner), sock=listener, backlog=1024)
    await until.wait()
    server.close()


async def _main(listener: socket.socket, arguments: argparse.Namespace) -> None:
    until = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, until.set)
    loop.add_reader(sys.stdin.fileno(), until.set)
    hang = None if arguments.hang is None else Keys(arguments.keys)[arguments.hang].encode()
    await serve(listener, Manner(arguments.keys, arguments.delay_ms / 1000, hang), until)


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200_000, help="keys in the bucket")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before each answer")
    parser.add_argument("--hang", type=int, help="never answer the first call for the image of this number")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port")
    parser.add_argument("--core", type=int, help="the core to run on")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    listener = _bound(0)
    port = listener.getsockname()[1]
    for _ in range(arguments.workers - 1):
        if os.fork() == 0:
            asyncio.run(_main(_bound(port), arguments))
            return
    print(json.dumps({"endpoint": f"http://127.0.0.1:{port}"}), flush=True)
    asyncio.run(_main(listener, arguments))
    ended = {"answers": Stub.answers, "cpu_s": time.process_time(), "answered_at": Stub.answered_at}
    print(json.dumps(ended | {"hung_at": Stub.hung_at}), flush=True)


if __name__ == "__main__":
    main()
