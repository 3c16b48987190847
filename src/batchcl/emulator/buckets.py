"""Where the emulator's S3 objects come from and where training results go."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.to_thread

from batchcl.emulator.errors import ApiError, invalid_s3_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AsyncExitStack
    from pathlib import Path

__all__ = ["DirectoryObjectStore", "NoObjectStore", "ObjectStore", "S3ObjectStore"]

_BUCKET: Final = re.compile(r"[0-9A-Za-z._-]{3,255}")


class ObjectStore(Protocol):
    """S3 as far as Custom Labels needs it."""

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """An object's bytes: all of them, or `limit_bytes` + 1 of an object that is larger.

        Raises:
            ServiceError: InvalidS3ObjectException, the object can't be had, whatever the reason.
        """
        ...

    async def region(self, bucket: str) -> str | None:
        """Where the bucket lies; None if nobody says."""
        ...

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """Put an object.

        Raises:
            ServiceError: InvalidS3ObjectException, the bucket can't be written.
        """
        ...


class NoObjectStore:
    """An emulator that was given neither --buckets nor --s3-endpoint-url: no object can be had."""

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """Refuse."""
        raise invalid_s3_object()

    async def region(self, bucket: str) -> str | None:
        """Nobody knows."""
        return None

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """Refuse."""
        raise invalid_s3_object()


class DirectoryObjectStore:
    """Each sub-folder of `root` is a bucket, each file in it an object.

    Keys that a folder can't hold as they are (`a//b`, `..`, a trailing `/`) don't exist, and neither does anything
    that a symbolic link would reach outside of `root`. There are no versions.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """See `ObjectStore.read`; a file has only the version `null`."""
        if version_id not in {None, "null"}:
            raise invalid_s3_object()
        return await anyio.to_thread.run_sync(self._read, bucket, key, limit_bytes)

    async def region(self, bucket: str) -> str | None:
        """Folders have no region."""
        return None

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """See `ObjectStore.write`; a reader sees the old file or the new one, never a part."""
        await anyio.to_thread.run_sync(self._write, bucket, key, data)

    def _read(self, bucket: str, key: str, limit_bytes: int) -> bytes:
        try:
            with self._path(bucket, key).open("rb") as file:
                return file.read(limit_bytes + 1)
        except (OSError, ValueError):  # ValueError: a NUL in the key
            raise invalid_s3_object() from None

    def _write(self, bucket: str, key: str, data: bytes) -> None:
        try:
            path = self._path(bucket, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.part")
            partial.write_bytes(data)
            partial.replace(path)
        except (OSError, ValueError):
            raise invalid_s3_object() from None

    def _path(self, bucket: str, key: str) -> Path:
        """The file of an object of an existing bucket, surely inside of it."""
        folder = self._root / bucket
        if not _BUCKET.fullmatch(bucket) or set(bucket) == {"."} or not folder.is_dir():
            raise invalid_s3_object()
        if any(part in {"", ".", ".."} for part in key.split("/")):
            raise invalid_s3_object()
        path = (folder / key).resolve()
        if not path.is_relative_to(folder):
            raise invalid_s3_object()
        return path


class S3ObjectStore:
    """A real S3 service. Made by `open`, since its client lives as long as the emulator."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._regions: dict[str, str | None] = {}

    @classmethod
    async def open(cls, endpoint_url: str, stack: AsyncExitStack) -> S3ObjectStore:
        """Connect to `endpoint_url` with the process's ordinary AWS credentials; `stack` closes the client."""
        import aioboto3
        from aiobotocore.config import AioConfig

        from batchcl.aws.session import DirectSession

        session = aioboto3.Session()
        client = session.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=session.region_name or "us-east-1",
            config=AioConfig(
                http_session_cls=DirectSession,
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=64,
                connect_timeout=5,
                read_timeout=60,
            ),
        )
        return cls(await stack.enter_async_context(client))

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """See `ObjectStore.read`."""
        version = {} if version_id is None else {"VersionId": version_id}
        with _as_service_errors():
            answer = await self._client.get_object(Bucket=bucket, Key=key, **version)
            body = answer["Body"]
            try:
                data: bytes = b""
                while len(data) <= limit_bytes and (more := await body.read(limit_bytes + 1 - len(data))):
                    data += more
                return data
            finally:
                body.close()

    async def region(self, bucket: str) -> str | None:
        """The region that S3 names in its answer, which it does for most refusals too. Asked once a bucket."""
        from botocore.exceptions import BotoCoreError, ClientError

        if bucket not in self._regions:
            try:
                answer = await self._client.head_bucket(Bucket=bucket)
            except ClientError as error:
                answer = error.response
            except (BotoCoreError, OSError):
                return None  # reading says what is wrong
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self._regions[bucket] = headers.get("x-amz-bucket-region") or None
        return self._regions[bucket]

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """See `ObjectStore.write`."""
        with _as_service_errors():
            await self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)


@contextmanager
def _as_service_errors() -> Iterator[None]:
    """What S3 refuses is an invalid object; that S3 fails is the service's failure."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        server_error = 500
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= server_error:
            raise _s3_down(str(error)) from error
        raise invalid_s3_object() from error
    except (BotoCoreError, OSError) as error:
        raise _s3_down(str(error)) from error


def _s3_down(why: str) -> ApiError:
    return ApiError("InternalServerError", f"Reading or writing S3 failed: {why}", status=500)
