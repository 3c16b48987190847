"""Starts an emulator in a process of its own for the time of a `with` or `async with` block."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import orjson

from batchcl.emulator.settings import EmulatorSettings
from batchcl.errors import ErrorCode, RefusedError
from batchcl.extras import require_extra

if TYPE_CHECKING:
    from batchcl.aws.session import Aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

__all__ = ["Emulator", "EmulatorContext", "running", "running_emulator"]

_START_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 10.0
_MAX_STDERR_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A running emulator and how to reach it.

    Attributes:
        endpoint_url: for any AWS client, such as `http://127.0.0.1:41234`.
        pid: of its process.
        account: the AWS account that the credentials below belong to.
        state: the folder with its projects, datasets and models.
        model: ARN of the demo model; None unless `running(demo_model=True)` trained it.
        region: where the demo model is. The emulator accepts requests for any region.
        access_key_id: of the built-in credentials.
        secret_access_key: of the built-in credentials.
    """

    endpoint_url: str
    pid: int
    account: str
    state: Path
    model: str | None = None
    region: str = "us-east-1"
    access_key_id: str = "emulator"
    secret_access_key: str = field(default="emulator", repr=False)

    def aws(self, *, profile: str | None = None, region: str | None = None) -> Aws:
        """The session to pass to `batchcl.run` and its like: this emulator for Rekognition, the configured S3."""
        from batchcl.aws.session import Aws, AwsSettings, StaticCredentials

        return Aws(
            AwsSettings(
                profile=profile,
                region=region,
                rekognition_endpoint_url=self.endpoint_url,
                rekognition_credentials=StaticCredentials(self.access_key_id, self.secret_access_key),
                is_emulator=True,
            )
        )

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make boto3, the AWS CLI and batchcl call this emulator instead of AWS.

        S3 is not among them: the emulator is not an S3 service.
        """
        return {
            "AWS_ENDPOINT_URL_REKOGNITION": self.endpoint_url,
            "AWS_ENDPOINT_URL_STS": self.endpoint_url,
            "AWS_ENDPOINT_URL_SERVICE_QUOTAS": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }


def running(settings: EmulatorSettings | None = None, *, demo_model: bool = False) -> EmulatorContext:
    """Run an emulator on a loopback address for the time of a `with` or `async with` block.

    ```python
    with batchcl.emulator.running(demo_model=True) as service:
        client = boto3.client("rekognition", endpoint_url=service.endpoint_url, ...)
        client.start_project_version(ProjectVersionArn=service.model, MinInferenceUnits=1)
    ```

    The block gets an `Emulator`. The emulator's process ends with the block, also if the block is cancelled or
    raises; if this process is killed, it ends within a second.

    Args:
        settings: None for the defaults: a free port, and a state that is deleted at the end.
        demo_model: train a model on handwritten digits before the block starts, which takes a few seconds. It is
            kept in `settings.state`, and not trained again if it is already there. Without `settings.buckets` or
            `settings.s3_endpoint_url`, the emulator reads the demo's images, `s3://digits/test/00000.png` and so on.

    Raises:
        RefusedError: the emulator did not start, or its state folder can't be written.
        UsageError: the packages of the extra `emulator` are not installed.
    """
    return EmulatorContext(settings or EmulatorSettings(), demo_model=demo_model)


class EmulatorContext(AbstractContextManager[Emulator, None], AbstractAsyncContextManager[Emulator, None]):
    """Returned by `running`: a context manager for `with` or `async with`, to be entered once."""

    def __init__(self, settings: EmulatorSettings, *, demo_model: bool) -> None:
        self._context = _running(settings, demo_model=demo_model)
        self._stack = ExitStack()

    async def __aenter__(self) -> Emulator:
        return await self._context.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._context.__aexit__(kind, error, traceback)

    def __enter__(self) -> Emulator:
        from anyio.from_thread import start_blocking_portal

        with ExitStack() as stack:  # an event loop in a thread of its own: the caller's thread may have one already
            portal = stack.enter_context(start_blocking_portal())
            emulator = stack.enter_context(portal.wrap_async_context_manager(self._context))
            self._stack = stack.pop_all()
        return emulator

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


@asynccontextmanager
async def _running(settings: EmulatorSettings, *, demo_model: bool) -> AsyncIterator[Emulator]:
    async with AsyncExitStack() as stack:
        model = None
        if demo_model:
            if settings.state is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchcl-emulator-"))
                settings = replace(settings, state=Path(folder))
            assert settings.state is not None
            require_extra("emulator", "the demo model")
            from batchcl.emulator import demo

            model = await demo.demo_model(settings.state)
            if settings.buckets is None and settings.s3_endpoint_url is None:
                buckets = await anyio.to_thread.run_sync(demo.demo_buckets, settings.state)
                settings = replace(settings, buckets=buckets)
        emulator = await stack.enter_async_context(running_emulator(settings))
        yield replace(emulator, model=model)


@asynccontextmanager
async def running_emulator(
    settings: EmulatorSettings, *, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Emulator]:
    """Run `batchcl emulator` for the time of an `async with` block.

    The process has ended when the block is left, also by cancellation. If this process dies, the emulator ends within
    a second.

    Args:
        settings: of the emulator; `exit_with_parent` is always on.
        environment: of the emulator's process; None for that of this process.

    Raises:
        RefusedError: the process ended before it listened, or did not listen within a minute; with the end of its
            stderr.
    """
    command = [sys.executable, "-m", "batchcl", "emulator", *settings.arguments()]
    if not settings.exit_with_parent:
        command.append("--exit-with-parent")
    with tempfile.TemporaryFile() as stderr:
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # ^C at a terminal reaches the whole group, and a draining run needs the emulator
        )
        try:
            announced: dict[str, Any] = {}
            with anyio.move_on_after(_START_TIMEOUT_S):
                announced = await _first_line(process)
            if not announced:
                size = os.fstat(stderr.fileno()).st_size
                tail = os.pread(stderr.fileno(), _MAX_STDERR_BYTES, max(0, size - _MAX_STDERR_BYTES))
                reason = tail.decode(errors="replace").strip().removeprefix("batchcl: ") or "it printed no reason"
                raise RefusedError(f"starting the emulator failed: {reason}", code=ErrorCode.EMULATOR_FAILED)
            yield Emulator(
                endpoint_url=announced["endpoint"],
                pid=announced["pid"],
                account=announced["account"],
                state=Path(announced["state"]),
            )
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)


async def _first_line(process: anyio.abc.Process) -> dict[str, Any]:
    """The JSON object that the emulator prints once it listens; empty if it ended before."""
    assert process.stdout is not None
    line = b""
    async for part in process.stdout:
        line += part
        if b"\n" in line:
            announced: dict[str, Any] = orjson.loads(line.split(b"\n")[0])
            return announced
    return {}


async def _end(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
    with anyio.move_on_after(_END_TIMEOUT_S) as scope:
        await process.wait()
    if scope.cancelled_caught:
        process.kill()
        await process.wait()
    await process.aclose()
