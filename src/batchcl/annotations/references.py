"""How the names of images in annotation files are compared with URIs.

Files of other tools seldom contain the URI of an image: they have names relative to some folder, URLs, or the tool's
own paths. A name is found in a list of URIs by the first of these rules that applies:

1. It is the URI, or becomes it below the folder that the names are relative to.
2. It is the end of exactly one URI, from a slash: `a/1.png` is the end of `s3://bucket/photos/a/1.png`.
3. Only if the caller allows it: its last part, the file name, is that of exactly one URI, and of one name.

A name to which several URIs correspond is refused.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from batchcl.errors import ErrorCode, SourceError
from batchcl.images import escape_name

__all__ = ["Matches", "file_name", "is_relative", "match_references", "normalize_references", "resolve_references"]

_S3_HOST: Final = re.compile(r"(?:(?P<bucket>[a-z0-9][a-z0-9.-]+)\.)?s3(?:[.-][a-z0-9-]+)*\.amazonaws\.com(?:\.cn)?")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE: Final = re.compile(r"[A-Za-z]:(?=/)")
_LOCAL_FILES: Final = "/data/local-files/"
_UPLOAD: Final = re.compile(r"(?:.*/)?data/upload/(?:\d+/)?(?P<name>(?:[0-9a-f]{8}-)?(?P<plain>[^/]+))")
_EXAMPLES: Final = 2


@dataclass(frozen=True, slots=True)
class Matches:
    """The URI of each image, None for those that the list of URIs does not have, and the number by rule."""

    uris: tuple[str | None, ...]
    exact: int
    by_path: int
    by_name: int


def normalize_references(names: Iterable[str]) -> tuple[str, ...]:
    """What the names in a file refer to, without duplicates: `s3://bucket/key`, which come first, or a path.

    URLs of S3 objects become `s3://bucket/key`; of other URLs only the path is used. Label Studio's `/data/local-files`
    and `/data/upload` become the path or file name that they contain.
    """
    references = dict.fromkeys(each for name in names for each in _normalized(name) if file_name(each))
    return tuple(sorted(references, key=lambda each: not each.startswith("s3://")))


def _normalized(name: str) -> Iterator[str]:
    if name.startswith("s3://"):
        yield name
        return
    path = name
    if _SCHEME.match(name):
        try:
            parts = urlsplit(name)
        except ValueError:  # such as http://[
            return
        path = unquote(parts.path)
        host = _S3_HOST.fullmatch((parts.hostname or "").lower())
        if host is not None:
            yield f"s3://{host['bucket']}{path}" if host["bucket"] else f"s3:/{path}"
            return
    if _LOCAL_FILES in name:
        path = "".join(parse_qs(name.partition("?")[2]).get("d", [])[:1])
    elif (upload := _UPLOAD.fullmatch(path)) is not None:
        yield upload["name"]
        yield upload["plain"]
        return
    elif "\\" in path and "/" not in path:
        path = path.replace("\\", "/")
    path = _DRIVE.sub("", path)
    is_url = path != name and _SCHEME.match(name) is not None and not name.startswith("file:")
    yield path.lstrip("/") if is_url else path.removeprefix("./")


def file_name(reference: str) -> str:
    """The last part of a reference or URI; of an archive's member the name in the archive."""
    return reference.rpartition("/")[2].rpartition("#")[2]


def is_relative(reference: str) -> bool:
    """Whether a reference is a relative path."""
    return not reference.startswith(("/", "s3://"))


def resolve_references(references: Sequence[str], folder: str) -> tuple[str, ...]:
    """The URIs that the references have if relative ones are below `folder`, a directory or `s3://bucket/prefix`."""
    return tuple(_below(folder, each) if is_relative(each) else _plain(each) for each in references)


def _below(folder: str, reference: str) -> str:
    if folder.startswith("s3://"):
        return f"{folder.rstrip('/')}/{reference}"
    return _plain(os.path.join(folder, reference))


def _plain(reference: str) -> str:
    """The column `uri` of results: S3 URIs unchanged, local files by absolute path."""
    return reference if reference.startswith("s3://") else escape_name(os.path.abspath(reference))


def match_references(
    images: Sequence[Sequence[str]], uris: Collection[str], *, folder: str, only_exact: bool = False, by_name: bool
) -> Matches:
    """Find the URI of each image; see the module's rules.

    Args:
        images: for each image its references, the most specific first.
        uris: to search; only those with the file name of a reference are needed.
        folder: that relative references are below, a directory or `s3://bucket/prefix`.
        only_exact: apply only the first rule.
        by_name: apply the third rule, too.

    Raises:
        SourceError: several URIs correspond to an image, or several images to a URI.
    """
    known = uris if isinstance(uris, set | frozenset) else set(uris)
    found: list[str | None] = [
        next((uri for uri in (*resolve_references(each, folder), *each) if uri in known), None) for each in images
    ]
    exact = len(found) - found.count(None)
    by_path = named = 0
    if not only_exact:
        for rank in range(max(map(len, images), default=0)):
            _match_ends(images, [each[rank : rank + 1] for each in images], found, known, what="ends with")
        by_path = len(found) - found.count(None) - exact
        if by_name:
            names = [tuple(dict.fromkeys(map(file_name, each))) for each in images]
            _match_ends(images, names, found, known, what="has the file name of")
            named = len(found) - found.count(None) - exact - by_path
    return Matches(tuple(found), exact, by_path, named)


def _match_ends(
    images: Sequence[Sequence[str]],
    ends: Sequence[Sequence[str]],
    found: list[str | None],
    known: Collection[str],
    *,
    what: str,
) -> None:
    """Complete `found` by URIs that end with one of the image's `ends`, and belong to no other image yet."""
    taken = set(found)
    wanted = {end for at, each in enumerate(ends) if found[at] is None for end in each if is_relative(end)}
    depths = {end.count("/") + 1 for end in wanted}
    by_end: defaultdict[str, list[str]] = defaultdict(list)
    for uri in known:
        if uri not in taken:
            for end in _last_parts(uri, depths):
                if end in wanted:
                    by_end[end].append(uri)
    owner: dict[str, tuple[str, ...]] = {}
    for at, each in enumerate(ends):
        if found[at] is not None:
            continue
        for end in each:
            candidates = by_end.get(end, ())
            if not candidates:
                continue
            if len(candidates) > 1:
                examples = " and ".join(sorted(candidates)[:_EXAMPLES])
                raise SourceError(
                    f"the image {end} can't be identified: it is the end of {len(candidates):,} URIs, such as "
                    f"{examples}; name the folder that contains it with --relative-to",
                    code=ErrorCode.AMBIGUOUS_IMAGE,
                )
            (uri,) = candidates
            if owner.setdefault(uri, tuple(images[at])) != tuple(images[at]):
                raise SourceError(
                    f"the image {uri} can't be identified: it {what} several images of the file, such as {end}; name "
                    "the folder that contains them with --relative-to",
                    code=ErrorCode.AMBIGUOUS_IMAGE,
                )
            found[at] = uri
            break


def _last_parts(uri: str, depths: set[int]) -> Iterator[str]:
    """The ends of a URI with these numbers of parts."""
    parts = uri.removeprefix("s3://").replace("#", "/").split("/")
    for depth in depths:
        if depth < len(parts) or (depth == len(parts) and posixpath.isabs(uri)):
            yield "/".join(parts[-depth:])
