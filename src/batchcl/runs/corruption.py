"""Decoding of a run's files, which may be corrupt after a power cut, an incomplete copy or an edit by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from batchcl.errors import ErrorCode, OutputError

__all__ = ["decode_or_raise", "known_fields"]


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


def known_fields(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the fields that the dataclass `kind` has; a later version of batchcl may have added others."""
    return {name: values[name] for name in kind.__dataclass_fields__ if name in values}
