"""The files of a release: what the sdist contains, and that the wheel runs outside of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from batchcl import __version__
from installed.installations import install

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dist() -> Path:
    return Path(os.environ["BATCHCL_DIST"]).absolute()


def test_the_release_is_one_sdist_and_one_wheel_of_this_version(dist):
    names = {path.name for path in dist.iterdir()}
    assert names == {f"batchcl-{__version__}.tar.gz", f"batchcl-{__version__}-py3-none-any.whl"}


def test_the_sdist_has_exactly_the_files_of_the_repository(dist):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == {name for name in listed.split("\0") if name}


def test_the_wheel_runs_the_demo_in_an_environment_of_its_own(dist, clean_env, tmp_path):
    python = shutil.which(os.environ["BATCHCL_DIST_PYTHON"])
    assert python is not None
    installation = install("pip", next(dist.glob("*.whl")), "emulator,report", tmp_path, clean_env, python=python)
    version = installation.run(["batchcl", "--version"])
    assert (version.code, version.out) == (0, f"batchcl {__version__}\n"), version.err
    demo = installation.run(["batchcl", "demo", str(tmp_path / "demo")])
    assert demo.code == 0, demo.err
    assert "top_label_accuracy" in demo.out
    assert (tmp_path / "demo" / "report.html").is_file()
