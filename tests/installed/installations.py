"""Installs batchcl as its users do, and tries its commands there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ATTEMPTS", "INSTALLERS", "PROVIDED", "Installation", "Trial", "install", "install_lowest"]

PROVIDED: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset(),
    "images": frozenset({"images"}),
    "analysis": frozenset({"analysis"}),
    "report": frozenset({"images", "analysis", "report"}),
    "otel": frozenset({"otel"}),
    "emulator": frozenset({"images", "emulator", "analysis"}),  # scikit-learn needs numpy and scipy
}
"""Extra → the extras whose packages it installs."""

INSTALLERS: Final = ("pip", "uv", "uv tool", "pipx")

ATTEMPTS: Final = (
    ("", "run {images} --model {arn} --out {new}/run --limit 3 --run-id a"),
    ("", "run {images} --model {arn} --out {new}/run --limit 3 --run-id b --json"),
    ("", "plan {images} --model {arn} --limit 3"),
    ("", "doctor {images} --model {arn} --out {new}/run --limit 3"),
    ("", "detect {image} --model {arn}"),
    ("", "retry {new}/run a"),
    ("", "status {new}/run a"),
    ("", "runs {root}"),
    ("", "labels {root}"),
    ("", "confidence {root}"),
    ("", "failures {root}"),
    ("", "evaluate {root} --truth {truth}"),
    ("", "query {root} 'SELECT COUNT(*) FROM detections'"),
    ("", "export parquet {root} --out {new}/exported"),
    ("", "model list"),
    ("", "project list"),
    ("images", "show {root} --out {new}/shown --limit 2"),
    ("images", "detect {image} --model {arn} --annotate {new}/boxes.png"),
    ("images", "run {images} --model {arn} --out {new}/fit --limit 3 --fit"),
    ("images", "export coco {root} --out {new}/coco.json"),
    ("analysis", "compare {root} a b"),
    ("analysis", "thresholds {root} --truth {truth} --run a"),
    ("report", "report {root} --out {new}/report.html"),
    ("report", "run {images} --model {arn} --out {new}/reported --limit 3 --report {new}/run.html"),
    ("otel", "run {images} --model {arn} --out {new}/traced --limit 3 --otel"),
    ("emulator", "run {images} --emulator --emulator-state {state} --out {new}/emulated --limit 3"),
    ("emulator", "demo {new}/demo --pictures"),
)
"""The extra that a command needs, and the command."""


@dataclass(frozen=True)
class Trial:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Installation:
    """One environment with batchcl.

    Attributes:
        prefix: the environment.
        env: variables that make the installer work on it.
    """

    prefix: Path
    env: Mapping[str, str]

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> Trial:
        """Run a program of the environment."""
        done = subprocess.run(
            [self.prefix / "bin" / command[0], *command[1:]],
            env={**self.env, **(env or {})},
            cwd=self.prefix,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Trial(done.returncode, done.stdout, done.stderr)

    def shell(self, command: str) -> None:
        """Run a command line that batchcl printed."""
        subprocess.run(command, shell=True, env=dict(self.env), check=True, capture_output=True, timeout=600)

    def every_command(self) -> list[str]:
        """The names of all commands, each of which has shown its help."""
        shown = self.run(["python", str(Path(__file__).with_name("every_command.py"))])
        assert shown.code == 0, shown.err
        return list(json.loads(shown.out))


def install(
    installer: str, archive: Path, extra: str, folder: Path, env: Mapping[str, str], *, python: str = sys.executable
) -> Installation:
    """Install `archive`, a wheel or sdist, with an extra or '', in an environment with the Python `python`."""
    url = archive.as_uri()
    requirement = f"batchcl[{extra}] @ {url}" if extra else f"batchcl @ {url}"
    tools = Path(os.environ["BATCHCL_INSTALLERS"]).absolute()
    uv = f"{tools}/uv"
    prefix = folder / "env"
    search = f"{prefix}/bin:{tools}:{env['PATH']}"
    if installer == "pip":
        own = {"PATH": search}
        commands = [[python, "-m", "venv", str(prefix)], [f"{prefix}/bin/pip", "install", requirement]]
    elif installer == "uv":
        own = {"PATH": search, "VIRTUAL_ENV": str(prefix)}
        commands = [[uv, "venv", "--python", python, str(prefix)], [uv, "pip", "install", requirement]]
    elif installer == "uv tool":
        prefix = folder / "batchcl"
        own = {"PATH": search, "UV_TOOL_DIR": str(folder), "UV_TOOL_BIN_DIR": str(folder / "bin")}
        commands = [[uv, "tool", "install", "--python", python, requirement]]
    else:
        prefix = folder / "venvs" / "batchcl"
        own = {"PATH": search, "PIPX_HOME": str(folder), "PIPX_BIN_DIR": str(folder / "bin")}
        commands = [[f"{tools}/pipx", "install", "--python", python, requirement]]
    return _installed(Installation(prefix, {**env, **own}), commands)


def install_lowest(archive: Path, pyproject: Path, folder: Path, env: Mapping[str, str]) -> Installation:
    """Install a wheel with all extras, and the lowest version of each dependency that `pyproject` allows."""
    uv = str(Path(os.environ["BATCHCL_INSTALLERS"]).absolute() / "uv")
    prefix = folder / "env"
    own = {"PATH": f"{prefix}/bin:{env['PATH']}", "VIRTUAL_ENV": str(prefix)}
    commands = [
        [uv, "venv", "--python", sys.executable, str(prefix)],
        [uv, "pip", "install", "--resolution", "lowest-direct", "--all-extras", "--requirements", str(pyproject)],
        [uv, "pip", "install", "--no-deps", str(archive)],
    ]
    return _installed(Installation(prefix, {**env, **own}), commands)


def _installed(installation: Installation, commands: Sequence[Sequence[str]]) -> Installation:
    for command in commands:
        done = subprocess.run(command, env=dict(installation.env), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return installation
