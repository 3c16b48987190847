"""Answers byte by byte, whole and broken."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.http1 import Answer, AnswerReader, HeaderMap, NoHttpError

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, *cuts: int, ends: bool = False) -> tuple[Answer | None, AnswerReader]:
    """What comes of `data` when it arrives in pieces."""
    reader = AnswerReader()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in pairwise(edges):
        if (answer := reader.feed(data[begin:end])) is not None:
            assert end == len(data), "told before its last byte"
            return answer, reader
    return (reader.end() if ends else None), reader


WHOLE: list[tuple[bytes, int, bytes, bool]] = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc", True),
    (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 304, b"", True),
    (b"HTTP/1.1 503 Slow Down\r\ncontent-length:2,2\r\nConnection: close\r\n\r\nab", 503, b"ab", False),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", True),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nab", 200, b"ab", True),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 P\r\nA: b\r\n\r\nHTTP/1.1 201 C\r\nContent-Length: 1\r\n\r\nx",
        201,
        b"x",
        True,
    ),
    (CHUNKED + b"3\r\nabc\r\nA;name=value\r\n0123456789\r\n00\r\n\r\n", 200, b"abc0123456789", True),
    (CHUNKED + b"1\r\na\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n", 200, b"a", True),
    (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", 200, b"\r\n\r\n", True),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n1\r\na\r\n0\r\n\r\n",
        200,
        b"a",
        False,
    ),
]


@pytest.mark.parametrize(("data", "status", "body", "keeps"), WHOLE, ids=[str(n) for n in range(len(WHOLE))])
def test_an_answer_is_the_same_however_it_is_cut(data: bytes, status: int, body: bytes, *, keeps: bool) -> None:
    for cuts in ((), range(len(data)), *((cut,) for cut in range(len(data)))):
        answer, reader = read(data, *cuts)
        assert answer is not None
        assert (answer.status, answer.body, reader.keeps_alive) == (status, body, keeps)


@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.lists(st.integers(0, 2500), max_size=8),
    st.sampled_from(["chunked", "length", "end"]),
)
def test_any_body_comes_through_in_any_framing_and_pieces(parts: list[bytes], cuts: list[int], framing: str) -> None:
    body = b"".join(parts)
    if framing == "chunked":
        data = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"
    elif framing == "length":
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    else:
        data = b"HTTP/1.1 200 OK\r\n\r\n" + body
    answer, reader = read(data, *cuts, ends=framing == "end")
    assert answer is not None
    assert answer.body == body
    assert reader.keeps_alive == (framing != "end")


@given(st.binary(max_size=400), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", CHUNKED, b"HTTP/1.1 "]))
def test_nothing_but_no_http_is_raised_whatever_comes(data: bytes, before: bytes) -> None:
    reader = AnswerReader()
    with suppress(NoHttpError):
        reader.feed(before + data)
        reader.end()


@pytest.mark.parametrize(("data", "_status", "_body", "_keeps"), WHOLE, ids=[str(n) for n in range(len(WHOLE))])
def test_a_cut_answer_is_none(data: bytes, _status: int, _body: bytes, *, _keeps: bool) -> None:
    for end in range(1, len(data)):
        answer, reader = read(data[:end], ends=True)
        assert answer is None
        assert reader.began


BROKEN = [
    b"SSH-2.0-OpenSSH",
    b"<html>",
    b"\x15\x03\x01",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/1.1 ²00 OK\r\n\r\n".encode("latin-1"),
    b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\n folded: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    CHUNKED + b"x\r\n",
    CHUNKED + b"\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    CHUNKED + b"1" * 17 + b"\r\n",
    CHUNKED + b"1" * 70_000,
    CHUNKED + b"FFFFFFFF\r\n" + b"x" * 70_000_000,
]


@pytest.mark.parametrize("data", BROKEN, ids=[str(n) for n in range(len(BROKEN))])
def test_what_is_no_http_is_told_at_once_rather_than_waited_for(data: bytes) -> None:
    with pytest.raises(NoHttpError):
        read(data)


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    for data in (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", CHUNKED + b"0\r\n\r\nmore"):
        answer, reader = read(data)
        assert answer is not None
        assert not reader.keeps_alive


def test_a_good_answer_to_connect_has_no_body_and_a_bad_one_has() -> None:
    reader = AnswerReader()
    reader.expect(tunnel=True)
    answer = reader.feed(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert answer is not None
    reader.expect(tunnel=True)
    assert reader.feed(b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\n") is None
    answer = reader.feed(b"no")
    assert answer is not None
    assert answer.body == b"no"


def test_headers_are_found_in_any_case_and_repeated_ones_are_joined() -> None:
    answer, _ = read(b"HTTP/1.1 200 OK\r\nX-One: 1\r\nx-one:\t2 \r\nEmpty:\r\nContent-Length: 0\r\n\r\n")
    assert answer is not None
    assert answer.headers["X-ONE"] == "1, 2"
    assert (answer.headers.get("empty"), answer.headers.get("missing"), "X-One" in answer.headers) == ("", None, True)
    assert dict(HeaderMap({"a": "1"})) == {"a": "1"}


def test_one_reader_reads_one_answer_after_the_other() -> None:
    reader = AnswerReader()
    for data, status, body, _ in WHOLE:
        reader.expect()
        assert not reader.began
        answer = reader.feed(data)
        assert answer is not None
        assert (answer.status, answer.body) == (status, body)
