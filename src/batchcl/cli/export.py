"""`batchcl export`: copies of the results in another location or format."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from batchcl.cli.options import Sse, SseKmsKeyId
from batchcl.cli.output import Json, Profile, Region, Root, emit_object

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Copy results to another location or format.")


@app.callback()
def _group() -> None:
    pass


@app.command("parquet")
def parquet(
    root: Root,
    *,
    out: Annotated[
        str, typer.Option("--out", metavar="NEW", help="Destination: empty directory or s3://bucket/prefix.")
    ],
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="YYYY-MM-DD", help="Only runs that started before this UTC day.", show_default=False
        ),
    ] = None,
    target_mb: Annotated[
        float, typer.Option("--target-mb", min=1, help="Size of a file in MB; needs about ten times that in memory.")
    ] = 128,
    sse: Sse = None,
    sse_kms_key_id: SseKmsKeyId = None,
    json: Json = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Copy both tables into few large files, sorted by URI.

    Partitions, columns and rows stay the same, and ROOT is not changed. The manifest export.json is written last, after
    the rows were counted; a copy without it is incomplete.

    Examples:

      batchcl export parquet out --out archive

      batchcl export parquet s3://tables/labels --out s3://tables/labels-2026 --before 2027-01-01
    """
    import sys

    import anyio
    import orjson

    from batchcl.analysis.export import export_parquet
    from batchcl.choices import Encryption

    work = partial(
        export_parquet,
        root,
        out,
        before=before,
        target_bytes=int(target_mb * 1024 * 1024),
        encryption=Encryption(sse, sse_kms_key_id),
        profile=profile,
        region=region,
    )
    export = anyio.run(work)
    if json:
        sys.stdout.write(orjson.dumps(export.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode() + "\n")
        return
    copied = {
        **export.rows,
        "source files": sum(len(file.sources) for file in export.files),
        "files": len(export.files),
        "bytes": sum(file.size_bytes for file in export.files),
    }
    emit_object(copied, title=f"Exported {export.source} to {export.out}")
