"""`batchcl compact`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchcl.cli.output import Csv, Json, Profile, Region, Root

if TYPE_CHECKING:
    from batchcl.runs.compact import Compaction
    from batchcl.runs.store import Store

__all__ = ["compact"]

_NAMED: Final = 3


def compact(
    root: Root,
    *,
    target_mb: Annotated[float, typer.Option("--target-mb", min=1, help="Size of the large files, in MB.")] = 128,
    min_age: Annotated[
        str, typer.Option("--min-age", metavar="10m", help="Leave runs alone that ended more recently.")
    ] = "10m",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be merged.")] = False,
    single_writer: Annotated[
        bool,
        typer.Option("--single-writer", help="Nobody else writes to ROOT: for stores without conditional writes."),
    ] = False,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Merge small files of results/ of finished runs into large ones, within each model and date.

    batchcl's own commands see every row once all the time. Other readers may see the rows of a group twice for a
    moment, and never miss one. Killed at any point it loses nothing; run it again.

    Examples:

      batchcl compact out --dry-run

      batchcl compact s3://tables/labels --target-mb 256
    """  # noqa: D412 - Typer shows the examples as they stand
    import datetime as dt  # noqa: PLC0415 - `batchcl --help` goes without

    import anyio.to_thread  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415

    from batchcl.cli.output import emit  # noqa: PLC0415
    from batchcl.cli.run import tell  # noqa: PLC0415
    from batchcl.cli.status import with_store  # noqa: PLC0415
    from batchcl.errors import UsageError  # noqa: PLC0415
    from batchcl.quantities import seconds_of  # noqa: PLC0415
    from batchcl.runs.compact import compact as merge  # noqa: PLC0415
    from batchcl.runs.published import check_root  # noqa: PLC0415

    left: list[str] = []
    try:
        age = dt.timedelta(seconds=seconds_of(min_age))
    except UsageError as error:
        raise UsageError(f"--min-age: {error}") from error

    async def work(store: Store) -> list[Compaction]:
        await anyio.to_thread.run_sync(check_root, store)
        if not dry_run:
            await store.check_writable(single_writer=single_writer)
        return await merge(
            store,
            target_bytes=int(target_mb * 1024 * 1024),
            min_age=age,
            dry_run=dry_run,
            on_left=lambda run_id, reason: left.append(f"run {run_id} {reason}"),
        )

    done = with_store(work, root, profile=profile, region=region)
    rows = [
        {
            "output": each.output,
            "files": len(each.inputs),
            "rows": each.rows,
            "bytes_before": each.bytes_before,
            "bytes_after": each.bytes_after,
        }
        for each in done
    ]
    if not rows:
        alone = f"; left alone: {_few(left)}" if left else ""
        tell(f"nothing to merge: no model and date has two small files of finished runs in {root}/results{alone}")
        if not json and not csv:
            return
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "output": pl.String,
        "files": pl.Int64,
        "rows": pl.Int64,
        "bytes_before": pl.Int64,
        "bytes_after": pl.Int64,
    }
    title = f"{'Would be merged' if dry_run else 'Merged'} in {root}"
    emit(pl.DataFrame(rows, schema=schema), json=json, csv=csv, title=title)


def _few(reasons: Sequence[str]) -> str:
    more = len(reasons) - _NAMED
    return ", ".join(reasons[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
