"""Run the steps of the Dockerfile's first stage without an engine, on the Python that runs this.

    python tests/containers/build.py DIRECTORY [EXTRAS]

DIRECTORY gets what the image gets from that stage. `make containers` runs the tests of this folder with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
BUILD_STAGE: Final = "build"


class Instruction(NamedTuple):
    """A line of a Dockerfile: `COPY`, `src src`."""

    name: str
    arguments: str


def stages(dockerfile: Path) -> list[list[Instruction]]:
    """The instructions of each stage, which begins with its FROM, without those before the first stage."""
    text = dockerfile.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in lines:
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, arguments.strip()))
    return found


def build(target: Path, extras: str) -> None:
    """Run the first stage; what it writes is then below `target/files`, at the path that it has in the image."""
    files, folder = target / "files", Path()
    for each in (target / "work", target / "root", files):
        each.mkdir(parents=True)
    for name, text in stages(ROOT / "Dockerfile")[0]:
        if name == "WORKDIR":
            folder = files / text.lstrip("/")
            folder.mkdir(parents=True)
        elif name == "COPY":
            *sources, destination = text.split()
            (folder / destination).parent.mkdir(parents=True, exist_ok=True)
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, folder / destination)
                else:
                    shutil.copy(ROOT / source, folder / destination)
        elif name == "RUN":
            print(f"RUN {text}", flush=True)
            _run(text, target, f"/{folder.relative_to(files)}", {"EXTRAS": extras})
        elif name not in {"FROM", "ARG"}:
            sys.exit(f"the test does not know {name}")


def _run(text: str, target: Path, folder: str, arguments: Mapping[str, str]) -> None:
    """Run a command on the host's files; what it writes goes to `target/files`."""
    root = target / "root"
    script = [
        f"mount -t overlay -o lowerdir=/,upperdir={target}/files,workdir={target}/work none {root}",
        *(f"mount --rbind /{each} {root}/{each}" for each in ("dev", "proc", "sys")),
        f"exec chroot {root} sh -c {shlex.quote(f'cd {folder} && {text}')}",
    ]
    path = f"{sys.base_prefix}/bin:{os.environ['PATH']}"
    command = ["unshare", "--mount", "sh", "-ec", "\n".join(script)]
    subprocess.run(command, env=os.environ | arguments | {"PATH": path}, check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute(), "".join(sys.argv[2:3]))
