"""The lease that one run holds on a model, in the model's tags. What the tags look like and mean is in `leases`."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.errors import was_too_late
from batchcl.aws.tags import list_tags, tag, untag
from batchcl.errors import CredentialsError, RefusedError, UnreachableError
from batchcl.lifetime.lease_tags import LeaseTag, Role, leases_in, schedule_name_of
from batchcl.lifetime.state_machine import ModelEvent

__all__ = ["ModelLease", "RemoveSchedule", "ScheduledStopper", "clear_leases", "drop_leases"]

_RENEWALS: Final = 3
"""A lease is renewed this often in its length, so that two renewals may fail before it ends."""

_JITTER: Final = 0.2
"""Runs that began together don't renew together for ever."""

_RETRY_FACTOR: Final = 4
"""After a failed renewal the next one comes this many times sooner."""

_WRITE_PAUSES_S: Final = (0.5, 1.0)
"""Between attempts to write a tag, which the SDK doesn't repeat: each one looks first whether the lease has lapsed."""

_ROLES: Final = {False: (Role.STARTED, Role.LEAVING), True: (Role.SCHEDULED, Role.LEAVING_SCHEDULED)}


RemoveSchedule: TypeAlias = Callable[[str], Awaitable[object]]
"""Deletes the schedule of this name, or finds that it is gone."""


class ScheduledStopper(Protocol):
    """A schedule in AWS that stops the model at the run's deadline."""

    async def arm(self) -> None:
        """Make the schedule, or change its time. Raises `RefusedError`."""
        ...

    async def disarm(self) -> None:
        """Remove the schedule. Raises `RefusedError`."""
        ...


class ModelLease:
    """The lease of one run on one model.

    Args:
        client: an open Rekognition client for the control plane.
        arn: the model.
        key: of the tag.
        holder: the run, in words that tell it from all others of the account.
        length_s: the model may run this long after the last renewal; None for no lease.
        schedule: stops the model at the deadline too.
        remove_schedule: deletes the schedule of this name, which a dead run has left; see `drop_leases`.
        now: the service's clock.
        rng: for jitter.
    """

    def __init__(
        self,
        client: Any,
        arn: ModelArn,
        *,
        key: str = "",
        holder: str = "",
        length_s: float | None,
        schedule: ScheduledStopper | None = None,
        remove_schedule: RemoveSchedule | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._arn = arn
        self._key = key
        self._holder = holder
        self._length_s = length_s
        self._schedule = schedule
        self._remove_schedule = remove_schedule
        self._now = now
        self._rng = rng or random.Random()
        self._role: Role | None = None
        self._until: dt.datetime | None = None
        self._inherited: tuple[str, ...] = ()
        self._stays = False

    @property
    def is_enabled(self) -> bool:
        """Whether the model has a lease at all."""
        return self._length_s is not None

    @property
    def until(self) -> dt.datetime | None:
        """When it ends unless it is renewed, by the service's clock."""
        return self._until

    @property
    def has_lapsed(self) -> bool:
        """Whether it has ended since it was written last, so that the reaper may have stopped the model."""
        return self._until is not None and self._now() >= self._until

    @property
    def has_schedule(self) -> bool:
        """Whether a schedule stops the model, too."""
        return self._schedule is not None

    async def find_own(self) -> bool:
        """Whether the tag of an earlier session is on the model, ended or not. If so it is this one's.

        False where the tags may not be listed: a model that may be somebody else's is not stopped.
        """
        if not self.is_enabled:
            return False
        try:
            own = await self._read_own()
        except CredentialsError as error:
            if not error.is_access_denied:
                raise
            return False
        if own is None or not own.started:
            return False
        self._role, self._until = own.role, own.until
        return True

    async def claim(self) -> None:
        """Take the lease as the one who starts the model, or renew it; make the schedule.

        Raises:
            RefusedError: the model can't be tagged, or the schedule can't be made.
        """
        self._stays = False
        await self._clear_ended()
        if self.is_enabled:
            before = self._role
            try:
                await self._write(_ROLES[self._schedule is not None][0], is_new=True)
                await self._check_written()
            except RefusedError as error:
                if not isinstance(error, UnreachableError):  # a definite answer: nothing was written
                    self._role = before
                raise type(error)(
                    f"{error}; the model isn't started without its lease, as nobody could stop it if this process "
                    "died: correct that, or go without by --lease none"
                ) from error
        if self._schedule is not None:
            await self._schedule.arm()

    async def share(self) -> ModelEvent:
        """Take a lease as a user where a run has one; keep the one of an earlier session that may not be stopped here.

        Raises:
            RefusedError: it can't be told whether the model is leased.
        """
        if not self.is_enabled:
            return ModelEvent.SHARE_NONE
        leases = await self._read()
        own = next((lease for lease in leases if lease.key == self._key and lease.started), None)
        if own is not None:
            assert own.role is not None
            await self._write(own.role, is_new=True)
            self._stays = True
            return ModelEvent.SHARE_NONE  # it still says that a run started the model, and stays
        if not any(lease.started for lease in leases):
            return ModelEvent.SHARE_NONE
        await self._write(Role.USING, is_new=True)
        return ModelEvent.SHARE_TAKEN

    async def renew(self) -> bool:
        """Write the tag with a new end; False where the lease had lapsed and its tag is gone.

        A tag that is gone while the lease never lapsed was removed by somebody who meant something else: the reaper
        stops a model only after its lease.

        Raises:
            RefusedError: the tags can't be read or written.
        """
        if self._role is None:
            return True
        return await self._write(self._role)

    async def leave(self) -> ModelEvent:
        """Change the tag to `leaving` and read all tags: who sees no other live lease stops the model.

        Of two runs that leave at once each writes before it reads, so at least one sees that it is the last.

        Raises:
            RefusedError: the tags can't be read or written.
        """
        if self._role is None:
            return ModelEvent.ALONE
        is_user = self._role is Role.USING
        leaving = _ROLES[self._role in {Role.SCHEDULED, Role.LEAVING_SCHEDULED}][1]
        if not await self._write(leaving, as_role=Role.USING if is_user else leaving):
            return ModelEvent.TAG_GONE
        try:
            others = [lease for lease in await self._read() if lease.key != self._key]
        except CredentialsError as error:
            if not error.is_access_denied:
                raise
            return ModelEvent.ALONE  # an identity that may write tags only
        now = self._now()
        if any(lease.holds(now) for lease in others):
            return ModelEvent.OTHERS
        self._inherited = tuple(lease.key for lease in others if lease.is_leaving)
        return ModelEvent.INHERITED if self._inherited else ModelEvent.ALONE

    async def hand_over(self) -> None:
        """Leave the model to the others: the schedule goes, the tag stays `leaving` until the last one out removes it.

        Another tag that says `started` may be that of a run which has not sent its start yet, and then finds the model
        running.

        Raises:
            RefusedError: the schedule could not be removed.
        """
        if self._schedule is not None:
            await self._schedule.disarm()
            await self._write(Role.LEAVING)

    async def release(self) -> None:
        """Remove the schedule, the own tag, and those of runs that have left the model to this one.

        Raises:
            RefusedError: something could not be removed, and stays.
        """
        try:
            if self._schedule is not None:
                await self._schedule.disarm()
        finally:
            if self._role is not None and not self._stays:
                await self._remove([self._key, *self._inherited])

    async def drop_own(self) -> None:
        """Remove the tag that an earlier session has left on a model that is down, and its schedule.

        Raises:
            RefusedError: something could not be removed, and stays.
        """
        if self.is_enabled and (own := await self._read_own()) is not None:
            await drop_leases(self._client, self._arn, [own], remove_schedule=self._remove_schedule)
            self._role = None

    def next_renewal_s(self, *, failed: bool) -> float:
        """Seconds to wait before the next renewal."""
        assert self._length_s is not None
        pause_s = self._length_s / _RENEWALS / (_RETRY_FACTOR if failed else 1)
        return pause_s * self._rng.uniform(1 - _JITTER, 1)

    async def _read(self) -> tuple[LeaseTag, ...]:
        return leases_in(await list_tags(self._client, self._arn.text))

    async def _read_own(self) -> LeaseTag | None:
        return next((lease for lease in await self._read() if lease.key == self._key), None)

    async def _check_written(self) -> None:
        """Raise where the tag is not there although it was written; who may not list tags goes without."""
        try:
            own = await self._read_own()
        except CredentialsError as error:
            if not error.is_access_denied:
                raise
            return
        if own is None:
            raise UnreachableError(f"tagging {self._arn.text} failed: the tag {self._key} is not there after it")

    async def _write(self, role: Role, *, as_role: Role | None = None, is_new: bool = False) -> bool:
        """Write the tag with `role` and a new end; False where the lease had lapsed and its tag is gone.

        Args:
            role: that the tag tells.
            as_role: what the holder stays for itself; `role` if None.
            is_new: take the lease, whatever became of an earlier one.
        """
        assert self._length_s is not None
        for pause_s in (*_WRITE_PAUSES_S, None):
            if not is_new and self.has_lapsed and await self._read_own() is None:
                self._role = None
                return False
            self._role = as_role or role  # before the call: without an answer, the tag may be there all the same
            until = self._now() + dt.timedelta(seconds=self._length_s)
            lease = LeaseTag(key=self._key, role=role, until=until, holder=self._holder)
            try:
                await tag(self._client, self._arn.text, {lease.key: lease.value})
            except RefusedError as error:
                if pause_s is None or not (isinstance(error, UnreachableError) or was_too_late(error)):
                    raise
                await anyio.sleep(pause_s)
            else:
                self._until = until
                break
        return True

    async def _remove(self, keys: Sequence[str]) -> None:
        await untag(self._client, self._arn.text, keys)
        self._role = None

    async def _clear_ended(self) -> None:
        """Remove what would have the model stopped: leases that have ended and, without a lease, the own one."""
        with suppress(RefusedError):
            now = self._now()
            unwanted = [
                lease
                for lease in await self._read()
                if (lease.ended(now) and lease.key != self._key) or (lease.key == self._key and not self.is_enabled)
            ]
            await drop_leases(self._client, self._arn, unwanted, remove_schedule=self._remove_schedule)


async def clear_leases(
    client: Any,
    arn: ModelArn,
    *,
    remove_schedule: RemoveSchedule | None = None,
    keep: Collection[str] = (),
) -> tuple[LeaseTag, ...]:
    """Remove the leases of a model that doesn't run, but for the keys `keep`; returns what was removed.

    A lease that is left from an earlier time would have the model stopped that is started now.

    Args:
        client: an open Rekognition client.
        arn: the model.
        remove_schedule: deletes the schedule of this name; see `drop_leases`.
        keep: keys of leases that stay.

    Raises:
        RefusedError: its tags can't be listed or removed.
    """
    leases = [each for each in leases_in(await list_tags(client, arn.text)) if each.key not in keep]
    return await drop_leases(client, arn, leases, remove_schedule=remove_schedule)


async def drop_leases(
    client: Any, arn: ModelArn, leases: Sequence[LeaseTag], *, remove_schedule: RemoveSchedule | None
) -> tuple[LeaseTag, ...]:
    """Remove these leases of a model, each after the schedule that belongs to it; returns what was removed.

    Without `remove_schedule`, leases that have one stay: they are the only record of it.

    Raises:
        RefusedError: a schedule or a tag can't be removed; the leases stay.
    """
    gone = tuple(lease for lease in leases if not lease.has_schedule or remove_schedule is not None)
    for lease in gone:
        if lease.has_schedule and remove_schedule is not None:
            await remove_schedule(schedule_name_of(lease.key))
    if gone:
        await untag(client, arn.text, [lease.key for lease in gone])
    return gone
