"""Files of a run that don't hold what was written: a disk that lost power, a copy that was cut, an editor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchcl.errors import OutputError

__all__ = ["decode_or_raise"]


@contextmanager
def decode_or_raise(
    where: str,
    *,
    remedy: str = "restore it",
    errors: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, OSError),
) -> Iterator[None]:
    """Decode what was read from `where` within. Raises `OutputError`, with what to do, if that fails.

    Arrow's errors are ValueErrors and OSErrors, so with the usual `errors` no reading may happen within.
    """
    try:
        yield
    except errors as error:
        reason = str(error).split("\n", 1)[0]
        raise OutputError(f"{where} is damaged: {reason}; {remedy}") from error
