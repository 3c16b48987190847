"""Who is working on a run: a small object with a heartbeat.

It gives the early, friendly refusal to a second runner, and lets a run whose holder died be taken over within a minute.
It is no lock and needs none: the journal's exclusive creation decides.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import orjson

from batchcl.errors import OutputError, StoppedError
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.runs.together import together

__all__ = ["Lease", "LeaseKeeper", "read_lease"]

HEARTBEAT_S: Final = 10.0
EXPIRES_S: Final = 45.0
SETTLES_S: Final = 0.5
"""Of two that find the same dead lease, both have written theirs within less; the later one has it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A holder and its last sign of life.

    Attributes:
        holder: a random name of the runner.
        host: its machine.
        process: its process id and start, by which a process on the same machine knows that it has died.
        beat_at: when it last said that it lives, by its own clock.
        progress: its counters at that time.
        ended: it works no more, and has left something behind that the next holder takes over.
    """

    holder: str
    host: str
    process: str
    beat_at: dt.datetime
    progress: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def lives(self, now: dt.datetime) -> bool:
        """Whether its holder may still be at work."""
        if self.ended or (self.host == _host() and not _runs(self.process)):
            return False
        return (now - self.beat_at).total_seconds() < EXPIRES_S


async def read_lease(store: Store, paths: RunPaths) -> Lease | None:
    """The lease of a run, or None when nobody works on it."""
    data = await store.get(paths.lease)
    if data is None:
        return None
    try:
        values = orjson.loads(data)
        return Lease(**values | {"beat_at": dt.datetime.fromisoformat(values["beat_at"])})
    except (ValueError, TypeError, KeyError):
        return None  # cut off or of another version: it keeps nobody away


class LeaseKeeper:
    """Holds the lease of one run while this runner works on it."""

    def __init__(
        self,
        store: Store,
        paths: RunPaths,
        *,
        progress: Callable[[], dict[str, Any]] = dict,
        utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._store = store
        self._paths = paths
        self._progress = progress
        self._utcnow = utcnow
        self._lease = Lease(holder=secrets.token_hex(8), host=_host(), process=_this_process(), beat_at=utcnow())

    @property
    def holder(self) -> str:
        """This runner's name, which its journal segments carry."""
        return self._lease.holder

    async def acquire(self, *, on_left: Callable[[Lease], None] = lambda _: None) -> None:
        """Take the lease, or raise `StoppedError` that says who has it.

        `on_left` is given the lease of a holder that didn't give it back, which tells what it left behind. It is called
        before that lease is overwritten, so that `progress` can tell it on: dying here forgets nothing.
        """
        if await self._store.put_new(self._paths.lease, self._beat()):
            return
        other = await read_lease(self._store, self._paths)
        if other is not None and other.holder != self.holder and other.lives(self._utcnow()):
            raise self._held_by(other)
        if other is not None:
            on_left(other)
        await self.beat()
        await anyio.sleep(SETTLES_S)
        if (faster := await self.successor()) is not None:
            raise self._held_by(faster)

    async def successor(self) -> Lease | None:
        """The lease of another runner that is at work, after this one had it; None where there is none."""
        other = await read_lease(self._store, self._paths)
        if other is None or other.holder == self.holder or not other.lives(self._utcnow()):
            return None
        return other

    async def beat(self) -> None:
        """Say now, rather than at the next heartbeat, how things stand."""
        await self._store.put(self._paths.lease, self._beat())

    async def keep(self) -> None:
        """Renew until cancelled. Raises `StoppedError` when another runner has taken over.

        A store that fails for a while is left to those who write results to complain about.
        """
        while True:
            await anyio.sleep(HEARTBEAT_S)
            try:
                other = await read_lease(self._store, self._paths)
                if other is not None and other.holder != self.holder:
                    raise StoppedError(
                        f"run {self._paths.run_id} was taken over by another runner ({other.host}), which had not "
                        f"heard of this one for {EXPIRES_S:.0f} s"
                    )
                await self.beat()
            except OutputError:
                continue

    async def kept_during(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, with the lease renewed beside it. Raises what `work` and `keep` raise."""
        keeping = anyio.CancelScope()
        results: list[T] = []

        async def keep() -> None:
            with keeping:
                await self.keep()

        async def do() -> None:
            try:
                results.append(await work())
            finally:
                keeping.cancel()

        await together(lambda part: part(), (keep, do), at_once=2)
        return results[0]

    async def release(self, *, leaving: bool = False) -> None:
        """Give the lease back, unless it is another's by now.

        When this runner is `leaving` something behind, the lease stays to tell of it; it keeps nobody away.
        """
        other = await read_lease(self._store, self._paths)
        if other is None or other.holder != self.holder:
            return
        if leaving:
            await self._store.put(self._paths.lease, self._beat(ended=True))
        else:
            await self._store.delete(self._paths.lease)

    def _held_by(self, other: Lease) -> StoppedError:
        ago = (self._utcnow() - other.beat_at).total_seconds()
        return StoppedError(
            f"run {self._paths.run_id} is held by another runner ({other.host}, process "
            f"{other.process.partition('-')[0]}, last seen {ago:.0f} s ago); wait for it, or for {EXPIRES_S:.0f} s "
            "after it died"
        )

    def _beat(self, *, ended: bool = False) -> bytes:
        lease = replace(self._lease, beat_at=self._utcnow(), progress=self._progress(), ended=ended)
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
