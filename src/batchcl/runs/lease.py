"""Which process works on a run: numbered session files with a heartbeat.

A session holds the run from the creation of `<number>.json` until a higher number exists, or its file says that it has
ended. The file is created exclusively, so of two processes that take a dead session over, one succeeds. A holder
overwrites its own file only: a late heartbeat can't hide a takeover.

This keeps a second process out early and with a clear message, and lets a run whose process died be taken over within a
minute. What protects the rows is the journal.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import anyio
import orjson

from batchcl.errors import OutputError, StoppedError
from batchcl.runs.store import Store

__all__ = ["Lease", "LeaseKeeper", "read_lease", "read_session"]

HEARTBEAT_S: Final = 10.0
EXPIRES_S: Final = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A session and its last heartbeat.

    Attributes:
        number: of the session, from 0.
        holder: a random name of the process.
        host: its machine.
        process: its process id and start, by which a process on the same machine can tell that it has died.
        beat_at: the time of its last heartbeat, by its own clock.
        progress: its counters at that time.
        ended: it doesn't work any more.
        settled: everything that it had to write is written; it left no outcome that isn't published.
    """

    number: int
    holder: str
    host: str
    process: str
    beat_at: dt.datetime
    progress: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    settled: bool = False

    def lives(self, now: dt.datetime) -> bool:
        """Whether its process may still be at work."""
        if self.ended or (self.host == _host() and not _runs(self.process)):
            return False
        return (now - self.beat_at).total_seconds() < EXPIRES_S


async def read_lease(store: Store, folder: str) -> Lease | None:
    """The newest session below `folder`, or None where there was none."""
    files = [file.path for file in await store.list_all(folder)]
    return await read_session(store, files[-1]) if files else None


async def read_session(store: Store, path: str) -> Lease:
    """The session in the file `path`; a damaged one keeps nobody out."""
    number = int(path.rpartition("/")[2].removesuffix(".json"))
    try:
        values = orjson.loads(await store.get(path) or b"")
        return Lease(**values | {"number": number, "beat_at": dt.datetime.fromisoformat(values["beat_at"])})
    except (ValueError, TypeError, KeyError):
        never = dt.datetime.fromtimestamp(0, dt.UTC)
        return Lease(number=number, holder="", host="unknown", process="0-", beat_at=never, ended=True)


class LeaseKeeper:
    """Holds a lease for this process.

    Args:
        store: the output root.
        folder: of the sessions.
        what: is held, for messages: `run 2026-11-21`.
        progress: returns the counters for the heartbeat.
        utcnow: the time of day.

    Attributes:
        settled: to be set once nothing is left to write; `release` records it.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        what: str,
        progress: Callable[[], dict[str, Any]] = dict,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._store = store
        self._folder = folder
        self._what = what
        self._progress = progress
        self._utcnow = utcnow
        self.settled = False
        self._lease = Lease(
            number=0, holder=secrets.token_hex(8), host=_host(), process=_this_process(), beat_at=utcnow()
        )

    @property
    def holder(self) -> str:
        """This process's name, which its journal segments carry."""
        return self._lease.holder

    @property
    def number(self) -> int:
        """Of this session; 0 for the first one."""
        return self._lease.number

    async def acquire(self, *, on_left: Callable[[Lease], None] = lambda _: None) -> None:
        """Take the lease, or raise `StoppedError` that says who has it.

        `on_left` receives the previous session's lease. It is called before this session's file is created, so that
        `progress` can pass on what that session left behind.
        """
        last = await read_lease(self._store, self._folder)
        if last is not None:
            if last.lives(self._utcnow()):
                raise self._held_by(last)
            on_left(last)
            self._lease = replace(self._lease, number=last.number + 1)
        path = self._path(self._lease.number)
        if not await self._store.put_new(path, self._beat()):
            other = await read_session(self._store, path)
            if other.holder != self.holder:  # else only the answer to the first attempt was lost
                raise self._held_by(other)

    async def check(self) -> None:
        """Raise `StoppedError` when another process has taken over."""
        if await self._store.exists(self._path(self.number + 1)):
            other = await read_session(self._store, self._path(self.number + 1))
            raise StoppedError(
                f"{self._what} was taken over by another runner ({other.host}): it had no heartbeat of this one for "
                f"{EXPIRES_S:.0f} s; this one stops"
            )

    async def successor(self) -> Lease | None:
        """The lease of another process that has taken over and is at work; None where there is none."""
        other = await read_lease(self._store, self._folder)
        if other is None or other.number <= self.number or not other.lives(self._utcnow()):
            return None
        return other

    async def beat(self) -> None:
        """Write the heartbeat now."""
        await self._store.put(self._path(self.number), self._beat())

    async def keep(self) -> None:
        """Write heartbeats until cancelled. Raises `StoppedError` when another process has taken over.

        A store that fails for a while is left to those who write results to report.
        """
        while True:
            await anyio.sleep(HEARTBEAT_S)
            try:
                await self.check()
                await self.beat()
            except OutputError:
                continue

    async def release(self) -> None:
        """End the session, if this process has it; its last counters stay in its file."""
        path = self._path(self.number)
        if (await read_session(self._store, path)).holder == self.holder:
            await self._store.put(path, self._beat(ended=True))

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:05d}.json"

    def _held_by(self, other: Lease) -> StoppedError:
        ago = (self._utcnow() - other.beat_at).total_seconds()
        return StoppedError(
            f"{self._what} is held by another runner ({other.host}, process {other.process.partition('-')[0]}, last "
            f"heartbeat {ago:.0f} s ago); wait for it, or for {EXPIRES_S:.0f} s after it died"
        )

    def _beat(self, *, ended: bool = False) -> bytes:
        lease = replace(
            self._lease,
            beat_at=self._utcnow(),
            progress=self._progress(),
            ended=ended,
            settled=ended and self.settled,
        )
        return orjson.dumps(asdict(lease), option=orjson.OPT_UTC_Z)


def _host() -> str:
    return socket.gethostname()


def _this_process() -> str:
    return f"{os.getpid()}-{_started(os.getpid())}"


def _runs(process: str) -> bool:
    """Whether the process lives on this machine; True where that can't be told."""
    pid, _, started = process.partition("-")
    if not started or not Path("/proc/self/stat").exists():
        return True
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """The kernel's start time of a process, which tells it from a later one of the same id; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else rest[18]
