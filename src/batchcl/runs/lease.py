"""Which process works on a run: numbered session files with a heartbeat.

A session holds the run from the creation of `<number>.json` until a higher number exists, or its file says that it has
ended. The file is created exclusively, so of two processes that take a dead session over, one succeeds. A holder
overwrites its own file only: a late heartbeat can't hide a takeover.

A session is dead when its counter has not changed for 45 s of the observer's own monotonic clock: clocks of different
machines are never compared. Where boot id and PID namespace are those of the observer, its process is looked at
instead, and one that is gone is replaced at once. A host name says nothing: containers of one host may share it.

This keeps a second process out early and with a clear message, and lets a run whose process died be taken over within a
minute. What protects the rows is the journal.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import orjson

from batchcl.concurrency import gather
from batchcl.errors import BatchclError, OutputError, StoppedError
from batchcl.runs.store import Store

__all__ = [
    "RunLease",
    "RunLeaseHolder",
    "is_alive",
    "read_lease",
    "read_leases",
    "read_session",
    "session_numbers",
    "unsettled_lease",
]

HEARTBEAT_S: Final = 10.0
EXPIRES_S: Final = 45.0
_LOOK_EVERY_S: Final = 2.0
_SESSION: Final = ".json"
_READS_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLease:
    """A session and its last heartbeat.

    Attributes:
        number: of the session, from 0.
        holder: a random name of the process.
        host: its machine, for messages.
        place: boot id and PID namespace, in which `process` means something; empty where they can't be known.
        process: its process id and start.
        beat: counts its heartbeats.
        beat_at: the time of the last one by its own clock, for messages.
        progress: its counters at that time.
        ended: it doesn't work any more.
        settled: everything that it had to write is written; it left no outcome that isn't published.
    """

    number: int
    holder: str
    host: str
    place: str
    process: str
    beat: int
    beat_at: dt.datetime
    progress: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    settled: bool = False

    @property
    def runs(self) -> bool | None:
        """Whether its process runs; None where only its heartbeats can tell.

        They alone do for a process elsewhere, one that is suspended, and this one, which may have given a session up.
        """
        if self.ended:
            return False
        pid, _, started = self.process.partition("-")
        if not self.place or self.place != _process_location() or not started or int(pid) == os.getpid():
            return None
        state = _state(int(pid))
        if state is None:
            return False if Path("/proc/1/stat").exists() else None  # elsewhere /proc may hide others' processes
        if state.started != started:
            return False
        return None if state.code in {"T", "t"} else True

    def seems_alive(self, now: dt.datetime) -> bool:
        """Whether its process may work, without waiting for a heartbeat: by the clocks of both machines."""
        runs = self.runs
        return (now - self.beat_at).total_seconds() < EXPIRES_S if runs is None else runs


async def is_alive(store: Store, folder: str, lease: RunLease) -> bool:
    """Whether the session's process works. Waits until its counter changes, or for 45 s where it doesn't."""
    if lease.runs is not None:
        return lease.runs
    since = anyio.current_time()
    while True:
        await anyio.sleep(_LOOK_EVERY_S)
        asked_at = anyio.current_time()  # before the answer: this process may be suspended while it waits for that
        seen = await read_session(store, _path(folder, lease.number))
        if seen.ended or seen.beat != lease.beat:
            return not seen.ended
        if asked_at - since >= EXPIRES_S:
            return False


async def read_lease(store: Store, folder: str) -> RunLease | None:
    """The newest session below `folder`, or None where there was none."""
    files = await _session_files(store, folder)
    return await read_session(store, files[-1]) if files else None


async def unsettled_lease(store: Store, folder: str) -> RunLease | None:
    """`read_lease`, but None where that session has settled. Then one list does, of names only."""
    names = [file.path for file in await store.list_all(folder)]
    files = [name for name in names if name.endswith(_SESSION)]
    if not files or _settled(files[-1]) in names:
        return None
    lease = await read_session(store, files[-1])
    return None if lease.ended and lease.settled else lease


async def read_leases(store: Store, folder: str) -> list[RunLease]:
    """All sessions below `folder`, the first one first."""
    paths = await _session_files(store, folder)
    return await gather(lambda path: read_session(store, path), paths, at_once=_READS_AT_ONCE)


async def session_numbers(store: Store, folder: str) -> list[int]:
    """Of all sessions below `folder`, from names alone."""
    return [_number(path) for path in await _session_files(store, folder)]


async def _session_files(store: Store, folder: str) -> list[str]:
    return [file.path for file in await store.list_all(folder) if file.path.endswith(_SESSION)]


def _settled(session: str) -> str:
    """Beside a session's file: says in its name that the session has ended and settled, so that nobody reads it."""
    return f"{session.removesuffix(_SESSION)}.settled"


async def read_session(store: Store, path: str) -> RunLease:
    """The session in the file `path`; a damaged one keeps nobody out."""
    number = _number(path)
    try:
        values = orjson.loads(await store.get(path) or b"")
        known = {each.name: values[each.name] for each in fields(RunLease) if each.name in values}
        known["progress"] = dict(known.get("progress", {}))
        return RunLease(**known | {"number": number, "beat_at": dt.datetime.fromisoformat(values["beat_at"])})
    except (ValueError, TypeError, KeyError):
        never = dt.datetime.fromtimestamp(0, dt.UTC)
        return RunLease(
            number=number, holder="", host="unknown", place="", process="0-", beat=0, beat_at=never, ended=True
        )


class RunLeaseHolder:
    """Holds a lease for this process.

    Args:
        store: the output root.
        folder: of the sessions.
        what: is held, for messages: `run 2026-11-21`.
        progress: returns the counters for the heartbeat.
        on_wait: receives the session whose next heartbeat is waited for.
        utcnow: the time of day.

    Attributes:
        settled: to be set once nothing is left to write; `release` records it.
        follows_unsettled: the previous session did not end properly: its process may only be suspended.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        what: str,
        progress: Callable[[], dict[str, Any]] = dict,
        on_wait: Callable[[RunLease], None] = lambda _: None,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._store = store
        self._folder = folder
        self._what = what
        self._progress = progress
        self._on_wait = on_wait
        self._utcnow = utcnow
        self.settled = False
        self.follows_unsettled = False
        self._lease = RunLease(
            number=0,
            holder=secrets.token_hex(8),
            host=socket.gethostname(),
            place=_process_location(),
            process=_this_process(),
            beat=0,
            beat_at=utcnow(),
        )

    @property
    def holder(self) -> str:
        """This process's name, which its journal segments carry."""
        return self._lease.holder

    @property
    def number(self) -> int:
        """Of this session; 0 for the first one."""
        return self._lease.number

    def counters(self) -> dict[str, Any]:
        """What the next heartbeat would say of the progress."""
        return self._progress()

    async def acquire(
        self, *, on_left: Callable[[RunLease], None] = lambda _: None, dead: RunLease | None = None
    ) -> None:
        """Take the lease, or raise `StoppedError` that says who has it. Waits for a heartbeat of that process.

        `on_left` receives the previous session's lease. It is called before this session's file is created, so that
        `progress` can pass on what that session left behind. `dead` is a session that was found dead just now.
        """
        last = await read_lease(self._store, self._folder)
        if last is not None:
            if last != dead:
                if last.runs is None:
                    self._on_wait(last)
                if await is_alive(self._store, self._folder, last):
                    raise self._held_by(last)
            self.follows_unsettled = not (last.ended and last.settled)
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

    async def successor(self) -> RunLease | None:
        """The lease of another process that has taken over and may be at work; None where there is none."""
        other = await read_lease(self._store, self._folder)
        if other is None or other.number <= self.number or other.runs is False:
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

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Write heartbeats during the block; a takeover is found by `check`."""
        error: BatchclError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._beat_on)
            try:
                yield
            except BatchclError as raised:
                error = raised  # by itself rather than in a group
            group.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _beat_on(self) -> None:
        while True:
            await anyio.sleep(HEARTBEAT_S)
            with suppress(OutputError):
                await self.beat()

    async def release(self) -> None:
        """End the session, if this process has it; its last counters stay in its file."""
        path = self._path(self.number)
        if (await read_session(self._store, path)).holder == self.holder:
            await self._store.put(path, self._beat(ended=True))
            if self.settled:
                await self._store.put_new(_settled(path), b"")

    def _path(self, number: int) -> str:
        return _path(self._folder, number)

    def _held_by(self, other: RunLease) -> StoppedError:
        return StoppedError(
            f"{self._what} is held by another runner ({other.host}, process {other.process.partition('-')[0]}); wait "
            f"for it, or for {EXPIRES_S:.0f} s after it died"
        )

    def _beat(self, *, ended: bool = False) -> bytes:
        self._lease = replace(self._lease, beat=self._lease.beat + 1)
        lease = replace(
            self._lease,
            beat_at=self._utcnow(),
            progress=self._progress(),
            ended=ended,
            settled=ended and self.settled,
        )
        return orjson.dumps(asdict(lease), option=orjson.OPT_UTC_Z)


def _number(path: str) -> int:
    return int(path.rpartition("/")[2].removesuffix(_SESSION))


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:05d}{_SESSION}"


class _SessionState(NamedTuple):
    """Of a process: the letter that the kernel gives its state, and its start, in ticks since the boot."""

    code: str
    started: str


def _process_location() -> str:
    """Where a process id means something: this boot, and this PID namespace. Empty where that can't be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _this_process() -> str:
    state = _state(os.getpid())
    return f"{os.getpid()}-{'' if state is None else state.started}"


def _state(pid: int) -> _SessionState | None:
    """The state of a process; None where there is none, or only what is left of a dead one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    code, *rest = stat.rpartition(")")[2].split()
    return None if code in {"Z", "X"} else _SessionState(code, rest[18])
