"""The lease that one run holds on a model, in the model's tags. `lease_tags` describes the format of the tags."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.errors import was_refused_for_clock
from batchcl.aws.tags import list_tags, tag, untag
from batchcl.errors import CredentialsError, RefusedError, UnreachableError
from batchcl.lifetime.lease_tags import LeaseTag, Role, leases_in, schedule_name_of
from batchcl.lifetime.state_machine import ModelEvent

__all__ = ["ModelLease", "RemoveSchedule", "ScheduledStopper", "clear_leases", "drop_leases"]

_RENEWALS: Final = 3
"""Renewals per duration of a lease: two may fail before it expires."""

_JITTER: Final = 0.2
"""Runs that were started together should not renew at the same moments."""

_RETRY_FACTOR: Final = 4
"""After a failed renewal, the next one follows this many times sooner."""

_WRITE_PAUSES_S: Final = (0.5, 1.0)
"""Pauses between attempts to write a tag. SDK retries are off: each attempt must first check that the lease is live."""

RemoveSchedule: TypeAlias = Callable[[str], Awaitable[object]]
"""Deletes the schedule of this name if it exists."""


class ScheduledStopper(Protocol):
    """A schedule in AWS that stops the model at the run's deadline."""

    async def arm(self) -> None:
        """Create the schedule, or update its time. Raises `RefusedError`."""
        ...

    async def disarm(self) -> None:
        """Delete the schedule. Raises `RefusedError`."""
        ...


class ModelLease:
    """The lease of one run on one model.

    Args:
        client: an open Rekognition client for the control plane.
        arn: the model.
        key: of the tag.
        holder: text that identifies the run within the account.
        length_s: duration of the lease after each renewal; None for no lease.
        schedule: a scheduled stop at the run's deadline, in addition to the lease.
        remove_schedule: deletes schedules by name, which dead runs may have left; see `drop_leases`.
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
        self._since: dt.datetime | None = None
        self._left: dt.datetime | None = None
        self._inherited: tuple[str, ...] = ()
        self._inherited_since: dt.datetime | None = None
        self._keep_tag = False

    @property
    def is_enabled(self) -> bool:
        """Whether the run uses a lease."""
        return self._length_s is not None

    @property
    def until(self) -> dt.datetime | None:
        """When the lease expires unless it is renewed, by the service's clock; None if it was never written."""
        return self._until

    @property
    def since(self) -> dt.datetime | None:
        """When the start of the model was requested; None if the tag has no time of it."""
        return self._since

    @property
    def has_lapsed(self) -> bool:
        """Whether the lease has expired since the last renewal, so that the reaper may have stopped the model."""
        return self._until is not None and self._now() >= self._until

    @property
    def lapsed_s(self) -> float:
        """Seconds since the lease expired; 0 if it is live."""
        return max(0.0, (self._now() - self._until).total_seconds()) if self._until is not None else 0.0

    @property
    def inherited_s(self) -> float:
        """Seconds since the last other run, which had started the model, left it to this one; 0 if that is unknown."""
        since = self._inherited_since
        return max(0.0, (self._now() - since).total_seconds()) if since is not None else 0.0

    @property
    def has_schedule(self) -> bool:
        """Whether there is also a scheduled stop."""
        return self._schedule is not None

    async def find_own(self) -> bool:
        """Adopt the tag of an earlier session of this run, even if it has expired; False if there is none.

        Also False if listing tags is not permitted: the model may then belong to others and must not be stopped.
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
        self._role, self._until, self._since = own.role, own.until, own.since
        return True

    async def claim(self) -> None:
        """Take the lease as the starter of the model, or renew it; create the schedule.

        Raises:
            RefusedError: the model can't be tagged, or the schedule can't be created.
        """
        self._keep_tag = False
        self._left = None
        await self._remove_expired()
        if self.is_enabled:
            before, self._since = self._role, self._now()
            try:
                await self._write(Role.SCHEDULED if self.has_schedule else Role.STARTED, is_new=True)
                await self._check_written()
            except RefusedError as error:
                if not isinstance(error, UnreachableError):  # a definite response: nothing was written
                    self._role = before
                raise type(error)(
                    f"{error}; the model was not started without its lease, because nothing would stop it if this "
                    "process died; fix the cause, or pass --lease none",
                    code=error.code,
                ) from error
        if self._schedule is not None:
            await self._schedule.arm()

    async def share(self) -> ModelEvent:
        """Take a lease with the role `using` if another run has a lease; renew the tag of an earlier session.

        Raises:
            RefusedError: the tags can't be read or written, so it is unknown whether the model has leases.
        """
        if not self.is_enabled:
            return ModelEvent.NO_LEASE
        leases = await self._read()
        own = next((lease for lease in leases if lease.key == self._key and lease.started), None)
        if own is not None:
            assert own.role is not None
            self._since = own.since
            await self._write(own.role, is_new=True)
            self._keep_tag = True  # an earlier session started the model; this one can't stop it, but the reaper must
            return ModelEvent.NO_LEASE
        if not any(lease.started for lease in leases):
            return ModelEvent.NO_LEASE
        await self._write(Role.USING, is_new=True)
        return ModelEvent.SHARED_LEASE

    async def renew(self) -> bool:
        """Write the tag with a new end; False if the lease has expired and its tag is gone.

        If the tag is gone but the lease never expired, it is written again: the reaper acts only on expired leases, so
        the tag was removed by mistake.

        Raises:
            RefusedError: the tags can't be read or written.
        """
        if self._role is None:
            return True
        return await self._write(self._role)

    async def leave(self) -> ModelEvent:
        """Change the tag to `leaving` and read all tags: a run that finds no other live lease stops the model.

        If two runs leave at the same time, each writes before it reads, so at least one finds no other live lease.

        Raises:
            RefusedError: the tags can't be read or written.
        """
        if self._role is None:
            return ModelEvent.LAST_LEASE
        is_user = self._role is Role.USING
        scheduled = self._role in {Role.SCHEDULED, Role.LEAVING_SCHEDULED}
        leaving = Role.LEAVING_SCHEDULED if scheduled else Role.LEAVING
        self._left = None if is_user else self._left or self._now()
        if not await self._write(leaving, own_role=Role.USING if is_user else leaving):
            return ModelEvent.TAG_GONE
        try:
            others = [lease for lease in await self._read() if lease.key != self._key]
        except CredentialsError as error:
            if not error.is_access_denied:
                raise
            return ModelEvent.LAST_LEASE  # this identity may write tags but not list them
        now = self._now()
        if any(lease.holds(now) for lease in others):
            return ModelEvent.OTHER_LEASES
        self._inherited = tuple(lease.key for lease in others if lease.is_leaving)
        self._inherited_since = max((lease.left for lease in others if lease.left is not None), default=None)
        return ModelEvent.INHERITED if self._inherited else ModelEvent.LAST_LEASE

    async def hand_over(self) -> None:
        """Leave the model to other holders: delete the schedule, and keep the tag `leaving` for the last one to remove.

        The tag is needed: another tag with the role `started` may belong to a run that has not sent its start yet and
        will find the model running.

        Raises:
            RefusedError: the schedule could not be deleted.
        """
        if self._schedule is not None:
            await self._schedule.disarm()
            await self._write(Role.LEAVING)

    async def release(self) -> None:
        """Delete the schedule, the own tag, and the tags of runs that have left the model to this one.

        Raises:
            RefusedError: the schedule or a tag could not be removed.
        """
        try:
            if self._schedule is not None:
                await self._schedule.disarm()
        finally:
            if self._role is not None and not self._keep_tag:
                await untag(self._client, self._arn.text, [self._key, *self._inherited])
                self._role = None

    async def drop_own(self) -> None:
        """Remove the tag and the schedule that an earlier session has left on a model that is down.

        Raises:
            RefusedError: the schedule or the tag could not be removed.
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
        """Raise `UnreachableError` if the tag that was written is missing. Skipped if listing tags is not permitted."""
        try:
            own = await self._read_own()
        except CredentialsError as error:
            if not error.is_access_denied:
                raise
            return
        if own is None:
            raise UnreachableError(f"tagging {self._arn.text} failed: the tag {self._key} is missing after the call")

    async def _write(self, role: Role, *, own_role: Role | None = None, is_new: bool = False) -> bool:
        """Write the tag with `role` and a new end; False if the lease has expired and its tag is gone.

        Args:
            role: the role in the tag.
            own_role: the role that this object keeps; `role` if None.
            is_new: write the tag even if the lease has expired and its tag is gone.
        """
        assert self._length_s is not None
        for pause_s in (*_WRITE_PAUSES_S, None):
            if not is_new and self.has_lapsed and await self._read_own() is None:
                self._role = None
                return False
            self._role = own_role or role  # set before the call, whose response may be lost
            until = self._now() + dt.timedelta(seconds=self._length_s)
            lease = LeaseTag(
                key=self._key, role=role, until=until, holder=self._holder, since=self._since, left=self._left
            )
            try:
                await tag(self._client, self._arn.text, {lease.key: lease.value})
            except RefusedError as error:
                if pause_s is None or not (isinstance(error, UnreachableError) or was_refused_for_clock(error)):
                    raise
                await anyio.sleep(pause_s)
            else:
                self._until = until
                break
        return True

    async def _remove_expired(self) -> None:
        """Remove leases that would make the reaper stop the model: expired ones and, without a lease, the own one."""
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
    """Remove the leases of a model that is down, except those with keys in `keep`; returns the removed ones.

    An expired lease would make the reaper stop the model after the next start.

    Args:
        client: an open Rekognition client.
        arn: the model.
        remove_schedule: deletes schedules by name; see `drop_leases`.
        keep: tag keys of leases to keep.

    Raises:
        RefusedError: its tags can't be listed or removed.
    """
    leases = [each for each in leases_in(await list_tags(client, arn.text)) if each.key not in keep]
    return await drop_leases(client, arn, leases, remove_schedule=remove_schedule)


async def drop_leases(
    client: Any, arn: ModelArn, leases: Sequence[LeaseTag], *, remove_schedule: RemoveSchedule | None
) -> tuple[LeaseTag, ...]:
    """Remove leases of a model, after deleting the schedules that belong to them; returns the removed ones.

    Without `remove_schedule`, leases with a schedule are kept, because they are the only record of it.

    Raises:
        RefusedError: a schedule or a tag can't be removed; no lease was removed.
    """
    removable = tuple(lease for lease in leases if not lease.has_schedule or remove_schedule is not None)
    for lease in removable:
        if lease.has_schedule and remove_schedule is not None:
            await remove_schedule(schedule_name_of(lease.key))
    if removable:
        await untag(client, arn.text, [lease.key for lease in removable])
    return removable
