"""Shared by the commands on projects, datasets and models: AWS clients, confirmations, progress lines."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import SkippedRegion, Uploaded, WorkflowClients

__all__ = [
    "AllRegions",
    "InterruptMessage",
    "Tags",
    "Yes",
    "confirm",
    "parsed_tags",
    "report_skipped",
    "report_state",
    "report_upload",
    "shown",
    "with_service",
]

_T = TypeVar("_T")

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; required if stdin is not a terminal.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="Tag to set; may be repeated.", show_default=False),
]


AllRegions = Annotated[
    bool, typer.Option("--all-regions", help="In all regions with Rekognition, instead of --region only.")
]


class InterruptMessage:
    """What continues in AWS if the command ends early; printed in that case only."""

    def __init__(self) -> None:
        self.text = ""
        self.unless_refused = False

    def is_(self, text: str, *, unless_refused: bool = False) -> None:
        """Set the message; with `unless_refused` it is not printed if AWS refused the request."""
        self.text = text
        self.unless_refused = unless_refused


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...


def with_service(
    work: Callable[[WorkflowClients, InterruptMessage], Awaitable[_T]],
    *,
    profile: str | None,
    region: str | None,
    named: str | None = None,
) -> _T:
    """Run `work` with an open service and return its result.

    The region is `region` if given, as for the AWS CLI; else that of `named` if it is an ARN; else that of the AWS
    settings.

    ^C, SIGTERM, SIGHUP and SIGQUIT cancel it at once. The error then also says what continues in AWS; so do other
    errors, except those that say that the operation has failed in AWS.
    """
    import anyio

    from batchcl.aws.names import region_in
    from batchcl.cli.signals import run_until_first_signal
    from batchcl.errors import BatchclError, ModelError, RefusedError, UnreachableError, UsageError
    from batchcl.workflow import connect

    afterwards = InterruptMessage()

    async def main() -> _T:
        told = None if named is None else region_in(named)
        async with connect(profile=profile, region=region or told) as service:
            return await work(service, afterwards)

    try:
        return anyio.run(run_until_first_signal, main)
    except BatchclError as error:
        refused = isinstance(error, RefusedError | UsageError) and not isinstance(error, UnreachableError)
        over = isinstance(error, ModelError) or (refused and afterwards.unless_refused)  # it has ended in AWS too
        if afterwards.text and not over:
            error.args = (f"{error}; {afterwards.text}",)
        raise


def confirm(what: str, *, yes: bool, refused: str = "nothing was deleted") -> None:
    """Ask for confirmation of `what`, a sentence that says what will be done; `yes` confirms.

    Without confirmation, the command ends with `refused`.

    Raises:
        UsageError: stdin is not a terminal, and `yes` isn't given.
        RefusedError: the answer was no.
    """
    from batchcl.errors import ErrorCode, InterruptedRunError, RefusedError, UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{what}; stdin is not a terminal, so pass --yes to confirm", code=ErrorCode.NOT_CONFIRMED)
    try:
        meant = typer.confirm(f"batchcl: {what}. Continue?", err=True)
    except typer.Abort:
        raise InterruptedRunError(refused) from None
    if not meant:
        raise RefusedError(refused, code=ErrorCode.NOT_CONFIRMED)


def parsed_tags(tags: Sequence[str] | None) -> dict[str, str]:
    """`KEY=VALUE` as key and value; raises `UsageError`."""
    from batchcl.errors import UsageError

    found: dict[str, str] = {}
    for each in tags or ():
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise UsageError(f"{each!r} is not a tag; write KEY=VALUE")
        found[key] = value
    return found


def report_state(thing: _Named) -> None:
    """Print a change of status."""
    write_line(f"{thing.name} is {thing.status}")


def report_skipped(skipped: Sequence[SkippedRegion]) -> None:
    """Report the skipped regions: one line for all that refuse the keys, and one for each other region.

    Raises:
        StoppedError: one of them may respond to the next call.
    """
    from batchcl.errors import StoppedError
    from batchcl.workflow import RegionSkip

    disabled = [each.region for each in skipped if each.why is RegionSkip.NOT_ENABLED]
    if disabled:
        write_line(f"skipped {', '.join(disabled)}: not enabled for this account, or not with these credentials")
    for each in skipped:
        if each.why in {RegionSkip.DENIED, RegionSkip.REFUSED}:
            write_line(f"skipped {each.region}: {each.message}")
    silent = [each for each in skipped if each.why is RegionSkip.UNREACHABLE]
    if silent:
        text = "; ".join(f"{each.region}: {each.message}" for each in silent)
        raise StoppedError(f"some regions did not respond; repeat the command: {text}")


def report_upload(progress: Uploaded) -> None:
    """Print the progress of an upload."""
    left = progress.total - progress.there - progress.sent
    if progress.there == progress.total:
        write_line(f"all {progress.total:,} images are already in S3")
    elif not progress.sent:
        there = f", {progress.there:,} of {progress.total:,} are already in S3" if progress.there else ""
        write_line(f"{left:,} images to upload{there}")
    else:
        write_line(
            f"{progress.sent:,} images uploaded, {progress.sent_bytes / 1e6:,.1f} MB"
            + (f", {left:,} left" if left else "")
        )


def shown(value: dict[str, Any], *, json: bool) -> dict[str, Any]:
    """`value`, without empty fields unless for `json`."""
    return value if json else {name: item for name, item in value.items() if item not in (None, "", (), [], {})}
