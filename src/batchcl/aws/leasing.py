"""Leases of models, kept by those who start or use one. What they look like and mean is in `leases`."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

import anyio

from batchcl.aws.arn import ModelArn
from batchcl.aws.guards import undone
from batchcl.aws.leases import MANUAL_KEY, Lease, Role, lease_key, leases_in, schedule_name_of
from batchcl.aws.lifecycle import Units, describe, start
from batchcl.aws.statuses import IN_USE
from batchcl.aws.tags import list_tags, tag, untag
from batchcl.errors import BatchclError, ModelError, RefusedError, UnreachableError
from batchcl.scoring.events import Notice, Observer

__all__ = ["LeaseGuard", "NoLease", "RemoveSchedule", "clear_leases", "drop_leases", "end_lease", "start_for"]

RemoveSchedule: TypeAlias = Callable[[str], Awaitable[object]]
"""Deletes the dead man's switch of this name, or finds that it is gone."""

_RENEWALS: Final = 3
"""A lease is renewed so often in its length, so that two renewals may fail before it ends."""

_JITTER: Final = 0.2
"""Runs that began together don't renew together for ever."""

_HURRY: Final = 4
"""After a renewal that failed the next one comes so much sooner."""


class LeaseGuard:
    """The lease of one run on one model; a `Guard`.

    Args:
        client: an open Rekognition client for the control plane.
        arn: the model.
        holder: the run, in words that tell it from all others of the account.
        length_s: the model may run so long after the last sign of life.
        scheduled: whether a schedule named after the lease stops the model too.
        remove_schedule: deletes the schedule of this name, which a run that died has left; see `drop_leases`.
        now: the service's clock.
        observer: told when the lease can't be renewed.
        rng: for jitter.
    """

    def __init__(
        self,
        client: Any,
        arn: ModelArn,
        *,
        holder: str,
        length_s: float,
        scheduled: bool = False,
        remove_schedule: RemoveSchedule | None = None,
        now: Callable[[], dt.datetime],
        observer: Observer,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._arn = arn
        self._holder = holder
        self._key = lease_key(holder)
        self._length_s = length_s
        self._scheduled = scheduled
        self._remove_schedule = remove_schedule
        self._now = now
        self._observer = observer
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._role: Role | None = None
        self._until: dt.datetime | None = None
        self._orphan = False

    async def arm(self) -> None:
        """Take the lease, or renew it, as the one who starts the model.

        Raises:
            RefusedError: the model can't be tagged.
        """
        self._orphan = False
        self._role = Role.SCHEDULED if self._scheduled else Role.STARTED
        with suppress(RefusedError):  # what dead runs left here does no harm until it is more than a resource can have
            await clear_leases(self._client, self._arn, ended_at=self._now(), remove_schedule=self._remove_schedule)
        try:
            await self._renew()
        except RefusedError as error:
            if not isinstance(error, UnreachableError):  # without an answer, the tag may be there all the same
                self._role = None
            raise type(error)(
                f"{error}; the model isn't started without its lease, as nobody could stop it if this process died: "
                "mend that, or go without by --lease none"
            ) from error

    async def share(self) -> None:
        """Take a lease as a user where another run has one, and keep the one of a session that died alive."""
        try:
            others = leases_in(await list_tags(self._client, self._arn.text))
            own = next((lease for lease in others if lease.key == self._key and lease.started), None)
            if own is not None:  # it still says that nobody will stop the model, which will be true again at the end
                self._role, self._orphan = own.role, True
            elif any(lease.started for lease in others):
                self._role = Role.USING
            else:
                self._role = None
            if self._role is not None:
                await self._renew()
        except BatchclError as error:
            self._say("lease-unknown", f"whether the model is leased can't be told, so it may be stopped: {error}")

    async def keep(self) -> None:
        """Renew the lease, if there is one, three times in its length."""
        failed = False
        while True:
            pause_s = self._length_s / _RENEWALS / (_HURRY if failed else 1)
            await anyio.sleep(pause_s * self._rng.uniform(1 - _JITTER, 1))
            if self._role is None:
                continue
            try:
                await self._renew()
            except BatchclError as error:
                if not failed:
                    until = "" if self._until is None else f" at {self._until:%Y-%m-%dT%H:%M:%SZ}"
                    self._say(
                        "lease-not-renewed",
                        f"the lease of {self._arn.name} could not be renewed and ends{until}, after which "
                        f"`batchcl model reap` stops the model: {error}; trying again",
                    )
                failed = True
            else:
                if failed:
                    self._say("lease-renewed", f"the lease of {self._arn.name} is renewed")
                failed = False

    async def disarm(self) -> None:
        """Give the lease back."""
        if self._role is None or self._orphan:
            return
        self._role = None
        why = await undone(partial(untag, self._client, self._arn.text, [self._key]))
        if why is not None:
            self._say("lease-left", f"the lease of {self._arn.name} stays until `batchcl model reap`: {why}")

    async def _renew(self) -> None:
        assert self._role is not None
        until = self._now() + dt.timedelta(seconds=self._length_s)
        lease = Lease(key=self._key, role=self._role, until=until, holder=self._holder)
        await tag(self._client, self._arn.text, {lease.key: lease.value})
        self._until = until

    def _say(self, kind: str, text: str) -> None:
        self._observer.notice(Notice(kind, text))


class NoLease:
    """A run that wants no lease; a `Guard` that sees to it that there is none.

    Args:
        client: an open Rekognition client for the control plane.
        arn: the model.
        holder: the run, whose earlier sessions may have had one.
        now: the service's clock.
        observer: told when an old lease may be left.
    """

    def __init__(
        self, client: Any, arn: ModelArn, *, holder: str, now: Callable[[], dt.datetime], observer: Observer
    ) -> None:
        self._client = client
        self._arn = arn
        self._key = lease_key(holder)
        self._now = now
        self._observer = observer

    async def arm(self) -> None:
        """Remove what would have the model stopped: leases that have ended, and the run's own."""
        try:
            leases = leases_in(await list_tags(self._client, self._arn.text))
            now = self._now()
            unwanted = [lease for lease in leases if lease.key == self._key or lease.ended(now)]
            await drop_leases(self._client, self._arn, unwanted, remove_schedule=None)
        except BatchclError as error:
            text = f"`batchcl model reap` will stop {self._arn.name} if an old lease is left on it: {error}"
            self._observer.notice(Notice("lease-unknown", text))

    async def share(self) -> None:
        """Whoever runs the model may have it stopped."""

    async def keep(self) -> None:
        """Nothing is to be kept."""

    async def disarm(self) -> None:
        """Nothing is to be given back."""


async def start_for(
    client: Any,
    arn: ModelArn,
    units: Units,
    *,
    seconds: float,
    holder: str,
    now: Callable[[], dt.datetime],
    remove_schedule: RemoveSchedule | None = None,
) -> Lease:
    """Start a model by hand under a lease that ends `seconds` from now; `batchcl model reap` stops it then.

    Args:
        client: an open Rekognition client.
        arn: the model.
        units: to start it with.
        seconds: how long the lease lasts, the start included.
        holder: who wants it, in words.
        now: the service's clock.
        remove_schedule: deletes the schedule of this name, which a run that died may have left.

    Raises:
        ModelError: it runs already, or can't be started.
        RefusedError: it can't be tagged; it isn't started then.
    """
    found = await describe(client, arn)  # before the tag: a model that somebody else started gets no lease of ours
    if found.status in IN_USE:
        raise ModelError(f"{arn.name} is {found.status} already; a lease is given to a model that is started")
    await clear_leases(client, arn, remove_schedule=remove_schedule)
    until = now() + dt.timedelta(seconds=seconds)
    lease = Lease(key=MANUAL_KEY, role=Role.STARTED, until=until, holder=holder)
    await tag(client, arn.text, {lease.key: lease.value})
    try:
        await start(client, arn, units)
    except ModelError:
        await untag(client, arn.text, [lease.key])
        raise
    return lease


async def clear_leases(
    client: Any,
    arn: ModelArn,
    *,
    ended_at: dt.datetime | None = None,
    remove_schedule: RemoveSchedule | None = None,
) -> tuple[Lease, ...]:
    """Remove the leases of a model that doesn't run, or those that have ended at `ended_at`; what was removed.

    A lease that is left from an earlier time would have the model stopped that is started now.

    Args:
        client: an open Rekognition client.
        arn: the model.
        ended_at: by the service's clock.
        remove_schedule: deletes the schedule of this name; see `drop_leases`.

    Raises:
        RefusedError: its tags can't be listed or removed.
    """
    leases = leases_in(await list_tags(client, arn.text))
    unwanted = [lease for lease in leases if ended_at is None or lease.ended(ended_at)]
    return await drop_leases(client, arn, unwanted, remove_schedule=remove_schedule)


async def drop_leases(
    client: Any, arn: ModelArn, leases: Sequence[Lease], *, remove_schedule: RemoveSchedule | None
) -> tuple[Lease, ...]:
    """Remove these leases of a model, each after the schedule that belongs to it; what was removed.

    Without `remove_schedule`, leases that have one stay: they are what tells of it.

    Raises:
        RefusedError: a schedule or a tag can't be removed; the leases stay.
    """
    gone = tuple(lease for lease in leases if lease.role is not Role.SCHEDULED or remove_schedule is not None)
    for lease in gone:
        if lease.role is Role.SCHEDULED and remove_schedule is not None:
            await remove_schedule(schedule_name_of(lease.key))
    if gone:
        await untag(client, arn.text, [lease.key for lease in gone])
    return gone


async def end_lease(client: Any, arn: ModelArn) -> None:
    """Remove the lease that `start_for` gave, if it did; raises `RefusedError`."""
    await untag(client, arn.text, [MANUAL_KEY])
