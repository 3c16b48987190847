"""The buckets that the emulator reads images and manifests from, and writes training results to."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.to_thread

from batchcl.emulator.errors import ApiError, invalid_parameter, invalid_s3_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AsyncExitStack
    from pathlib import Path

__all__ = ["DirectoryObjectStore", "NoObjectStore", "ObjectStore", "S3ObjectStore"]

_BUCKET: Final = re.compile(r"[0-9A-Za-z._-]{3,255}")


class ObjectStore(Protocol):
    """The part of S3 that Custom Labels uses."""

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """All bytes of an object, or the first `limit_bytes` + 1 if it is larger.

        Raises:
            ApiError: InvalidS3ObjectException if it can't be read, for whatever reason.
        """
        ...

    async def region(self, bucket: str) -> str | None:
        """The bucket's region; None if unknown."""
        ...

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """Write an object.

        Raises:
            ApiError: InvalidS3ObjectException if the bucket can't be written.
        """
        ...


class NoObjectStore:
    """For an emulator with neither --buckets nor --s3-endpoint-url: no object exists."""

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """Raises InvalidS3ObjectException."""
        raise invalid_s3_object()

    async def region(self, bucket: str) -> str | None:
        """Unknown."""
        return None

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """Raises InvalidS3ObjectException."""
        raise invalid_s3_object()


class DirectoryObjectStore:
    """Each sub-folder of `root` is a bucket, each file in it an object.

    Keys that are not valid as paths (`a//b`, `..`, a trailing `/`) don't exist, nor do files that a symbolic link
    reaches outside the bucket. There are no versions.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    async def read(self, bucket: str, key: str, *, limit_bytes: int, version_id: str | None = None) -> bytes:
        """See `ObjectStore.read`; the only version of a file is `null`."""
        if version_id not in {None, "null"}:
            raise invalid_s3_object()
        return await anyio.to_thread.run_sync(self._read, bucket, key, limit_bytes)

    async def region(self, bucket: str) -> str | None:
        """Folders have no region."""
        return None

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """See `ObjectStore.write`; the file is replaced atomically."""
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
        """The path of an object in an existing bucket, which is certain to be inside its folder."""
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
    """A real S3 service. Create it with `open`, which keeps the client open as long as the emulator runs."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._regions: dict[str, str | None] = {}

    @classmethod
    async def open(cls, endpoint_url: str, stack: AsyncExitStack) -> S3ObjectStore:
        """Connect to `endpoint_url` with the AWS credentials of this process; `stack` closes the client."""
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
        with _as_api_errors():
            response = await self._client.get_object(Bucket=bucket, Key=key, **version)
            body = response["Body"]
            try:
                data: bytes = b""
                while len(data) <= limit_bytes and (more := await body.read(limit_bytes + 1 - len(data))):
                    data += more
                return data
            finally:
                body.close()

    async def region(self, bucket: str) -> str | None:
        """The region in S3's response to HeadBucket, which most error responses contain too. Cached per bucket."""
        from botocore.exceptions import BotoCoreError, ClientError

        if bucket not in self._regions:
            try:
                response = await self._client.head_bucket(Bucket=bucket)
            except ClientError as error:
                response = error.response
            except (BotoCoreError, OSError):
                return None  # `read` will raise the error
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self._regions[bucket] = headers.get("x-amz-bucket-region") or None
        return self._regions[bucket]

    async def write(self, bucket: str, key: str, data: bytes, *, content_type: str) -> None:
        """See `ObjectStore.write`."""
        with _as_api_errors():
            await self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)


@contextmanager
def _as_api_errors() -> Iterator[None]:
    """Raise client errors of S3 as InvalidS3ObjectException, and failures of S3 as InternalServerError."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        server_error = 500
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= server_error:
            raise _s3_failed(str(error)) from error
        raise invalid_s3_object() from error
    except NoCredentialsError as error:
        raise invalid_parameter(
            "The emulator has no AWS credentials to read S3 with. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, in its environment."
        ) from error
    except (BotoCoreError, OSError) as error:
        raise _s3_failed(str(error)) from error


def _s3_failed(reason: str) -> ApiError:
    return ApiError("InternalServerError", f"Reading or writing S3 failed: {reason}", status=500)
