"""Files of the documentation site that are made when it is built; MkDocs calls the `on_…` functions.

README, CHANGELOG, CONTRIBUTING and the benchmarks' pages keep their places in the repository. The command reference and
the page of example files are written here, from the commands themselves and from configs/. Links into the repository
lead to these pages; links to files that are not part of the site become plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from batchcl.cli.app import app
from batchcl.cli.commands import COMMANDS
from batchcl.errors import ErrorCode
from batchcl.outcomes import FAILURE_CODES

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/RESULTS.md": "benchmark-results.md",
}
"""File in the repository → page of the site; files of docs/ keep their names."""
_LINK: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_SOURCE_OF: Final = {page: source for source, page in PAGES.items()}
_CODE: Final = re.compile(r"^```[a-z]*\n.*?^```$|`[^`]+`", re.MULTILINE | re.DOTALL)
_WORD: Final = re.compile(r"[\w-]+")
MODULES: Final = ("batchcl", "batchcl.workflow", "batchcl.emulator")
_KIND: Final = {".py": "python", ".toml": "toml", ".json": "json", ".yaml": "yaml", ".yml": "yaml"}
_OUTSIDE: Final = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^\"'> ]*"
    r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preconnect|icon|preload))[^>]*href=[\"']?(?:https?:)?//[^\"'> ]*"
    r"|(?:url\(|@import )[\"']?(?:https?:)?//[^\"') ]*"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in PAGES.items()}
    pages["configs.md"] = "".join(_example_files())
    pages |= command_pages()
    pages["names.md"] = names_page()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    name = page.file.src_uri
    if page.parent is None or len(page.parent.children) == 1:
        page.meta["hide"] = ["navigation"]  # a list of this page alone
    folder = posixpath.dirname(_SOURCE_OF.get(name, f"docs/{name}"))

    def rewrite(match: re.Match[str]) -> str:
        target = match["target"]
        if not target or ":" in target:
            return match[0]
        file = posixpath.normpath(posixpath.join(folder, target))
        anchor = match["anchor"] or ""
        if file in PAGES:
            file = PAGES[file]
        elif file == "configs" or file.startswith("configs/") or file == "Dockerfile":
            file, anchor = "configs.md", f"#{_slug(file)}" if file != "configs" else ""
        elif file.startswith("docs/"):
            file = file.removeprefix("docs/")
        else:
            return match["text"]
        return f"[{match['text']}]({posixpath.relpath(file, posixpath.dirname(name) or '.')}{anchor})"

    return _LINK.sub(rewrite, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page loads something from another host: the site is read offline, too.

    Raises:
        PluginError: naming the first such page and address.
    """
    site = Path(config.site_dir)
    for file in sorted({*site.rglob("*.html"), *site.rglob("*.css")}):
        if found := _OUTSIDE.search(file.read_text(encoding="utf-8")):
            raise PluginError(f"{file.relative_to(site)} loads from another host: {found[0]}")


def command_pages() -> dict[str, str]:
    """The pages of the command reference: path → Markdown."""
    headings: dict[str, list[str]] = {}
    for name, entry in COMMANDS.items():
        headings.setdefault(entry.heading, []).append(f"| [`{name}`]({name}.md) | {_escape(entry.help)} |\n")
    pages: dict[str, str] = {}
    for path, command in _commands():
        page = f"cli/{path.split()[1]}.md"
        pages[page] = pages.get(page, "") + "".join(_command(command, path))
    listed = "".join(f"\n## {each}\n\n| command | |\n| -- | -- |\n{''.join(rows)}" for each, rows in headings.items())
    pages["cli/index.md"] = (
        "# Commands\n\nEvery command and every option, as `--help` shows them. Options of `run`, `plan`, `pilot` and "
        f"`doctor` can also be given in a [job file](../job-files.md) or in the environment.\n{listed}"
    )
    return pages


def names_page() -> str:
    """A table of every command, flag, error code and public name: its reference, and pages that mention it.

    Its links are checked by the strict build, which fails if a name has no place.

    Raises:
        PluginError: no page outside the reference mentions a command.
    """
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
    code = {
        name: f" {' '.join(_WORD.findall(' '.join(_CODE.findall(text))))} "
        for name, text in pages.items()
        if not name.startswith(("api", "troubleshooting"))
    }
    rows: dict[str, list[str]] = {"Commands": [], "Flags": [], "Error codes": [], "Python": []}
    for path, command in _commands():
        page = f"cli/{path.split()[1]}.md"
        if not hasattr(command, "commands"):
            about = _mentions(path.removeprefix("batchcl "), code)
            if not about:
                raise PluginError(f"no page explains `{path}`")
            rows["Commands"].append(f"| [`{path}`]({page}#{path.replace(' ', '-')}) | {about} |\n")
        rows["Flags"] += [
            f"| [`{path} {flag}`]({page}#{flag_id(path, flag)}) | {_mentions(flag, code)} |\n"
            for flag in _flags(command)
        ]
    rows["Error codes"] = [
        f"| [`{each}`](troubleshooting.md#{each.lower()}) | {_mentions(each, code)} |\n"
        for each in [*ErrorCode, *FAILURE_CODES]
    ]
    for module in MODULES:
        rows["Python"] += [
            f"| [`{module}.{name}`][{module}.{name}] | {_mentions(name, code)} |\n"
            for name in sorted(import_module(module).__all__)
            if name not in {"__version__", "ACCOUNT"}
        ]
    tables = "".join(f"\n## {head}\n\n| | also on |\n| -- | -- |\n{''.join(each)}" for head, each in rows.items())
    return f"# Index of names\n\nWhere each command, flag, error code and Python name is documented.\n{tables}"


def _commands() -> Iterator[tuple[str, Any]]:
    """All commands and groups: ("batchcl model train", the command)."""
    waiting = [("batchcl", typer.main.get_command(app))]
    while waiting:
        path, command = waiting.pop(0)
        if path != "batchcl":
            yield path, command
        waiting = [
            (f"{path} {name}", each) for name, each in getattr(command, "commands", {}).items() if not each.hidden
        ] + waiting


def _flags(command: Any) -> list[str]:
    """The long names of the options of `command`, without those of --no-… and --help."""
    return [_long(each) for each in command.params if each.param_type_name == "option" and not each.hidden]


def _long(option: Any) -> str:
    return next((each for each in option.opts if each.startswith("--")), str(option.opts[0]))


def _mentions(name: str, words: dict[str, str]) -> str:
    """Links to the three pages that mention `name` in code most often."""
    counts = {page: text.count(f" {name} ") for page, text in words.items()}
    found = sorted((page for page, count in counts.items() if count), key=lambda page: -counts[page])
    return ", ".join(f"[{page.removesuffix('.md')}]({page})" for page in found[:3])


def flag_id(path: str, flag: str) -> str:
    """The anchor of `flag` of the command `path`, such as "batchcl model train", on its page."""
    return "-".join([*path.split()[2:], flag.lstrip("-")])


def _command(command: Any, path: str) -> Iterator[str]:
    """The section of a command."""
    context = command.make_context(path, [], resilient_parsing=True)
    text, _, examples = (command.help or "").replace("\b\n", "").partition("Examples:\n")
    yield f"{'#' * (len(path.split()) - 1)} {path}\n\n{_escape(text.strip())}\n\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```\n{path} {usage}\n```\n\n"
    if examples:
        lines = "\n".join(line.strip() for line in examples.strip().splitlines())
        yield f"```sh\n{lines}\n```\n\n"
    sections: dict[str, list[str]] = {}
    for each in command.get_params(context):
        is_argument = each.param_type_name == "argument"
        record = each.get_help_record(context)
        if record is None or "--help" in each.opts:
            continue
        heading = getattr(each, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
        name = each.name if is_argument else _long(each)
        sections.setdefault(heading, []).append(
            f"`{record[0].partition(' <')[0]}`{{ #{flag_id(path, name)} }}\n:   {_escape(record[1])}\n\n"
        )
    is_page = path.count(" ") == 1 and not hasattr(command, "commands")  # and has no other command
    for heading, entries in sections.items():
        title = f"## {heading}" if is_page else f"**{heading}**"
        yield f"{title}\n\n{''.join(entries)}"


def _escape(text: str) -> str:
    """Text of a help as Markdown: what stands between backticks remains code."""
    parts = text.split("`")
    return "`".join(part if n % 2 else re.sub(r"([\\*_<\[\]|])", r"\\\1", part) for n, part in enumerate(parts))


def _example_files() -> Iterator[str]:
    yield (
        "# Example files\n\nThe files of the folder configs, and the Dockerfile; they are in the source distribution, "
        "too.\n"
    )
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    folder = ROOT / "configs"
    for path in [ROOT / "Dockerfile", *sorted(files, key=lambda path: (path.parent != folder, path))]:
        name = path.relative_to(ROOT).as_posix()
        in_folder = name.count("/") > 1
        if in_folder and path.parent != folder:
            folder = path.parent
            yield f"\n## {posixpath.dirname(name)} {{ #{_slug(posixpath.dirname(name))} }}\n"
        yield f"\n{'###' if in_folder else '##'} {path.name} {{ #{_slug(name)} }}\n\n"
        yield f"````{_KIND.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"


def _slug(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.lower())
