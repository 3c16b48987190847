"""Reads images in S3 that this machine sends to the service as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.credentials import call_error
from batchcl.aws.errors import INVALID_S3_OBJECT, S3_DENIED, error_code, error_message, is_shortage, shortage
from batchcl.aws.session import Aws
from batchcl.errors import CallError, CredentialsError, HostError, ImageError, RejectedError
from batchcl.images import MAX_BYTES_FITTABLE, ImageRef
from batchcl.loaders.base import changed_archive, whole_member

__all__ = ["ObjectReader", "open_object_reader"]

_DEADLINE_S: Final = 120.0
_CHUNK_BYTES: Final = 1024 * 1024
_CHANGED: Final = frozenset({"PreconditionFailed", "412"})
_GONE: Final = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchBucket", "404"})
_SERVER_ERROR: Final = 500


class ObjectReader:
    """Reads S3 objects with an open SDK client, which retries. See `ImageReader`."""

    def __init__(self, client: Any, *, max_bytes: int = MAX_BYTES_FITTABLE) -> None:
        self._client = client
        self._max_bytes = max_bytes

    def accepts(self, image: ImageRef) -> bool:
        """Whether the image is in S3."""
        return bool(image.bucket)

    async def read(self, image: ImageRef) -> bytes:
        """The object's bytes, in the version that the list names.

        For an archive's member it reads a range of the archive; if the archive's entity tag has changed since it was
        listed, the image fails.
        """
        return (await self.read_with_etag(image))[0]

    async def read_with_etag(self, image: ImageRef) -> tuple[bytes, str | None]:
        """As `read`, with the entity tag that the object, or the archive, has now; without quotes."""
        try:
            with anyio.fail_after(_DEADLINE_S):
                response = await self._client.get_object(**_arguments(image))
                data = await self._read_limited(response["Body"], response.get("ContentLength", 0))
                etag = response.get("ETag", "").strip('"') or None
                return data if image.member is None else whole_member(image, data), etag
        except ClientError as error:
            raise _read_error(error, image) from error
        except CredentialsError as error:
            raise call_error(error) from error
        except TimeoutError as error:
            raise HostError(f"reading the object took longer than {_DEADLINE_S:.0f} s", code="Timeout") from error
        except (BotoCoreError, aiohttp.ClientError, OSError) as error:
            if is_shortage(error):
                raise shortage(error) from error
            raise HostError(f"S3 did not return the object: {error}", code="S3Unreachable") from error

    async def _read_limited(self, body: Any, size: int) -> bytes:
        """The whole body; raises `ImageError` if it is larger than the maximum."""
        chunks: list[bytes] = []
        received = 0
        try:
            while size <= self._max_bytes and (chunk := await body.read(_CHUNK_BYTES)):
                chunks.append(chunk)
                received += len(chunk)
                size = max(size, received)
        finally:
            body.close()
        if size > self._max_bytes:
            raise ImageError(
                f"{size:,} bytes; the limit for objects sent as bytes is {self._max_bytes:,}", code="TooLarge"
            )
        return b"".join(chunks)


@asynccontextmanager
async def open_object_reader(aws: Aws, *, region: str) -> AsyncIterator[ObjectReader]:
    """Open a reader of the region's buckets; its connections are closed after the block."""
    async with aws.s3(region=region) as client:
        yield ObjectReader(client)


def _arguments(image: ImageRef) -> dict[str, str]:
    """The arguments of GetObject."""
    arguments = {"Bucket": image.bucket, "Key": image.key}
    if image.member is not None:
        begin = image.member.offset
        arguments |= {"Key": image.member.archive, "Range": f"bytes={begin}-{begin + (image.size_bytes or 0) - 1}"}
        if image.etag is not None:
            arguments["IfMatch"] = f'"{image.etag}"'
    if image.version_id is not None:
        arguments["VersionId"] = image.version_id
    return arguments


def _read_error(error: ClientError, image: ImageRef) -> CallError:
    """The image's error for an error of GetObject."""
    what = "object" if image.member is None else "archive"
    code = error_code(error)
    if image.member is not None and code in _CHANGED:
        return changed_archive(f"s3://{image.bucket}/{image.member.archive}")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = error_message(error) or code
    if code in _GONE:
        return RejectedError(f"S3 has no such {what}: {message}", code=INVALID_S3_OBJECT)
    if code in S3_DENIED:
        return RejectedError(f"S3 denies access to the {what}; allow s3:GetObject on it", code=INVALID_S3_OBJECT)
    if status >= _SERVER_ERROR or code in {"SlowDown", "RequestTimeout"}:
        return HostError(f"S3 did not return the {what}: {message}", code=code, status=status)
    return RejectedError(f"S3 did not return the {what}: {code}: {message}", code=INVALID_S3_OBJECT)
