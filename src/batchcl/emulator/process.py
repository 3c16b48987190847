"""An emulator in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import orjson

from batchcl.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from batchcl.emulator.settings import EmulatorSettings

__all__ = ["Emulator", "running_emulator"]

_START_S: Final = 60.0
_END_S: Final = 10.0
_TAIL_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A running emulator; `account` is that of the credentials `emulator` / `emulator`."""

    endpoint: str
    pid: int
    account: str
    state: Path


@asynccontextmanager
async def running_emulator(
    settings: EmulatorSettings, *, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Emulator]:
    """Run `batchcl emulator` for the time of an `async with`.

    The process is gone when the block is left, also by cancellation; should this process die, the emulator notices
    within a second and ends too.

    Args:
        settings: how; `exit_with_parent` is always on.
        environment: of the emulator's process; None for this process's.

    Raises:
        RefusedError: it ended before it listened, or did not listen within a minute; with what it said.
    """
    command = [sys.executable, "-m", "batchcl", "emulator", *settings.arguments()]
    if not settings.exit_with_parent:
        command.append("--exit-with-parent")
    with tempfile.TemporaryFile() as talk:
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=talk,
            env=environment,
            start_new_session=True,  # a terminal sends ^C to the whole group, and the run still needs the emulator
        )
        try:
            said: dict[str, Any] = {}
            with anyio.move_on_after(_START_S):
                said = await _first_line(process)
            if not said:
                size = os.fstat(talk.fileno()).st_size
                tail = os.pread(talk.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
                why = tail.strip().removeprefix("batchcl: ") or "it said nothing"
                raise RefusedError(f"the emulator did not start: {why}")
            yield Emulator(
                endpoint=said["endpoint"], pid=said["pid"], account=said["account"], state=Path(said["state"])
            )
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)


async def _first_line(process: anyio.abc.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = b""
    async for part in process.stdout:
        line += part
        if b"\n" in line:
            found: dict[str, Any] = orjson.loads(line.split(b"\n")[0])
            return found
    return {}


async def _end(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
    with anyio.move_on_after(_END_S) as patience:
        await process.wait()
    if patience.cancelled_caught:
        process.kill()
        await process.wait()
    await process.aclose()
