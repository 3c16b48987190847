"""SQL conditions on the columns of a row, such as `size > 10000 AND key LIKE '%.jpg'`, of `--where` and other options.

A condition is parsed into tokens and checked against lists of allowed functions before polars evaluates it, so that it
can't read files or other tables.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import polars as pl

from batchcl.errors import ErrorCode, UsageError
from batchcl.images import ImageRef, escape_name
from batchcl.sources.base import Source

__all__ = ["Condition", "ImageCondition", "condition_on"]

_TOKEN: Final = re.compile(
    r"(?P<text>'(?:[^']|'')*')"
    r'|(?P<quoted>"(?:[^"]|"")+")'
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<word>[^\W\d]\w*)"
    r"|(?P<space>\s+)"
    r"|(?P<operator>--|/\*|[-<>=!+*/%|~().,:])"
)
_REFUSED: Final = (
    "select from with table values union intersect except over partition exists any all some explain show describe "
    "create drop insert update delete truncate filter within columns current_date current_time current_timestamp "
    "localtime localtimestamp"
)
_FUNCTIONS: Final = (
    "abs bit_length cbrt ceil ceiling char_length coalesce concat concat_ws date date_part div ends_with exp floor "
    "greatest if ifnull initcap least left length ln log log10 log1p log2 lower ltrim mod normalize nullif "
    "octet_length pow power regexp_like replace reverse right round rtrim sign split_part sqrt starts_with strftime "
    "strpos substr substring trim upper"
)
_BEFORE_PARENTHESIS: Final = (
    "and or not in is like ilike rlike regexp between case when then else xor as decimal numeric varchar char cast "
    "try_cast"
)
_ADVICE: Final = "use AND, OR, NOT, comparisons, IN, LIKE, BETWEEN, IS NULL, CASE and CAST on its columns"


class Condition:
    """A condition on the columns of a row; `names` are the column names (and other words) in its text."""

    def __init__(self, text: str, *, option: str = "--where", example: str = "size > 10000") -> None:
        """`option` and `example` are for messages. Raises `UsageError` if the text is not a condition on one row."""
        self.text = text
        self._option = option
        self._example = example
        if not text.strip():
            raise UsageError(f"{option} is empty; write a condition such as {example}", code=ErrorCode.INVALID_QUERY)
        self.names = frozenset(_names(text, option))

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"

    def check(self, schema: Mapping[str, pl.DataType], *, known: Iterable[str] | None = None) -> None:
        """Raise `UsageError` if the condition is not valid for rows of `schema`.

        `known` are the columns to list in the message, by default those of `schema`.
        """
        try:
            dtype = self._evaluate(pl.DataFrame(schema=dict(schema))).dtype
        except pl.exceptions.PolarsError as error:
            columns = ", ".join(schema if known is None else known)
            raise UsageError(
                f"{self._option} {self.text!r}: {_reason(error)}; the columns are {columns}",
                code=ErrorCode.INVALID_QUERY,
            ) from error
        if dtype not in (pl.Boolean, pl.Null):
            raise UsageError(
                f"{self._option} {self.text!r} has the type {dtype}, not Boolean; write a comparison such as "
                f"{self._example}",
                code=ErrorCode.INVALID_QUERY,
            )

    def matches(self, frame: pl.DataFrame) -> pl.Series:
        """For each row, whether the condition is true; false where it is null because of a missing value.

        Raises:
            UsageError: polars can't evaluate it for these values, such as CAST of a text that is not a number.
        """
        try:
            return self._evaluate(frame).cast(pl.Boolean).fill_null(value=False)
        except pl.exceptions.PolarsError as error:
            raise UsageError(
                f"{self._option} {self.text!r}: {_reason(error)}; use TRY_CAST, which returns null for invalid values",
                code=ErrorCode.INVALID_QUERY,
            ) from error

    def _evaluate(self, frame: pl.DataFrame) -> pl.Series:
        context = pl.SQLContext({"images": frame})
        sql = f"SELECT ({self.text}) AS matches FROM images"  # noqa: S608 - checked by `_names`
        # the default engine has native threads with known races, and this process may be paying for a model
        return context.execute(sql).collect(engine="in-memory")["matches"]


def _names(text: str, option: str) -> Iterator[str]:
    """The words in `text` that may be columns. Raises `UsageError` if `text` is not a condition."""
    tokens = list(_tokens(text, option))
    if not _is_balanced([token for _, token in tokens]):
        raise UsageError(
            f"{option} {text!r}: its parentheses are not balanced; add or remove one", code=ErrorCode.INVALID_QUERY
        )
    for (kind, token), (_, following) in zip(tokens, [*tokens[1:], ("", "")], strict=True):
        word = token.lower()
        if kind == "quoted":
            yield token[1:-1].replace('""', '"')
            word = ""
        if kind not in {"word", "quoted"}:
            continue
        if word in _REFUSED.split():
            raise UsageError(
                f"{option} {text!r}: {token} is not allowed in a condition on one row; {_ADVICE}",
                code=ErrorCode.INVALID_QUERY,
            )
        if following == "(" and word not in f"{_FUNCTIONS} {_BEFORE_PARENTHESIS}".split():
            allowed = ", ".join(_FUNCTIONS.split())
            raise UsageError(
                f"{option} {text!r}: the function {token} is not allowed; allowed are {allowed}",
                code=ErrorCode.INVALID_QUERY,
            )
        if kind == "word":
            yield token


def _tokens(text: str, option: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token except spaces. Raises `UsageError` for comments and unknown characters."""
    at = 0
    previous = "space"
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match["operator"] in {"--", "/*"}:
            raise UsageError(
                f"{option} {text!r}: {text[at : at + 10]!r} is not allowed in a condition; {_ADVICE}",
                code=ErrorCode.INVALID_QUERY,
            )
        kind = match.lastgroup or ""
        if kind == "text" and previous in {"word", "text", "quoted", "number"}:
            raise UsageError(
                f"{option} {text!r}: a space is missing before {match[0][:20]}", code=ErrorCode.INVALID_QUERY
            )
        if kind != "space":
            yield kind, match[0]
        previous = kind
        at = match.end()


def _is_balanced(tokens: Iterable[str]) -> bool:
    depth = 0
    for each in tokens:
        depth += (each == "(") - (each == ")")
        if depth < 0:
            return False
    return depth == 0


def _reason(error: Exception) -> str:
    """Polars' message without the query plan."""
    text = str(error).split("\n\nResolved plan", 1)[0].split("; valid columns", 1)[0]
    return " ".join(text.split()).rstrip(".") or type(error).__name__


_IMAGE_COLUMNS: Final[Mapping[str, tuple[pl.DataType, Callable[[ImageRef], Any]]]] = {
    "uri": (pl.String(), lambda image: escape_name(image.uri)),
    "bucket": (pl.String(), lambda image: image.bucket),
    "key": (pl.String(), lambda image: escape_name(image.key)),
    "version_id": (pl.String(), lambda image: image.version_id),
    "etag": (pl.String(), lambda image: image.etag),
    "size": (pl.Int64(), lambda image: image.size_bytes),
    "size_bytes": (pl.Int64(), lambda image: image.size_bytes),
    "last_modified": (pl.Datetime("us", "UTC"), lambda image: image.last_modified),
    "extra": (pl.String(), lambda image: image.extra),
}


class ImageCondition:
    """A condition that is evaluated on a page of images.

    Besides the columns of the image it may use those of the image's list entry (`extra`): numbers as floats, Booleans,
    and everything else as text, nested values as JSON. A value whose type differs from the column's becomes null.
    """

    def __init__(self, condition: Condition, list_columns: Mapping[str, pl.DataType]) -> None:
        """`list_columns` are the columns of the list entries. Raises `UsageError` if the condition is not valid."""
        self._condition = condition
        self._image_columns = {name: column for name, column in _IMAGE_COLUMNS.items() if name in condition.names}
        others = {name: dtype for name, dtype in list_columns.items() if name not in _IMAGE_COLUMNS}
        self._list_columns = {name: dtype for name, dtype in others.items() if name in condition.names}
        schema = {name: dtype for name, (dtype, _) in self._image_columns.items()} | self._list_columns
        condition.check(schema, known=[*_IMAGE_COLUMNS, *others])

    def __call__(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each image, whether the condition is true. Raises `UsageError` as `Condition.matches` does."""
        columns = [pl.Series("", [True] * len(images))]  # the condition may not use any column
        columns += [
            pl.Series(name, [value(image) for image in images], dtype)
            for name, (dtype, value) in self._image_columns.items()
        ]
        if self._list_columns:
            entries = [_entry(image) for image in images]
            columns += [
                pl.Series(name, [_cast(entry.get(name), dtype) for entry in entries], dtype)
                for name, dtype in self._list_columns.items()
            ]
        return self._condition.matches(pl.DataFrame(columns)).to_list()


async def condition_on(condition: Condition, sources: Iterable[Source]) -> ImageCondition:
    """`condition` for the images of `sources`; the first page of each determines the columns of the list entries.

    If the condition uses only columns of the image itself, no page is read.

    Raises:
        UsageError: there is no such column, or the condition is not valid for the columns.
        BatchclError: a source can't be read.
    """
    with suppress(UsageError):
        return ImageCondition(condition, {})
    values: dict[str, list[Any]] = {}
    for source in sources:
        for image in await _first_page(source):
            for name, value in _entry(image).items():
                values.setdefault(name, []).append(value)
    return ImageCondition(condition, {name: _column_type(column) for name, column in values.items()})


async def _first_page(source: Source) -> list[ImageRef]:
    pages = source.pages()
    try:
        return await anext(pages, [])
    finally:
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


def _entry(image: ImageRef) -> dict[str, Any]:
    entry = None if image.extra is None else orjson.loads(image.extra)
    return entry if isinstance(entry, dict) else {}


def _column_type(values: Iterable[Any]) -> pl.DataType:
    types = {type(value) for value in values if value is not None}
    if types and types <= {int, float}:
        return pl.Float64()
    return pl.Boolean() if types == {bool} else pl.String()


def _cast(value: Any, dtype: pl.DataType) -> Any:
    if value is None:
        return None
    if dtype == pl.Float64():
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if dtype == pl.Boolean():
        return value if isinstance(value, bool) else None
    return escape_name(value) if isinstance(value, str) else orjson.dumps(value).decode()
