"""A missing extra is named with the command that installs it, in the words of the installer that was used."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from batchcl.errors import UsageError
from batchcl.extras import EXTRAS, install_command, require_extra

WHEEL = "file:///dist/batchcl-1.0-py3-none-any.whl"


def distribution(folder: Path, *, installer: str | None, url: str | None = None) -> PathDistribution:
    for name, text in {
        "INSTALLER": installer,
        "direct_url.json": url and json.dumps({"url": url, "archive_info": {}}),
    }.items():
        if text is not None:
            (folder / name).write_text(text)
    return PathDistribution(folder)


@pytest.mark.parametrize(
    ("installer", "command"),
    [
        ("pip\n", "pip install 'batchcl[report]'"),
        ("uv", "uv pip install 'batchcl[report]'"),
        (None, "pip install 'batchcl[report]'"),
    ],
)
def test_an_environment_gets_the_command_of_its_installer(tmp_path, installer, command):
    found = distribution(tmp_path, installer=installer, url=WHEEL)
    assert install_command("report", prefix=str(tmp_path), installed=found) == command


@pytest.mark.parametrize(
    ("extras", "url", "requirement"),
    [
        ("", None, "batchcl[report]"),
        ('extras = ["images", "analysis"], ', None, "batchcl[analysis,images,report]"),
        ('extras = ["report"], ', WHEEL, f"batchcl[report] @ {WHEEL}"),
    ],
)
def test_a_uv_tool_keeps_its_extras_and_its_source(tmp_path, extras, url, requirement):
    (tmp_path / "uv-receipt.toml").write_text(f'[tool]\nrequirements = [{{ {extras}name = "batchcl" }}]\n')
    found = distribution(tmp_path, installer="uv", url=url)
    assert install_command("report", prefix=str(tmp_path), installed=found) == f"uv tool install '{requirement}'"


@pytest.mark.parametrize(
    ("installed_as", "url", "requirement"),
    [
        ("batchcl", None, "batchcl[report]"),
        ("batchcl[images, analysis]", None, "batchcl[analysis,images,report]"),
        (f"batchcl[images] @ {WHEEL}", WHEEL, f"batchcl[images,report] @ {WHEEL}"),
    ],
)
def test_pipx_keeps_its_extras_and_its_source(tmp_path, installed_as, url, requirement):
    record = {"main_package": {"package": "batchcl", "package_or_url": installed_as}}
    (tmp_path / "pipx_metadata.json").write_text(json.dumps(record))
    found = distribution(tmp_path, installer="uv", url=url)
    command = install_command("report", prefix=str(tmp_path), installed=found)
    assert command == f"pipx install --force '{requirement}'"


@pytest.mark.parametrize(
    ("name", "tool"), [("uv-receipt.toml", "uv tool install"), ("pipx_metadata.json", "pipx install --force")]
)
def test_a_record_of_another_format_is_not_an_error(tmp_path, name, tool):
    (tmp_path / name).write_text('{"a": [')
    found = distribution(tmp_path, installer="uv")
    assert install_command("images", prefix=str(tmp_path), installed=found) == f"{tool} 'batchcl[images]'"


@pytest.mark.parametrize("extra", EXTRAS)
def test_all_missing_packages_are_named(monkeypatch, extra):
    require_extra(extra, "this")
    for module in EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as refused:
        require_extra(extra, "this")
    assert all(package in str(refused.value) for package in EXTRAS[extra].values())
    assert str(refused.value).endswith(f"with: pip install 'batchcl[{extra}]'")
