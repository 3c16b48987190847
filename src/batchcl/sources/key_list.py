"""Key lists: one `s3://bucket/key` or local path a line, taken literally.

Nothing is decoded, as `+` and `%20` are good parts of a key; nothing is trimmed but the line end.
"""

from __future__ import annotations

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import local_image, refuse_url, s3_image
from batchcl.spellings import BYTE_ORDER_MARK

__all__ = ["parse_key_line"]


def parse_key_line(line: bytes, *, may_be_local: bool = True) -> ImageRef:
    """The image that `line` names; paths are relative to the working directory. Raises `SourceError`. Blocks.

    A list that isn't on this machine names no files on it: there, `may_be_local` is false.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise SourceError("it is not UTF-8 text") from error
    if text.startswith("s3://"):
        return s3_image(text)
    if text.startswith(BYTE_ORDER_MARK):
        raise SourceError("it begins with a byte order mark, as where two files were joined; remove the mark")
    refuse_url(text)
    if "\0" in text:
        raise SourceError("it holds a NUL byte, so it is neither a key nor a path")
    if "://" in text:
        raise SourceError(f"{text!r} is neither s3://bucket/key nor a path")
    if not may_be_local:
        raise SourceError(f"{text!r} is not s3://bucket/key, and a list in S3 names no files of this machine")
    return local_image(text)
