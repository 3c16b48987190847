"""Long answers in pages."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.faults import ServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchcl.emulator.state import Project, Version

__all__ = ["page"]

_MOST: Final = 100


def page(
    resources: Sequence[Project | Version], parameters: dict[str, Any], *, scope: str
) -> tuple[list[Any], dict[str, str]]:
    """One page of `resources`, latest first, and the answer's NextToken member if there are more.

    A token names the last resource of its page, so resources that come or go in between shift nothing.

    Args:
        resources: all that match.
        parameters: the call's, with MaxResults and NextToken.
        scope: what the listing is of; a token of another listing is refused.

    Raises:
        ServiceError: InvalidPaginationTokenException.
    """
    ordered = sorted(resources, key=lambda r: (r.created, r.arn), reverse=True)
    token = parameters.get("NextToken")
    if token is not None:
        after = _read(token, scope)
        ordered = [r for r in ordered if (r.created, r.arn) < after]
    shown = ordered[: parameters.get("MaxResults", _MOST)]
    if len(shown) == len(ordered):
        return shown, {}
    last = orjson.dumps([scope, shown[-1].created, shown[-1].arn])
    return shown, {"NextToken": base64.urlsafe_b64encode(last).decode()}


def _read(token: str, scope: str) -> tuple[float, str]:
    try:
        of, created, arn = orjson.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if of == scope:
            return float(created), str(arn)
    except (binascii.Error, ValueError, TypeError):
        pass
    raise ServiceError("InvalidPaginationTokenException", "Invalid pagination token")
