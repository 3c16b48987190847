"""Containers without an engine: Linux namespaces with a read-only root file system and one writable directory."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
"""Directories of an operating system's image, of which those that exist are used."""

DEVICES: Final = ("null", "zero", "full", "random", "urandom")

KILL_AFTER_S: Final = 30
"""From SIGTERM to SIGKILL: the default of Kubernetes and Fargate, and fixed in AWS Batch."""

UID: Final = 54321
"""A user that is in no passwd file, as OpenShift assigns them."""

_GROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Image:
    """Directories of the host that the container sees read-only, at these paths, and the command's folder."""

    directories: Mapping[str, Path]
    bin: str

    @classmethod
    def of_this_environment(cls) -> Image:
        """The tests' own virtual environment."""
        source = Path(__file__).parents[2] / "src"
        own = [sys.base_prefix, sys.prefix, str(source)]
        return cls(directories={path: Path(path) for path in own}, bin=f"{sys.prefix}/bin")

    @classmethod
    def built(cls, target: Path) -> Image:
        """What `build.py` has built. Its files leave the page cache, so that the container is charged for them."""
        installed = target / "files" / "opt" / "batchcl"
        os.sync()
        for path in installed.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        directories = {sys.base_prefix: Path(sys.base_prefix), "/opt/batchcl": installed}
        return cls(directories=directories, bin="/opt/batchcl/bin")


@dataclass(frozen=True)
class MemoryLimit:
    """A control group with a memory limit."""

    folder: Path

    @property
    def peak_bytes(self) -> int:
        """Peak memory in bytes, including the page cache."""
        names = ("memory.max_usage_in_bytes", "memory.peak")
        return int(next(self.folder / name for name in names if (self.folder / name).exists()).read_text())


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    """Skips the test if the kernel or the host's own container has no such limits."""
    parent = _GROUPS / "memory" if (_GROUPS / "memory").is_dir() else _GROUPS
    folder = parent / f"batchcl-{uuid.uuid4().hex[:8]}"
    name = "memory.limit_in_bytes" if parent != _GROUPS else "memory.max"
    try:
        folder.mkdir()
        (folder / name).write_text(str(limit_bytes))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"memory can't be limited here: {error}")
    try:
        yield MemoryLimit(folder)
    finally:
        folder.rmdir()


@dataclass(frozen=True)
class Container:
    """A process that is PID 1 of its own namespace. `unshare` is its parent, and ends with its exit code."""

    unshare: subprocess.Popen[str]
    _ended: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Of the process, in the namespace of the tests."""
        (child,) = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        return int(child)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.unshare.poll() is not None

    def stop(self) -> int | None:
        """As `docker stop --time 30`; returns the exit code, or None if it had to be killed."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """As after a node failure or an out-of-memory kill."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = 600) -> int:
        """The exit code."""
        self._ended.append(self.unshare.communicate(timeout=timeout_s))
        return self.unshare.returncode

    @property
    def out(self) -> str:
        """What the ended process wrote to stdout."""
        return self._ended[-1][0]

    @property
    def err(self) -> str:
        """What it wrote to stderr."""
        return self._ended[-1][1]


@contextmanager
def container(
    image: Image,
    *words: object,
    env: Mapping[str, str],
    volume: Path,
    read_only: Mapping[str, Path] | None = None,
    limit: MemoryLimit | None = None,
) -> Iterator[Container]:
    """Start `words` in the image, without a shell; the process is killed at the end of the block.

    The user has no passwd entry, no groups and no capabilities; there are no HOME and no temporary directory, and only
    `/data`, which is `volume`, is writable. The network is that of the tests.
    """
    os.chown(volume, UID, UID)
    root = volume.with_name(f"{volume.name}-root")
    root.mkdir(exist_ok=True)
    script = _mounts(root, {**image.directories, **(read_only or {})}, {"/data": volume})
    if limit is not None:
        script.append(f"echo $$ > {limit.folder}/cgroup.procs")
    variables = [f"{name}={value}" for name, value in env.items()]
    variables.append(f"PATH={image.bin}:/usr/sbin:/usr/bin:/sbin:/bin")
    user = [f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    command = ["env", "-i", *variables, "chroot", str(root), "setpriv", *user, *map(str, words)]
    script.append(f"exec {shlex.join(command)}")
    flags = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    process = subprocess.Popen(
        ["unshare", *flags, "sh", "-eu", "-c", "\n".join(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Container(process)
    finally:
        process.kill()
        if process.returncode is None:
            process.communicate()


def skip_without_namespaces() -> None:
    """Skip the test if the host does not allow what a container engine does."""
    command = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")


def _mounts(root: Path, read_only: Mapping[str, Path], writable: Mapping[str, Path]) -> list[str]:
    """The commands that create a root file system: a tmpfs with bind mounts, read-only at the end."""
    system = {path: Path(path) for path in SYSTEM if Path(path).is_dir() and not Path(path).is_symlink()}
    links = {path: os.readlink(path) for path in SYSTEM if Path(path).is_symlink()}
    inner = {path: source for path, source in read_only.items() if not path.startswith(SYSTEM)}
    lines = [
        f"mount -t tmpfs -o mode=755 none {root}",
        *(f"ln -s {target} {root}{path}" for path, target in links.items()),
        f"mkdir {root}/dev {root}/proc",
        f"mount -t proc proc {root}/proc",
        *(f"touch {root}/dev/{each} && mount --bind /dev/{each} {root}/dev/{each}" for each in DEVICES),
    ]
    for path, source in {**system, **inner, **writable}.items():
        lines += [f"mkdir -p {root}{path}", f"mount --bind {shlex.quote(str(source))} {root}{path}"]
        if path not in writable:
            lines.append(f"mount -o remount,bind,ro {root}{path}")
    return [*lines, f"mount -o remount,ro {root}"]
