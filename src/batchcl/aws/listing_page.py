"""One page of ListObjectsV2, from its XML to columns.

A page that looks as S3 writes it is read by one regular expression, which costs a fifth of building a tree; anything
else (another order of elements, spaces, entities, comments) is read as a tree. Both ways give the same columns.
"""

from __future__ import annotations

import datetime as dt
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

__all__ = ["MalformedPageError", "Page", "parse_page"]


class MalformedPageError(ValueError):
    """The answer is no whole ListBucketResult."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Objects in the server's order, as columns of equal length.

    Attributes:
        keys: exactly as they are.
        etags: without quotes; None where there is none.
        sizes: in bytes.
        modified: in UTC.
        is_last: whether there is nothing behind it.
        token: continues behind the page; a server may have none, then its last key does.
        is_sorted: whether the server is known to list in UTF-8 binary order, which is Python's order of strings too.
    """

    keys: list[str]
    etags: list[str | None]
    sizes: list[int]
    modified: list[dt.datetime]
    is_last: bool = True
    token: str | None = None
    is_sorted: bool = False

    def cut(self, count: int) -> tuple[Page, Page]:
        """The first `count` objects, behind which there is more by definition, and the rest."""
        first = Page(
            keys=self.keys[:count],
            etags=self.etags[:count],
            sizes=self.sizes[:count],
            modified=self.modified[:count],
            is_last=False,
            is_sorted=self.is_sorted,
        )
        rest = Page(
            keys=self.keys[count:],
            etags=self.etags[count:],
            sizes=self.sizes[count:],
            modified=self.modified[count:],
            is_last=self.is_last,
            token=self.token,
            is_sorted=self.is_sorted,
        )
        return first, rest


_ENTRY: Final = re.compile(
    r"<Contents><Key>([^<&]++)</Key><LastModified>([^<&Z]++Z)</LastModified>"
    r'<ETag>(?:&quot;|")?+([^<&"]++)(?:&quot;|")?+</ETag>(?:<Checksum[^<]*+</[^<]*+)*+<Size>([0-9]++)</Size>'
)
_FLAG: Final = re.compile(r"<IsTruncated>(true|false)</IsTruncated>")
_TOKEN: Final = re.compile(r"<NextContinuationToken>([^<&]++)</NextContinuationToken>")
_ENCODED: Final = "<EncodingType>url</EncodingType>"


def parse_page(body: bytes, *, is_sorted: bool = False) -> Page:
    """The page that `body` holds.

    With `encoding-type=url` S3 encodes keys as a form does, a space as `+` (seen in its answers, undocumented; botocore
    decodes them likewise). A server that doesn't say so in its answer hasn't encoded them.

    Raises:
        MalformedPageError: it is cut, no XML, or another document.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _as_tree(body, is_sorted=is_sorted)  # the declaration may name another encoding
    return _as_text(text, is_sorted=is_sorted) or _as_tree(body, is_sorted=is_sorted)


def _as_text(text: str, *, is_sorted: bool) -> Page | None:
    """The page, or None where it isn't written as S3 writes it."""
    entries = _ENTRY.findall(text)
    flag = _FLAG.search(text)
    if (
        flag is None
        or len(entries) != text.count("<Contents")
        or not text.endswith("</ListBucketResult>")
        or ("!" in text and "<!" in text)  # one character is found a hundred times faster than two
    ):
        return None
    token = _TOKEN.search(text)
    if token is None and "NextContinuationToken" in text:
        return None
    keys: list[str]
    if entries:
        encoded_keys, times, etags, sizes = zip(*entries, strict=True)
    else:
        encoded_keys, times, etags, sizes = (), (), (), ()
    try:
        modified = list(map(dt.datetime.fromisoformat, times))
    except ValueError:
        return None
    if _ENCODED in text:
        keys = [unquote_plus(key) if "%" in key or "+" in key else key for key in encoded_keys]
    else:
        keys = list(encoded_keys)
    return Page(
        keys=keys,
        etags=list(etags),
        sizes=list(map(int, sizes)),
        modified=modified,
        is_last=flag[1] == "false",
        token=token and token[1],
        is_sorted=is_sorted,
    )


def _as_tree(body: bytes, *, is_sorted: bool) -> Page:
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat reads no external entities; the wire bounds the answer
    except (ET.ParseError, ValueError, LookupError) as error:
        raise MalformedPageError(f"its answer is no XML ({error})") from error
    if _name(root) != "ListBucketResult":
        raise MalformedPageError(f"its answer is a {_name(root)}, not a ListBucketResult")
    said = {_name(child): child.text or "" for child in root}
    is_encoded = said.get("EncodingType") == "url"
    entries = [{_name(field): field.text or "" for field in child} for child in root if _name(child) == "Contents"]
    try:
        keys = [entry["Key"] for entry in entries]
        return Page(
            keys=[unquote_plus(key) for key in keys] if is_encoded else keys,
            etags=[entry.get("ETag", "").strip('"') or None for entry in entries],
            sizes=[int(entry["Size"]) for entry in entries],
            modified=[_time(entry["LastModified"]) for entry in entries],
            is_last=said["IsTruncated"].strip() != "true",
            token=said.get("NextContinuationToken") or None,
            is_sorted=is_sorted,
        )
    except (KeyError, ValueError) as error:
        raise MalformedPageError(f"its answer is no whole ListBucketResult ({error})") from error


def _name(element: ET.Element) -> str:
    """Without its namespace: not every server gives one."""
    return element.tag.rpartition("}")[2]


def _time(text: str) -> dt.datetime:
    found = dt.datetime.fromisoformat(text)
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
