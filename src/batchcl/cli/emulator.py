"""`batchcl emulator`: a local Custom Labels service."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.emulator.settings import ACCOUNT, EmulatorSettings
from batchcl.errors import BatchclError
from batchcl.extras import require_extra

if TYPE_CHECKING:
    import anyio

    from batchcl.emulator.server import Listening

__all__ = ["emulator"]

_PARENT_POLL_S = 0.5


def emulator(  # noqa: PLR0917 - Typer makes flags of them, nobody passes them by place
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free port.")] = 0,
    state: Annotated[
        Path | None, typer.Option(help="Directory for projects and models; if omitted, they are deleted at the end.")
    ] = None,
    buckets: Annotated[Path | None, typer.Option(help="Directory with one folder per bucket: DIR/BUCKET/KEY.")] = None,
    bucket_region: Annotated[
        list[str] | None,
        typer.Option(help="BUCKET=REGION: region of a bucket; may be repeated.", show_default=False),
    ] = None,
    s3_endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint to read buckets from, with the AWS credentials of the environment.")
    ] = None,
    tps_per_unit: Annotated[float, typer.Option(help="Images per second of one inference unit.")] = 2.8,
    seconds_per_megapixel: Annotated[
        float, typer.Option(help="Seconds of one inference unit that each megapixel of an image takes in addition.")
    ] = 0.0,
    account_tps: Annotated[float, typer.Option(help="DetectCustomLabels calls per second of the account.")] = 50.0,
    control_tps: Annotated[float, typer.Option(help="Calls per second of each other operation.")] = 5.0,
    start_seconds: Annotated[float, typer.Option(help="Duration of STARTING.")] = 0.5,
    stop_seconds: Annotated[float, typer.Option(help="Duration of STOPPING.")] = 0.2,
    train_seconds: Annotated[float, typer.Option(help="Shortest duration of a training.")] = 0.5,
    copy_seconds: Annotated[float, typer.Option(help="Duration of copying a model.")] = 0.2,
    dataset_seconds: Annotated[float, typer.Option(help="Duration of creating or changing a dataset.")] = 0.1,
    delete_seconds: Annotated[float, typer.Option(help="Duration of a deletion.")] = 0.2,
    scale_seconds: Annotated[float, typer.Option(help="Interval at which auto-scaling adds or removes a unit.")] = 60.0,
    latency_ms: Annotated[float, typer.Option(help="Median latency added to each accepted image.")] = 0.0,
    latency_p99_ms: Annotated[
        float, typer.Option(help="99th percentile of the added latency; 0: always the median.")
    ] = 0.0,
    cached_inference: Annotated[bool, typer.Option(help="Cache results by image bytes, for load tests.")] = False,
    faults: Annotated[Path | None, typer.Option(help="TOML or JSON file of faults to inject.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of training.")] = 0,
    exit_with_parent: Annotated[bool, typer.Option(help="Exit when the parent process exits.")] = False,
) -> None:
    """Run a local Custom Labels service that trains and runs real models.

    Prints one JSON line with its endpoint to stdout when it is ready, and exits on SIGTERM or ^C. Accepted credentials:
    emulator / emulator, those in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and those in
    BATCHCL_EMULATOR_CREDENTIALS (comma-separated ID:SECRET or ID:SECRET:ACCOUNT).

    Examples:

      batchcl emulator --buckets ./buckets

      batchcl emulator --port 9999 --state ./models --buckets ./buckets --tps-per-unit 20

      batchcl emulator --s3-endpoint-url http://127.0.0.1:8333

      aws rekognition describe-projects --endpoint-url http://127.0.0.1:9999
    """
    settings = EmulatorSettings(
        host=host,
        port=port,
        state=state,
        buckets=buckets,
        bucket_regions=tuple(bucket_region or ()),
        s3_endpoint_url=s3_endpoint_url,
        tps_per_unit=tps_per_unit,
        seconds_per_megapixel=seconds_per_megapixel,
        account_tps=account_tps,
        control_tps=control_tps,
        start_seconds=start_seconds,
        stop_seconds=stop_seconds,
        train_seconds=train_seconds,
        copy_seconds=copy_seconds,
        dataset_seconds=dataset_seconds,
        delete_seconds=delete_seconds,
        scale_seconds=scale_seconds,
        latency_ms=latency_ms,
        latency_p99_ms=latency_p99_ms,
        cached_inference=cached_inference,
        faults=faults,
        seed=seed,
        exit_with_parent=exit_with_parent,
    )
    require_extra("emulator", "the emulator")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    import anyio as runtime

    runtime.run(_run, settings, os.getppid())


async def _run(settings: EmulatorSettings, parent: int) -> None:
    import anyio

    from batchcl.emulator.server import serve

    until = anyio.Event()
    refusal: BatchclError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_on_signal, until)
        if settings.exit_with_parent:
            tasks.start_soon(_end_with_parent, until, parent)
        try:
            await serve(settings, listening=_announce, until=until, environment=os.environ)
        except BatchclError as error:  # raised here it would come out wrapped in a group
            refusal = error
        tasks.cancel_scope.cancel()
    if refusal is not None:
        raise refusal


def _announce(listening: Listening) -> None:
    import orjson

    line = {
        "endpoint": listening.endpoint,
        "pid": os.getpid(),
        "account": ACCOUNT,
        "state": str(listening.state),
    }
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()


async def _end_on_signal(until: anyio.Event) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            until.set()


async def _end_with_parent(until: anyio.Event, parent: int) -> None:
    import anyio

    while os.getppid() == parent:  # noqa: ASYNC110 - no event reports that the parent has exited
        await anyio.sleep(_PARENT_POLL_S)
    until.set()
