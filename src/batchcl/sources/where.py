"""`--where`: SQL conditions on the columns of an image's list entry."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import polars as pl

from batchcl.errors import UsageError
from batchcl.images import ImageRef, escaped
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
_USUAL: Final = "use AND, OR, NOT, comparisons, IN, LIKE, BETWEEN, IS NULL, CASE and CAST on its columns"


class Condition:
    """A condition on the columns of a row, such as `size > 10000 AND key LIKE '%.jpg'`."""

    def __init__(self, text: str) -> None:
        """Raises `UsageError` where the text is more than a condition on one row."""
        self.text = text
        self.names = frozenset(_names(text))

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"

    def check(self, schema: Mapping[str, pl.DataType], *, known: Iterable[str] | None = None) -> None:
        """Raise `UsageError` where it can't be asked of rows with such columns; `known` are told to the user."""
        empty = pl.DataFrame(schema=dict(schema))
        try:
            kind = self._asked(empty).dtype
        except pl.exceptions.PolarsError as error:
            columns = ", ".join(schema if known is None else known)
            raise UsageError(f"--where {self.text!r}: {_reason(error)}; the columns are {columns}") from error
        if kind not in (pl.Boolean, pl.Null):
            raise UsageError(
                f"--where {self.text!r} is {kind} rather than true or false; compare it, as in size > 10000"
            )

    def holds(self, frame: pl.DataFrame) -> pl.Series:
        """For each row whether it fits; one of which that can't be said, as a value is missing, doesn't.

        Raises:
            UsageError: polars can't tell for these values, as where text is cast to a number that it isn't.
        """
        try:
            return self._asked(frame).cast(pl.Boolean).fill_null(value=False)
        except pl.exceptions.PolarsError as error:
            raise UsageError(
                f"--where {self.text!r}: {_reason(error)}; TRY_CAST makes null of what can't be cast"
            ) from error

    def _asked(self, frame: pl.DataFrame) -> pl.Series:
        context = pl.SQLContext({"images": frame})
        sql = f"SELECT ({self.text}) AS fits FROM images"  # noqa: S608 - `_names` has let it pass
        # the default engine has native threads with known races, and this process may be paying for a model
        return context.execute(sql).collect(engine="in-memory")["fits"]


def _names(text: str) -> Iterator[str]:
    """The words in `text` that may be columns, and others."""
    tokens = list(_tokens(text))
    if not tokens:
        raise UsageError("--where is empty; write a condition such as size > 10000")
    if not _is_balanced([token for _, token in tokens]):
        raise UsageError(f"--where {text!r}: its parentheses don't match")
    for (kind, token), (_, following) in zip(tokens, [*tokens[1:], ("", "")], strict=True):
        word = token.lower()
        if kind == "quoted":
            yield token[1:-1].replace('""', '"')
            word = ""
        if kind not in {"word", "quoted"}:
            continue
        if word in _REFUSED.split():
            raise UsageError(f"--where {text!r}: {token} is not for a condition on one row; {_USUAL}")
        if following == "(" and word not in f"{_FUNCTIONS} {_BEFORE_PARENTHESIS}".split():
            known = ", ".join(_FUNCTIONS.split())
            raise UsageError(f"--where {text!r}: there is no function {token} for conditions, but {known}")
        if kind == "word":
            yield token


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each token but spaces. Raises `UsageError` for what is none, and for what hides others."""
    at = 0
    before = "space"
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found["operator"] in {"--", "/*"}:
            raise UsageError(f"--where {text!r}: {text[at : at + 10]!r} is no part of a condition; {_USUAL}")
        kind = found.lastgroup or ""
        if kind == "text" and before in {"word", "text", "quoted", "number"}:
            raise UsageError(f"--where {text!r}: there is no space before {found[0][:20]}")
        if kind != "space":
            yield kind, found[0]
        before = kind
        at = found.end()


def _is_balanced(tokens: Iterable[str]) -> bool:
    depth = 0
    for each in tokens:
        depth += (each == "(") - (each == ")")
        if depth < 0:
            return False
    return depth == 0


def _reason(error: Exception) -> str:
    """Polars' own words without its plan."""
    text = str(error).split("\n\nResolved plan", 1)[0].split("; valid columns", 1)[0]
    return " ".join(text.split()).rstrip(".") or type(error).__name__


_OWN: Final[Mapping[str, tuple[pl.DataType, Callable[[ImageRef], Any]]]] = {
    "uri": (pl.String(), lambda image: escaped(image.uri)),
    "bucket": (pl.String(), lambda image: image.bucket),
    "key": (pl.String(), lambda image: escaped(image.key)),
    "version_id": (pl.String(), lambda image: image.version_id),
    "etag": (pl.String(), lambda image: image.etag),
    "size": (pl.Int64(), lambda image: image.size_bytes),
    "size_bytes": (pl.Int64(), lambda image: image.size_bytes),
    "last_modified": (pl.Datetime("us", "UTC"), lambda image: image.last_modified),
    "extra": (pl.String(), lambda image: image.extra),
}


class ImageCondition:
    """A condition asked of images, a page at a time.

    Beside the image's own columns it knows those that its list has: numbers are floats, truth values are such, all
    else is text, nested values as JSON. What the list says of an image in another type than of the first ones is null.
    """

    def __init__(self, condition: Condition, kinds: Mapping[str, pl.DataType]) -> None:
        """`kinds` are those of the list's columns that the condition may name."""
        self._condition = condition
        self._own = {name: column for name, column in _OWN.items() if name in condition.names}
        self._kinds = {name: kind for name, kind in kinds.items() if name in condition.names and name not in _OWN}
        schema = {name: kind for name, (kind, _) in self._own.items()} | self._kinds
        condition.check(schema, known=[*_OWN, *(name for name in kinds if name not in _OWN)])

    def __call__(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each image whether it fits. Raises `UsageError` where that can't be told for such values."""
        columns = [pl.Series("", [True] * len(images))]  # a condition need not name any column
        columns += [
            pl.Series(name, [told(image) for image in images], kind) for name, (kind, told) in self._own.items()
        ]
        if self._kinds:
            entries = [_entry(image) for image in images]
            columns += [
                pl.Series(name, [_cast(entry.get(name), kind) for entry in entries], kind)
                for name, kind in self._kinds.items()
            ]
        return self._condition.holds(pl.DataFrame(columns)).to_list()


async def condition_on(condition: Condition, sources: Iterable[Source]) -> ImageCondition:
    """`condition` for the images of `sources`, whose first pages tell which columns there are beside the image's own.

    Where it names none of those, no page is read.

    Raises:
        UsageError: there is no such column, or the condition is none for such columns.
        BatchclError: a source can't be read.
    """
    with suppress(UsageError):
        return ImageCondition(condition, {})
    values: dict[str, list[Any]] = {}
    for source in sources:
        for image in await _first_page(source):
            for name, value in _entry(image).items():
                values.setdefault(name, []).append(value)
    return ImageCondition(condition, {name: _kind(found) for name, found in values.items()})


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


def _kind(values: Iterable[Any]) -> pl.DataType:
    types = {type(value) for value in values if value is not None}
    if types and types <= {int, float}:
        return pl.Float64()
    return pl.Boolean() if types == {bool} else pl.String()


def _cast(value: Any, kind: pl.DataType) -> Any:
    if value is None:
        return None
    if kind == pl.Float64():
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == pl.Boolean():
        return value if isinstance(value, bool) else None
    return escaped(value) if isinstance(value, str) else orjson.dumps(value).decode()
