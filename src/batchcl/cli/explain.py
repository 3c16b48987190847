"""`batchcl explain`: prints a section of docs/troubleshooting.md, which is part of the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

__all__ = ["Section", "explain", "parse_page", "read_page"]

_HEADING: Final = re.compile(r"^(##|###) (.+)\n", re.MULTILINE)
_FENCE: Final = re.compile(r"^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[([^]]+)\]\(([^)#]*)(#[^)]*)?\)")
_SENTENCE: Final = re.compile(r".+?\.(?=\s|$)", re.DOTALL)


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        group: the heading above.
        code: of the error, or of the failed image.
        text: Markdown, without the heading.
    """

    group: str
    code: str
    text: str

    @property
    def summary(self) -> str:
        """The first sentence."""
        found = _SENTENCE.match(self.text)
        return "" if found is None else " ".join(found[0].split())


def read_page() -> str:
    """The page in the package; in a checkout, that of docs/."""
    package = Path(__file__).parents[1]
    installed = package / "troubleshooting.md"
    page = installed if installed.is_file() else package.parents[1] / "docs" / "troubleshooting.md"
    return page.read_text(encoding="utf-8")


def parse_page(page: str) -> list[Section]:
    """The sections of the page about a code, in its order."""
    _, *parts = _HEADING.split(page)
    sections = []
    group = ""
    for level, heading, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if level == "##":
            group = heading
        else:
            sections.append(Section(group, heading, text.strip() + "\n"))
    return sections


def explain(
    code: Annotated[str | None, typer.Argument(metavar="[CODE]", help="Error code (default: list all).")] = None,
) -> None:
    """Show causes and remedies of an error, by its code.

    The code of an error is on the line below it, that of a failed image in `batchcl failures`.

    Examples:

      batchcl explain

      batchcl explain HeldRun
    """
    sections = parse_page(read_page())
    sys.stdout.write(_listed(sections) if code is None else _shown(_find(sections, code)))


def _find(sections: list[Section], code: str) -> Section:
    from difflib import get_close_matches

    from batchcl.errors import UsageError

    by_name = {each.code.lower(): each for each in sections}
    found = by_name.get(code.lower())
    if found is None:
        similar = get_close_matches(code.lower(), by_name, 1)
        advice = f"did you mean {by_name[similar[0]].code}?" if similar else "`batchcl explain` lists the codes"
        raise UsageError(f"there is no error code {code!r}; {advice}")
    return found


def _listed(sections: list[Section]) -> str:
    width = max(len(each.code) for each in sections)
    groups: dict[str, list[str]] = {}
    for each in sections:
        groups.setdefault(each.group, []).append(f"  {each.code:{width}}  {_plain(each.summary)}\n")
    return "\n".join(f"{group}:\n{''.join(lines)}" for group, lines in groups.items())


def _shown(section: Section) -> str:
    example = _FENCE.sub(lambda match: "".join(f"    {line}\n" for line in match[1].splitlines()), section.text)
    return f"{section.code}\n\n{_plain(example)}\nFrom docs/troubleshooting.md#{section.code.lower()}\n"


def _plain(text: str) -> str:
    """`text` with links as their words, followed by the page if it is another one."""
    return _LINK.sub(lambda link: f"{link[1]} (docs/{link[2]}{link[3] or ''})" if link[2] else link[1], text)
