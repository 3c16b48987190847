"""README.md and docs/ agree with the program.

Lines that start with `$ batchcl` in ```console blocks are run in a directory with the files of `batchcl demo`, with the
emulator and a local S3 in place of AWS; the pages in TYPED_ELSEWHERE have tests of their own. ```python blocks of
README.md and docs/analysis.md are run too; those of cookbook.md by test_workflow.py, of reading.md by
test_reading_page.py. Every `batchcl …` in code must be an existing command with existing flags.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest.mock import patch

import pyarrow as pa
import pytest
import typer.main
from typer.core import TyperGroup

import job_table
from batchcl.cli.app import app
from batchcl.cli.panel import render
from batchcl.emulator import demo as emulated
from batchcl.emulator.fault_injection import Kind
from batchcl.errors import ExitCode
from batchcl.events import Snapshot
from batchcl.job import Job, load_job
from batchcl.lifetime.state_machine import TRANSITIONS, ModelEvent, ModelState
from batchcl.monitoring.trouble import TROUBLE
from batchcl.outcomes import FAILURE_CODES
from batchcl.runs.schema import FAILURES, RESULTS
from batchcl.runs.status import RunState
from batchcl.scoring.estimates import Estimate
from batchcl.scoring.pilot import Pilot
from batchcl.scoring.plan import DeadlinePlan, Plan
from batchcl.summary import SessionRecord, SourceCounts, Summary
from observers import snapshot
from servers import already_trained, aws_env, client, make_bucket, run_process

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
SCHEDULES = [ROOT / "configs" / "crontab", *sorted((ROOT / "configs" / "systemd").iterdir())]
DAGS = sorted((ROOT / "configs" / "airflow").glob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
OUTPUT = ROOT / "docs" / "output.md"
BUCKETS = ("acme-photos", "acme-tables")
SMALL_RUNS = {"BATCHCL_LIMIT": "5"}
TYPED_ELSEWHERE = {"tutorial.md", "workflow.md", "improving.md", "migrating.md", "exchange.md", "cookbook.md"}
"""Their commands depend on each other, and their output is compared: see test_workflow.py and test_exchange_page.py."""

_FENCE = re.compile(r"^```(?P<kind>[a-z]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_FLAG = re.compile(r"\"(--[a-z-]+)\"")
_SPAN = re.compile(r"`([^`\n]+)`")
_CODE = re.compile(r"`([^`]+)`")
_EVENT = re.compile(r"\b(?:Notice|_queue_notice|log)\(\s*\"([a-z-]+)\"|\bevent=\"([a-z-]+)\"")
_LINK = re.compile(r"\]\((?P<path>[^)#:\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
_COMMAND = re.compile(r"(?<![\w'\[/.-])(?<!from )(?:\.venv/bin/)?batchcl (?P<rest>[a-z].*)")
_END = frozenset({"|", "&&", ";", "||", ">", ">>", "#"})


class Block(NamedTuple):
    kind: str
    code: str


class Mentioned(NamedTuple):
    """A command in the documentation, with its words up to a pipe or comment."""

    where: str
    words: list[str]


def blocks(page: Path, kind: str) -> list[str]:
    return [block.code for block in map(_block, _FENCE.finditer(page.read_text())) if block.kind == kind]


def _block(match: re.Match[str]) -> Block:
    return Block(match["kind"], match["code"])


def runnable(page: Path) -> list[str]:
    lines = (line for code in blocks(page, "console") for line in code.splitlines())
    return [line.removeprefix("$ batchcl ") for line in lines if line.startswith("$ batchcl ")]


def mentioned(page: Path) -> Iterator[Mentioned]:
    """Every `batchcl COMMAND …` in code; in a job file, in its comments; in a DAG, the `arguments` of its tasks."""
    text = page.read_text()
    if page in DAGS:
        found = [
            each.value
            for each in ast.walk(ast.parse(text))
            if isinstance(each, ast.keyword) and each.arg == "arguments"
        ]
        for words in found:
            assert isinstance(words, ast.List)
            yield Mentioned(
                page.name, [str(each.value) if isinstance(each, ast.Constant) else "X" for each in words.elts]
            )
        return
    if page.suffix == ".md":
        fenced = [line for match in _FENCE.finditer(text) for line in match["code"].splitlines()]
        code = [line for line in fenced if not line.startswith("batchcl: ")]
        code += _SPAN.findall(_FENCE.sub("", text).replace("\n", " "))
    elif page in SCHEDULES:
        code = [line.replace("=/srv/labels/", " ") for line in text.splitlines() if "bin/batchcl " in line]
    else:
        code = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        code += [span for line in code for span in _SPAN.findall(line)]
        code = [line for line in code if line.startswith("batchcl ")]
    for line in code:
        if (match := _COMMAND.search(line)) is not None:
            yield Mentioned(page.name, list(_words(match["rest"])))


def _words(text: str) -> Iterator[str]:
    lexer = shlex.shlex(text.replace("'", " ").replace("`", " "), posix=True, punctuation_chars="|;>&")
    lexer.whitespace_split = True
    for word in lexer:
        if word in _END:
            return
        yield word


def options(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@cache
def commands() -> dict[str, set[str]]:
    """`model start` → its flags, and so on."""
    top = typer.main.get_command(app)
    assert isinstance(top, TyperGroup)
    return dict(_commands(top, ""))


def _commands(group: TyperGroup, before: str) -> Iterator[tuple[str, set[str]]]:
    for verb, command in group.commands.items():
        yield f"{before}{verb}", options(command)
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{before}{verb} ")


def name_of(words: list[str], known: Iterable[str]) -> str:
    """The longest command name at the start of `words`."""
    beginnings = [" ".join(words[:n]) for n in (3, 2, 1)]
    return next((name for name in beginnings if name in known), words[0])


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below `heading`."""
    section = re.split(r"^#+ ", page.read_text().split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    end = next((n for n, row in enumerate(rows) if n > 1 and set(row) <= set("|- ")), len(rows) + 1) - 1
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:end]]


def names(page: Path, heading: str) -> list[str]:
    """The names in the first column of the first table below `heading`."""
    return [name for row in table(page, heading) for name in _CODE.findall(row[0])]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def docs_dir(demo, aws, clean_env, tmp_path_factory) -> Path:
    """A directory with the files of the demo and the job files."""
    directory: Path = tmp_path_factory.mktemp("docs")
    shutil.copytree(demo.state, directory / "demo" / "emulator")
    shutil.copytree(demo.data.images, directory / "demo" / "images")
    (directory / "demo" / "images" / "00000-empty.png").touch()  # gives a row in failures/
    shutil.copy(demo.data.truth, directory / "demo" / "truth.manifest")
    shutil.make_archive(str(directory / "demo" / "shard-0001"), "tar", demo.data.images)
    shutil.copytree(ROOT / "configs", directory / "configs")
    words = ("run", "demo/images", "--model", demo.arn, "--out", "demo/out")
    assert run_process(*words, env=clean_env | aws, cwd=directory).code == 0
    (directory / "out").symlink_to(directory / "demo" / "out")
    return directory


@pytest.fixture(scope="module")
def aws(service, seaweed, demo) -> dict[str, str]:
    """The environment of a user who has the buckets that the documentation mentions."""
    s3 = client("s3", seaweed)
    for bucket in BUCKETS:
        make_bucket(s3, bucket)
    for picture in sorted(demo.data.images.iterdir())[:6]:
        s3.put_object(Bucket=BUCKETS[0], Key=f"2026/{picture.name}", Body=picture.read_bytes())
    other_services = {f"AWS_ENDPOINT_URL_{name}": service for name in ("STS", "SERVICE_QUOTAS", "CLOUDWATCH")}
    return aws_env(service, seaweed) | other_services | SMALL_RUNS


@pytest.mark.parametrize(
    "page", [page for page in PAGES if runnable(page) and page.name not in TYPED_ELSEWHERE], ids=lambda page: page.name
)
def test_console_commands_succeed(page, cli, demo, docs_dir, aws):
    for line in runnable(page):
        words = [word.replace("$ARN", demo.arn) for word in shlex.split(line, comments=True)]
        done = cli(*words, env=aws, cwd=docs_dir)
        assert done.code == 0, f"batchcl {line}\n{done.err}"
        assert done.out or words[0] in {"run", "retry"}, line


@pytest.mark.parametrize("name", ["README.md", "docs/analysis.md"])
def test_python_examples_run(name, demo, docs_dir, clean_env):
    script = already_trained(demo) + "\n".join(blocks(ROOT / name, "python"))
    with (
        patch.dict(os.environ, clean_env, clear=True),
        patch.object(emulated, "demo_model", emulated.demo_model),  # which the script replaces
        chdir(docs_dir),
    ):
        exec(script, {"__name__": "page"})


TYPE_CHECKS = """
[mypy]
strict = True
follow_imports = silent
mypy_path = src
[mypy-boto3.*,botocore.*,pyarrow.*,pycocotools.*,pyspark.*]
ignore_missing_imports = True
[mypy-aiohttp.*,altair.*,cryptography.*,duckdb.*,hypothesis.*,markdown_it.*,narwhals.*,opentelemetry.*,PIL.*]
follow_imports = skip
[mypy-idna.*,multidict.*,numpy.*,yarl.*]
follow_imports = skip
follow_imports_for_stubs = True
[mypy-jinja2.*,requests.*,rich.*,urllib3.*]
follow_imports = skip
"""
"""Reads the types of batchcl and of libraries that examples use; `make types` checks batchcl's own code."""


def test_python_examples_pass_strict_type_checks(tmp_path):
    examples = {page.name: blocks(page, "python") for page in PAGES if blocks(page, "python")}
    assert {"README.md", "analysis.md", "workflow.md"} <= examples.keys()
    files = []
    for name, codes in examples.items():
        files.append(tmp_path / f"example_{name.removesuffix('.md').replace('-', '_')}.py")
        files[-1].write_text("\n".join(codes))
    (config := tmp_path / "mypy.ini").write_text(TYPE_CHECKS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", tmp_path / "cache", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_nightly_job_runs_with_test_buckets(cli, demo, docs_dir, aws):
    done = cli(
        *("run", "s3://acme-photos/2026/", "--config", "configs/nightly.toml", "--model", demo.arn),
        *("--out", "s3://acme-tables/nightly", "--run-id", "2026-11-21", "--json"),
        env=aws,
        cwd=docs_dir,
    )
    assert done.code == 0, done.err
    assert done.json | {"planned": 5, "scored": 5, "failed": 0} == done.json


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_job_files_load(config, monkeypatch):
    for key in Job.model_fields:
        monkeypatch.delenv(f"BATCHCL_{key.upper()}", raising=False)
    assert load_job(config).sources


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS, *SCHEDULES, *DAGS], ids=lambda page: page.name)
def test_commands_and_flags_exist(page):
    known = commands()
    for where, words in mentioned(page):
        name = name_of(words, known)
        assert name in known, f"{where}: batchcl {name}"
        flags = {word.partition("=")[0].rstrip("…") for word in words if word.startswith("--")}
        assert flags <= known[name], f"{where}: batchcl {name} has no {flags - known[name]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_mentioned_alone_belong_to_a_command(page):
    known = set().union(*commands().values())
    if page.parent.name == "benchmarks":
        known |= {flag for script in page.parent.glob("*.py") for flag in _FLAG.findall(script.read_text())}
    spans = _SPAN.findall(_FENCE.sub("", page.read_text()))
    named = {span.split()[0] for span in spans if span.startswith("--")}
    assert named <= known, f"unknown: {named - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for match in _LINK.finditer(_FENCE.sub("", page.read_text())):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        assert target.exists(), match[0]
        if match["anchor"]:
            assert match["anchor"] in anchors(target), match[0]


def test_schedules_call_the_documented_command():
    called = {" ".join(words[:2]) for page in SCHEDULES for _, words in mentioned(page)}
    assert called == {"run --config", "model reap"}


def test_dags_call_commands():
    called = [" ".join(words[:2]) for page in DAGS for _, words in mentioned(page)]
    assert called == ["compare X", "report X", "model reap"]


def test_every_command_is_mentioned():
    named = {" ".join(words[:n]) for page in PAGES for _, words in mentioned(page) for n in (1, 2, 3)}
    assert set(commands()) == named & set(commands())


def test_every_exit_code_is_documented():
    codes = [int(row[0]) for row in table(ROOT / "docs" / "exit-codes.md", "Exit codes") if row[0]]
    assert codes == sorted(ExitCode)
    states = [int(row[0].partition(",")[0]) for row in table(ROOT / "docs" / "airflow.md", "Exit codes")]
    assert states == sorted(ExitCode)


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Columns of results", list(RESULTS)),
        ("Columns of failures", list(FAILURES)),
        ("Fields of a label", list(RESULTS.field("labels").type.value_type)),
    ],
    ids=["results", "failures", "label"],
)
def test_documented_columns_equal_the_schema(heading, fields):
    rows = [(row[0], row[1]) for row in table(ROOT / "docs" / "tables.md", heading)]
    assert rows == [(f"`{field.name}`", _type(field)) for field in fields]


def _type(field: pa.Field) -> str:
    name = "list" if pa.types.is_list(field.type) else str(field.type).replace("tz=", "")
    return f"{name} or null" if field.nullable else name


def test_documented_permanent_failures_equal_the_code_table():
    yes = {True: "yes", False: "no"}
    rows = [[f"`{code}`", yes[each.permanent], yes[each.fit_may_help]] for code, each in FAILURE_CODES.items()]
    assert table(ROOT / "docs" / "outcomes.md", "Permanent failures") == [*rows, ["any other", "no", "no"]]


def test_the_documented_panel_is_the_real_one():
    assert blocks(OUTPUT, "text") == [render(snapshot(), width=79).plain + "\n"]


@pytest.mark.parametrize(
    ("heading", "record"),
    [
        ("Fields of progress", Snapshot),
        ("The summary", Summary),
        ("Fields of a session", SessionRecord),
        ("The state of a run", RunState),
        ("The pilot", Pilot),
    ],
    ids=["progress", "summary", "session", "state", "pilot"],
)
def test_documented_fields_equal_the_record(heading, record):
    assert sorted(names(OUTPUT, heading)) == sorted(_field_names(record))


def test_documented_fields_of_a_plan_equal_the_record():
    own = set(_field_names(Plan)) - set(_field_names(SourceCounts))
    assert sorted(names(OUTPUT, "The plan")) == sorted([*own, "unread"])
    meanings = {row[0]: _CODE.findall(row[1]) for row in table(OUTPUT, "The plan")}
    assert meanings["`deadline`"] == _field_names(DeadlinePlan)
    full_names = {re.sub("_(low|high)$", "", name) for name in _field_names(Estimate)}
    assert set(meanings["`estimates`"]) - {"_low", "_high"} == full_names


def _field_names(record: type[Any]) -> list[str]:
    return [field.name for field in fields(record)]


def test_documented_events_equal_those_in_the_code():
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    kinds = {kind for found in _EVENT.findall(source) for kind in found if kind} | {"message"}
    assert sorted(names(OUTPUT, "Events")) == sorted(kinds - set(TROUBLE))


@pytest.mark.parametrize(
    ("heading", "policy"), [("Scoring", "run"), ("Training", "lifecycle"), ("Reaping", "reap")], ids=lambda name: name
)
def test_documented_permissions_equal_the_policy(heading, policy):
    found = {row[0].strip("`"): _CODE.findall(row[1]) for row in table(ROOT / "docs" / "permissions.md", heading)}
    statements = json.loads((ROOT / "configs" / "iam" / f"{policy}.json").read_text())["Statement"]
    actions = {each["Sid"]: each["Action"] for each in statements}
    assert found == {name: [each] if isinstance(each, str) else each for name, each in actions.items()}


def test_documented_states_of_the_model_equal_the_transitions():
    changes = {
        (old.name, new.name)
        for (old, event), (new, _) in TRANSITIONS.items()
        if old is not new and event is not ModelEvent.TAKEN_OVER
    }
    rows = table(ROOT / "docs" / "model-life-cycle.md", "States")
    assert [row[0] for row in rows] == [f"`{state.name}`" for state in ModelState]
    found = {
        (old.strip("`"), new) for old, _, cell in rows for new in re.findall(r"(?:^|\. |, )`([A-Z_]+)`(?=[:,.])", cell)
    }
    assert found == changes


def test_documented_faults_of_the_emulator_equal_the_code():
    assert names(ROOT / "docs" / "emulator-service.md", "Faults") == [*get_args(Kind)]


def test_the_table_of_options_is_current():
    assert job_table.PAGE.read_text() == job_table.page_with_table(), "run `make docs`"
