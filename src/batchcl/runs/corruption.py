"""Errors for corrupt files of a run: after a power cut, an incomplete copy, or an edit by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchcl.errors import ErrorCode, OutputError

__all__ = ["decode_or_raise"]


@contextmanager
def decode_or_raise(
    where: str,
    *,
    remedy: str = "restore it",
    errors: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, OSError),
) -> Iterator[None]:
    """Decode data that was read from `where`. Errors in the block become an `OutputError` that ends with `remedy`.

    Don't read files in the block: Arrow's decoding errors are ValueErrors and OSErrors, as are those of reading.
    """
    try:
        yield
    except errors as error:
        reason = str(error).split("\n", 1)[0].rstrip(".")
        raise OutputError(f"{where} is corrupt: {reason}; {remedy}", code=ErrorCode.CORRUPT_OUTPUT) from error
