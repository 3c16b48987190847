"""The run lease: which process works on a run. Stored as numbered session files with a heartbeat.

A session holds the lease from the creation of `<number>.json` until a file with a higher number exists or its own file
says that it has ended. The file is created exclusively, so if two processes take over a dead session, one succeeds. A
holder overwrites only its own file, so a late heartbeat can't hide a takeover.

A session is dead when its heartbeat counter has not changed for 45 s of the observer's own monotonic clock; clocks of
different machines are never compared. If the session's boot id and PID namespace are the observer's own, the observer
checks the process instead and replaces a dead one at once. Host names are not compared: several containers may have the
same one.

The lease refuses a second process early and with a clear message, and makes the run of a dead process available again
within a minute. It does not protect the rows; the journal does.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import orjson

from batchcl.concurrency import gather
from batchcl.errors import ErrorCode, HeldError, OutputError, StoppedError
from batchcl.runs.store import Store

__all__ = [
    "EXPIRES_S",
    "HEARTBEAT_S",
    "RunLease",
    "RunLeaseHolder",
    "is_alive",
    "read_lease",
    "read_leases",
    "read_session",
    "session_numbers",
    "session_path",
    "unsettled_lease",
]

HEARTBEAT_S: Final = 10.0
EXPIRES_S: Final = 45.0
_POLL_INTERVAL_S: Final = 2.0
_SESSION: Final = ".json"
_READS_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLease:
    """A session and its last heartbeat.

    Attributes:
        number: of the session, from 0.
        holder: a random name of the process.
        host: host name, for messages.
        location: boot id and PID namespace, in which `process` is valid; empty if unknown.
        process: process id and start time: `<pid>-<ticks since boot>`.
        heartbeats: number of heartbeats so far.
        heartbeat_at: time of the last heartbeat by the holder's clock, for messages.
        progress: the session's counters at that time.
        ended: the session has ended.
        settled: the session has published all its outcomes.
    """

    number: int
    holder: str
    host: str
    location: str
    process: str
    heartbeats: int
    heartbeat_at: dt.datetime
    progress: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    settled: bool = False

    @property
    def process_name(self) -> str:
        """`<process id> on <host>`, for messages."""
        return f"{self.process.partition('-')[0]} on {self.host}"

    @property
    def process_is_alive(self) -> bool | None:
        """Whether its process is alive; None if that can be determined only by its heartbeats.

        That is so for a process on another machine or in another PID namespace, for a suspended one, and for the
        current process, which may have abandoned a session. A restarted container often has the PID and the namespace's
        number of the dead one; the start times differ.
        """
        if self.ended:
            return False
        pid, _, started = self.process.partition("-")
        if not self.location or self.location != _process_location() or not started or self.process == _this_process():
            return None
        state = _process_state(int(pid))
        if state is None:
            return False if Path("/proc/1/stat").exists() else None  # mounted with hidepid, /proc hides processes
        if state.started != started:
            return False
        return None if state.code in {"T", "t"} else True

    def seems_alive(self, now: dt.datetime) -> bool:
        """Whether its process is probably alive. Doesn't wait for a heartbeat; compares the clocks of both machines."""
        is_alive = self.process_is_alive
        return (now - self.heartbeat_at).total_seconds() < EXPIRES_S if is_alive is None else is_alive


async def is_alive(store: Store, folder: str, lease: RunLease) -> bool:
    """Whether the session's process is alive. Waits until its heartbeat counter changes, at most 45 s."""
    if lease.process_is_alive is not None:
        return lease.process_is_alive
    since = anyio.current_time()
    while True:
        await anyio.sleep(_POLL_INTERVAL_S)
        requested_at = anyio.current_time()  # before the read, as this process may be suspended during it
        current = await read_session(store, session_path(folder, lease.number))
        if current.ended or current.heartbeats != lease.heartbeats:
            return not current.ended
        if requested_at - since >= EXPIRES_S:
            return False


async def read_lease(store: Store, folder: str) -> RunLease | None:
    """The newest session below `folder`, or None if there is none."""
    files = await _session_files(store, folder)
    return await read_session(store, files[-1]) if files else None


async def unsettled_lease(store: Store, folder: str) -> RunLease | None:
    """The newest session below `folder`, or None if there is none or it has settled; one listing shows the latter."""
    names = [file.path for file in await store.list_all(folder)]
    files = [name for name in names if name.endswith(_SESSION)]
    if not files or _settled_path(files[-1]) in names:
        return None
    lease = await read_session(store, files[-1])
    return None if lease.ended and lease.settled else lease


async def read_leases(store: Store, folder: str) -> list[RunLease]:
    """All sessions below `folder`, in order."""
    paths = await _session_files(store, folder)
    return await gather(lambda path: read_session(store, path), paths, at_once=_READS_AT_ONCE)


async def session_numbers(store: Store, folder: str) -> list[int]:
    """The numbers of all sessions below `folder`; lists file names only."""
    return [_number(path) for path in await _session_files(store, folder)]


async def _session_files(store: Store, folder: str) -> list[str]:
    return [file.path for file in await store.list_all(folder) if file.path.endswith(_SESSION)]


def _settled_path(session: str) -> str:
    """Marker beside a session file: the session has ended and settled, so its file need not be read."""
    return f"{session.removesuffix(_SESSION)}.settled"


async def read_session(store: Store, path: str) -> RunLease:
    """The session in the file `path`. A corrupt file counts as an ended session, so that it blocks no other process."""
    number = _number(path)
    try:
        values = orjson.loads(await store.get(path) or b"")
        accepted = {each.name: values[each.name] for each in fields(RunLease) if each.name in values}
        accepted["progress"] = dict(accepted.get("progress", {}))
        return RunLease(
            **accepted | {"number": number, "heartbeat_at": dt.datetime.fromisoformat(values["heartbeat_at"])}
        )
    except (ValueError, TypeError, KeyError):
        never = dt.datetime.fromtimestamp(0, dt.UTC)
        return RunLease(
            number=number,
            holder="",
            host="unknown",
            location="",
            process="0-",
            heartbeats=0,
            heartbeat_at=never,
            ended=True,
        )


class RunLeaseHolder:
    """Acquires, renews and releases a lease for this process.

    Args:
        store: the output root.
        folder: of the sessions.
        what: the leased object, for messages: `run 2026-11-21`.
        progress: returns the counters for the heartbeat.
        on_wait: called with the session whose next heartbeat `acquire` waits for.
        utcnow: the current time.

    Attributes:
        settled: set it when all outcomes are published; `release` records it.
        follows_unsettled: the previous session did not settle; its process may only be suspended.
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
            location=_process_location(),
            process=_this_process(),
            heartbeats=0,
            heartbeat_at=utcnow(),
        )

    @property
    def holder(self) -> str:
        """The random name of this process, which its journal segments contain."""
        return self._lease.holder

    @property
    def number(self) -> int:
        """Number of this session, from 0."""
        return self._lease.number

    def counters(self) -> dict[str, Any]:
        """The current counters, as the next heartbeat would contain them."""
        return self._progress()

    async def acquire(
        self, *, on_left: Callable[[RunLease], None] = lambda _: None, dead: RunLease | None = None
    ) -> None:
        """Acquire the lease. If the previous session has not ended, waits up to 45 s for its heartbeat.

        Args:
            on_left: called with the previous session before this session's file is created, so that `progress` can
                include what that session left behind.
            dead: a session that the caller has just found dead.

        Raises:
            HeldError: another process holds the lease; the message names it.
        """
        last = await read_lease(self._store, self._folder)
        if last is not None:
            if last != dead:
                if last.process_is_alive is None:
                    self._on_wait(last)
                if await is_alive(self._store, self._folder, last):
                    raise self._held_by(last)
            self.follows_unsettled = not (last.ended and last.settled)
            on_left(last)
            self._lease = replace(self._lease, number=last.number + 1)
        path = self._path(self._lease.number)
        if not await self._store.put_new(path, self._next_heartbeat()):
            other = await read_session(self._store, path)
            if other.holder != self.holder:  # otherwise only the response to an earlier attempt was lost
                raise self._held_by(other)

    async def check(self) -> None:
        """Raise `StoppedError` if another process has taken over."""
        if await self._store.exists(self._path(self.number + 1)):
            other = await read_session(self._store, self._path(self.number + 1))
            raise StoppedError(
                f"this process stops: {self._what} was taken over by another process (on {other.host}), which received "
                f"no heartbeat from this one for {EXPIRES_S:.0f} s",
                code=ErrorCode.RUN_TAKEN_OVER,
            )

    async def later_sessions(self) -> list[RunLease]:
        """The sessions that have taken over from this one, in order."""
        paths = [path for path in await _session_files(self._store, self._folder) if _number(path) > self.number]
        return await gather(lambda path: read_session(self._store, path), paths, at_once=_READS_AT_ONCE)

    async def write_heartbeat(self) -> None:
        """Write a heartbeat now."""
        await self._store.put(self._path(self.number), self._next_heartbeat())

    async def keep(self) -> None:
        """Write heartbeats until cancelled. Raises `StoppedError` if another process has taken over.

        A failing store is ignored here; the ledger's writes report it.
        """
        while True:
            await anyio.sleep(HEARTBEAT_S)
            try:
                await self.check()
                await self.write_heartbeat()
            except OutputError:
                continue

    @asynccontextmanager
    async def writing_heartbeats(self) -> AsyncIterator[None]:
        """Write heartbeats during the block. Doesn't notice a takeover; call `check` for that."""

        async def write_heartbeats() -> None:
            while True:
                await anyio.sleep(HEARTBEAT_S)
                with suppress(OutputError):
                    await self.write_heartbeat()

        error: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(write_heartbeats)
            try:
                yield
            except Exception as raised:  # noqa: BLE001 - to raise it outside of an exception group
                error = raised
            group.cancel_scope.cancel()
        if error is not None:
            raise error

    async def release(self) -> None:
        """End the session if this process holds it; its last counters stay in its file."""
        path = self._path(self.number)
        if (await read_session(self._store, path)).holder == self.holder:
            await self._store.put(path, self._next_heartbeat(ended=True))
            if self.settled:
                await self._store.put_new(_settled_path(path), b"")

    def _path(self, number: int) -> str:
        return session_path(self._folder, number)

    def _held_by(self, other: RunLease) -> HeldError:
        return HeldError(
            f"{self._what} is in use by another process ({other.process_name}); wait until it has ended, or "
            f"{EXPIRES_S:.0f} s if it was killed",
            sessions=self._folder,
        )

    def _next_heartbeat(self, *, ended: bool = False) -> bytes:
        self._lease = replace(self._lease, heartbeats=self._lease.heartbeats + 1)
        lease = replace(
            self._lease,
            heartbeat_at=self._utcnow(),
            progress=self._progress(),
            ended=ended,
            settled=ended and self.settled,
        )
        return orjson.dumps(lease, option=orjson.OPT_UTC_Z)


def _number(path: str) -> int:
    return int(path.rpartition("/")[2].removesuffix(_SESSION))


def session_path(folder: str, number: int) -> str:
    """Path of the file of a session."""
    return f"{folder}/{number:05d}{_SESSION}"


class _ProcessState(NamedTuple):
    """State of a process: the kernel's one-letter code, and its start time in ticks since boot."""

    code: str
    started: str


def _process_location() -> str:
    """Boot id and PID namespace, in which a process id is valid; empty if they can't be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _this_process() -> str:
    state = _process_state(os.getpid())
    return f"{os.getpid()}-{'' if state is None else state.started}"


def _process_state(pid: int) -> _ProcessState | None:
    """The state of a process; None if there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    code, *rest = stat.rpartition(")")[2].split()
    return None if code in {"Z", "X"} else _ProcessState(code, rest[18])
