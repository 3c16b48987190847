"""What the wheel contains, and what its commands do without the extras. `make installed` tests real installations."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import batchcl
from batchcl.cli.commands import COMMANDS
from batchcl.cli.explain import read_page
from batchcl.extras import EXTRAS

ROOT = Path(__file__).parents[2]
PACKAGE = Path(batchcl.__file__).parent
SITE_PACKAGES = Path(pytest.__file__).parents[1]
HIDDEN = sorted({"markupsafe", *(module.partition(".")[0] for modules in EXTRAS.values() for module in modules)})
EVERY_COMMAND = ROOT / "tests" / "installed" / "every_command.py"


def build(kind: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def without_extras(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and everything that it requires, but without the extras' packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (next(packages.glob("batchcl-*.dist-info")) / "INSTALLER").write_text("uv")
    hide = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN}))"
    (packages / "other.pth").write_text(f"{SITE_PACKAGES}\n{hide}\n")
    return folder / "bin" / "python"


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = contents(wheel).keys()
    assert {name for name in names if name.startswith("batchcl/")} == {
        f"batchcl/{path.relative_to(PACKAGE)}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"batchcl/troubleshooting.md"}
    others = {name.partition("dist-info/")[2] for name in names if not name.startswith("batchcl/")}
    assert others == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert {"batchcl/py.typed", "batchcl/report/templates/report.html"} <= names
    suffixes = {Path(name).suffix for name in names if name.startswith("batchcl/")}
    assert suffixes == {".py", ".typed", ".html", ".css", ".js", ".md"}


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    shutil.unpack_archive(build("sdist", ROOT, tmp_path), tmp_path / "sdist", filter="data")
    (source,) = (tmp_path / "sdist").iterdir()
    tested = {".ci", "Makefile", "benchmarks", "configs", "docs", "src", "tests"}  # what `make test` reads
    names = {path.name for path in source.iterdir()}
    assert {*tested, "CHANGELOG.md", "LICENSE", "README.md"} <= names
    assert not {".git", ".venv", "demo", "dist", ".mypy_cache", ".ruff_cache"} & names
    assert not [*source.rglob("__pycache__")]
    assert contents(build("wheel", source, tmp_path)) == contents(wheel)


def metadata_of(wheel: Path) -> str:
    return next(text for name, text in contents(wheel).items() if name.endswith("METADATA")).decode()


def test_the_description_on_an_index_has_no_links_to_files(wheel):
    description = metadata_of(wheel).partition("\n\n")[2]
    assert description.startswith("# batchcl\n")
    assert "docs/installation.md" not in description
    assert "The tutorial leads from labelled pictures to a report" in " ".join(description.split())
    assert not re.findall(r"\]\((?!https:)[^)]*\)", description)


def test_every_extra_of_the_package_is_known(wheel):
    metadata = metadata_of(wheel)
    provided = {line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert provided == set(EXTRAS)


def test_every_command_shows_its_help_without_extras(without_extras, clean_env):
    shown = subprocess.run([without_extras, EVERY_COMMAND], env=clean_env, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    names = json.loads(shown.stdout)
    assert {name.split()[0] for name in names} == set(COMMANDS)
    assert len(names) > 2 * len(COMMANDS)


LINES = {
    "show out --out shown": "images",
    "detect a.png --model a@b --annotate b.png": "images",
    "compare out": "analysis",
    "thresholds out --truth truth.manifest": "analysis",
    "report out --out report.html": "report",
    "run photos --model a@b --out out --report report.html": "report",
    "run photos --model a@b --out out --otel": "otel",
    "run photos --emulator --out out": "emulator",
    "emulator": "emulator",
    "demo": "emulator",
}
TRY = """
import json, sys
from batchcl.cli.app import _run
for line in json.loads(sys.argv[1]):
    sys.argv = ["batchcl", *line.split()]
    print(_run(sys.argv[1:]), file=sys.stderr)
"""


def test_an_installed_package_explains_errors_as_the_checkout_does(without_extras, clean_env):
    code = "from batchcl.cli.explain import read_page; print(read_page(), end='')"
    shown = subprocess.run([without_extras, "-c", code], env=clean_env, capture_output=True, text=True, check=True)
    assert shown.stdout == read_page()
    assert "## Symptoms" in shown.stdout


def test_a_command_without_its_extra_says_how_to_install_it(without_extras, clean_env, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "out" / "results").mkdir(parents=True)
    done = subprocess.run(
        [without_extras, "-c", TRY, json.dumps(list(LINES))],
        env=clean_env | {"AWS_REGION": "us-east-1", "HOME": os.devnull},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.splitlines()
    assert len(said) == 2 * len(LINES), done.stderr
    for extra, sentence, code in zip(LINES.values(), said[::2], said[1::2], strict=True):
        assert code == "2", sentence
        assert sentence.endswith(f" with: uv pip install 'batchcl[{extra}]'"), sentence
