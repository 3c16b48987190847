from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws import listing
from batchcl.aws.listing import ListingPage, MalformedPageError, parse_page

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
ABOUT = "<Name>b</Name><Prefix></Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>"
AT = dt.datetime(2026, 11, 21, 10, 20, 30, tzinfo=dt.UTC)

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)
printable_keys = st.lists(words, min_size=1, max_size=3).map(" ".join)


def entry(key: str, *, etag: str = "&quot;d41d-2&quot;", size: int = 7, at: str = "2026-11-21T10:20:30.000Z") -> str:
    checksum = "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
    return (
        f"<Contents><Key>{key}</Key><LastModified>{at}</LastModified><ETag>{etag}</ETag>"
        f"{checksum if size % 2 else ''}<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def document(entries: Sequence[str], *, about: str = "<IsTruncated>false</IsTruncated>", encoded: bool = True) -> bytes:
    encoding = "<EncodingType>url</EncodingType>" if encoded else ""
    return f"{HEAD}{ABOUT}{encoding}{about}{''.join(entries)}</ListBucketResult>".encode()


def as_tree(body: bytes) -> ListingPage:
    return listing._parse_tree(body, is_sorted=False)


def as_text(body: bytes) -> ListingPage:
    found = listing._parse_text(body.decode(), is_sorted=False)
    assert found is not None, "this is what S3 writes, and it was read as a tree"
    return found


@given(st.lists(st.tuples(keys, st.integers(0, 2**45)), max_size=20))
def test_any_key_is_parsed_alike_by_both_parsers(objects: list[tuple[str, int]]) -> None:
    body = document([entry(quote_plus(key, safe="/"), size=size) for key, size in objects])
    page = as_text(body)
    assert page == as_tree(body) == parse_page(body)
    assert page.keys == [key for key, _ in objects]
    assert page.sizes == [size for _, size in objects]
    assert page.etags == ["d41d-2"] * len(objects)
    assert page.modified == [AT] * len(objects)


@given(st.lists(printable_keys, max_size=8))
def test_keys_are_not_decoded_without_encoding_type(literal: list[str]) -> None:
    body = document([entry(escape(key)) for key in literal], encoded=False)
    assert parse_page(body).keys == as_tree(body).keys == literal


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("a+b", "a b"),
        ("a%20b", "a b"),
        ("a%2Bb", "a+b"),
        ("a%2520b", "a%20b"),
        ("a%0Ab", "a\nb"),
        ("%F0%9F%98%80", "😀"),
    ],
)
def test_encoded_keys_are_decoded_once(sent: str, key: str) -> None:
    assert as_text(document([entry(sent)])).keys == [key]
    assert as_text(document([entry(sent.replace("%2B", "x"))], encoded=False)).keys == [sent.replace("%2B", "x")]


@pytest.mark.parametrize(
    ("etag", "expected"),
    [
        ("&quot;x&quot;", "x"),
        ('"x"', "x"),
        ("x", "x"),
        ("&#34;x&#34;", "x"),
        ("", None),
        ("&quot;&quot;", None),
        ('W/"x', 'W/"x'),
    ],
)
def test_quotes_around_an_etag_are_removed(etag: str, expected: str | None) -> None:
    assert parse_page(document([entry("k", etag=etag)])).etags == [expected]


@pytest.mark.parametrize(
    "at",
    ["2026-11-21T10:20:30Z", "2026-11-21T10:20:30.000Z", "2026-11-21T11:20:30.000000000+01:00", "2026-11-21T10:20:30"],
)
def test_times_of_all_servers_are_parsed_as_utc(at: str) -> None:
    found = parse_page(document([entry("k", at=at)])).modified
    assert found == [AT]
    assert found[0].utcoffset() == dt.timedelta()


def test_the_continuation_token_is_parsed() -> None:
    about = "<NextContinuationToken>1ue/+=</NextContinuationToken><IsTruncated>true</IsTruncated>"
    for page in (as_text(document([entry("k")], about=about)), as_tree(document([entry("k")], about=about))):
        assert (page.is_last, page.token) == (False, "1ue/+=")
    last = parse_page(document([]))
    assert (last.keys, last.is_last, last.token) == ([], True, None)
    odd = "<NextContinuationToken>a&amp;b</NextContinuationToken><IsTruncated>true</IsTruncated>"
    assert parse_page(document([], about=odd)).token == "a&b"


@pytest.mark.parametrize(
    "change",
    [
        ("<Contents>", "<Contents>\n  "),
        ("</Key>", "</Key>\n"),
        ("<Key>", "<Key >"),
        ("<Contents>", "<!-- <Contents> --><Contents>"),
        ("<Contents>", '<Contents a="b">'),
        ("<Key>k</Key>", "<Key><![CDATA[k]]></Key>"),
        ("<Key>k</Key>", "<Key>&#107;</Key>"),
        ("<Contents><Key>k</Key>", "<Contents><Owner><ID>1</ID></Owner><Key>k</Key>"),
        ("<Size>7</Size>", "<Size> 7 </Size>"),
        ("</ListBucketResult>", "</ListBucketResult>\n<!-- end -->\n"),
        (' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ""),
    ],
)
def test_other_xml_of_the_same_page_is_the_same_page(change: tuple[str, str]) -> None:
    plain = document([entry("k"), entry("l")])
    other = plain.decode().replace(*change).encode()
    assert other != plain
    assert parse_page(other) == parse_page(plain)


def test_owner_and_restore_status_are_ignored() -> None:
    more = "<Owner><ID>1</ID><DisplayName>n</DisplayName></Owner><RestoreStatus><IsRestoreInProgress>false"
    body = (
        document([entry("k")])
        .decode()
        .replace("</Contents>", f"{more}</IsRestoreInProgress></RestoreStatus></Contents>")
    )
    assert as_text(body.encode()).keys == ["k"]


@given(st.data())
def test_a_truncated_page_is_never_a_shorter_page(data: st.DataObject) -> None:
    whole = document([entry("one"), entry("two")])
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MalformedPageError):
        parse_page(whole[:cut])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"<html><body>Bad Gateway</body></html>",
        b"<html><p>Bad Gateway",
        b"<Error><Code>SlowDown</Code></Error>",
        b"<ListBucketResult></ListBucketResult>",
        document([entry("k").replace("<Size>7</Size>", "")]),
        document([entry("k").replace("<Size>7</Size>", "<Size>many</Size>")]),
        document([entry("k").replace("<Key>k</Key>", "")]),
        document([entry("k", at="yesterdayZ")]),
        b'<?xml version="1.0" encoding="klingon"?><ListBucketResult/>',
        document([entry("k"), entry("l").replace("<Key>", "<Key >")]).replace(b"</Contents>", b"", 1),
    ],
)
def test_other_documents_are_refused_with_a_reason(body: bytes) -> None:
    with pytest.raises(MalformedPageError, match=r"^the response is "):
        parse_page(body)


def test_a_page_is_split_in_all_columns() -> None:
    about = "<NextContinuationToken>t</NextContinuationToken><IsTruncated>true</IsTruncated>"
    page = parse_page(document([entry("a", size=1), entry("b", size=2), entry("c", size=3)], about=about))
    first, rest = page.cut(1)
    assert (first.keys, first.sizes, len(first.etags), len(first.modified)) == (["a"], [1], 1, 1)
    assert (rest.keys, rest.sizes, len(rest.etags), len(rest.modified)) == (["b", "c"], [2, 3], 2, 2)
    assert (first.is_last, first.token) == (False, None)
    assert (rest.is_last, rest.token) == (False, "t")
