"""Pages of long responses, with tokens."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from batchcl.emulator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchcl.emulator.records import StoredPolicy, StoredProject, StoredVersion

    _Resource = TypeVar("_Resource", StoredProject, StoredVersion, StoredPolicy)

__all__ = ["page", "rows"]

_Row = TypeVar("_Row")

_PAGE_SIZE: Final = 100


def page(
    resources: Sequence[_Resource], parameters: dict[str, Any], *, scope: str, page_size: int = _PAGE_SIZE
) -> tuple[list[_Resource], dict[str, str]]:
    """A page of `resources`, newest first, and the NextToken member of the response if there are more.

    A token identifies the last resource of its page, so resources that are created or deleted meanwhile don't shift the
    pages. An empty token requests the first page.

    Args:
        resources: all that match.
        parameters: of the call, with MaxResults and NextToken.
        scope: identifies the listing; tokens of other listings are rejected.
        page_size: default of MaxResults.

    Raises:
        ApiError: InvalidPaginationTokenException.
    """
    ordered = sorted(resources, key=lambda r: (r.created, r.arn), reverse=True)
    if token := parameters.get("NextToken"):
        created, arn = _read(token, scope, (float, str))
        ordered = [r for r in ordered if (r.created, r.arn) < (created, arn)]
    shown = ordered[: parameters.get("MaxResults", page_size)]
    if len(shown) == len(ordered):
        return shown, {}
    return shown, _token(scope, [shown[-1].created, shown[-1].arn])


def rows(found: Sequence[_Row], parameters: dict[str, Any], *, scope: str) -> tuple[list[_Row], dict[str, str]]:
    """A page of rows without ARNs, identified by their position; see `page`. `scope` must include all filters."""
    token = parameters.get("NextToken")
    start = _read(token, scope, (int,))[0] if token else 0
    end = start + parameters.get("MaxResults", _PAGE_SIZE)
    return list(found[start:end]), {} if end >= len(found) else _token(scope, [end])


def _token(scope: str, last: list[Any]) -> dict[str, str]:
    return {"NextToken": base64.urlsafe_b64encode(orjson.dumps([_digest(scope), *last])).decode()}


def _read(token: str, scope: str, kinds: tuple[type, ...]) -> list[Any]:
    try:
        found: list[Any] = orjson.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError):
        found = []
    if isinstance(found, list) and [type(part) for part in found] == [str, *kinds] and found[0] == _digest(scope):
        return found[1:]
    raise ApiError("InvalidPaginationTokenException", "Invalid pagination token")


def _digest(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:16]
