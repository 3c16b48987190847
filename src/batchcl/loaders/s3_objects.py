"""Images in S3, where this machine needs the bytes rather than the service."""

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
    """Reads S3 objects with an open client that retries by itself. See `ImageReader`."""

    def __init__(self, client: Any, *, most_bytes: int = MAX_BYTES_FITTABLE) -> None:
        self._client = client
        self._most_bytes = most_bytes

    def carries(self, image: ImageRef) -> bool:
        """Whatever lies in a bucket."""
        return bool(image.bucket)

    async def read(self, image: ImageRef) -> bytes:
        """The object's bytes, of the version that the list named; at most so many as the reader was made for.

        Of an archive's member those are a range of the archive, as long as that has the entity tag that it was listed
        with.
        """
        try:
            with anyio.fail_after(_DEADLINE_S):
                answer = await self._client.get_object(**_named(image))
                data = await self._bounded(answer["Body"], answer.get("ContentLength", 0))
                return data if image.member is None else whole_member(image, data)
        except ClientError as error:
            raise _refused(error, image) from error
        except CredentialsError as error:
            raise call_error(error) from error
        except TimeoutError as error:
            raise HostError(f"S3 didn't give the object within {_DEADLINE_S:.0f} s", code="Timeout") from error
        except (BotoCoreError, aiohttp.ClientError, OSError) as error:
            if is_shortage(error):
                raise shortage(error) from error
            raise HostError(f"S3 didn't give the object: {error}", code="S3Unreachable") from error

    async def _bounded(self, body: Any, size: int) -> bytes:
        """The whole body, unless it is or grows too large."""
        chunks: list[bytes] = []
        got = 0
        try:
            while size <= self._most_bytes and (chunk := await body.read(_CHUNK_BYTES)):
                chunks.append(chunk)
                got += len(chunk)
                size = max(size, got)
        finally:
            body.close()
        if size > self._most_bytes:
            raise self._too_large(size)
        return b"".join(chunks)

    def _too_large(self, size: int) -> ImageError:
        return ImageError(f"{size:,} bytes, and objects of up to {self._most_bytes:,} are read", code="TooLarge")


@asynccontextmanager
async def open_object_reader(aws: Aws, *, region: str) -> AsyncIterator[ObjectReader]:
    """A reader of the region's buckets, whose connections are closed at the end of the block."""
    async with aws.s3(region=region) as client:
        yield ObjectReader(client)


def _named(image: ImageRef) -> dict[str, str]:
    """The arguments of GetObject."""
    named = {"Bucket": image.bucket, "Key": image.key}
    if image.member is not None:
        begin = image.member.offset
        named |= {"Key": image.member.archive, "Range": f"bytes={begin}-{begin + (image.size_bytes or 0) - 1}"}
        if image.etag is not None:
            named["IfMatch"] = f'"{image.etag}"'
    if image.version_id is not None:
        named["VersionId"] = image.version_id
    return named


def _refused(error: ClientError, image: ImageRef) -> CallError:
    """What S3's refusal to give an object means for the image that it is, or lies in."""
    what = "object" if image.member is None else "archive"
    code = error_code(error)
    if image.member is not None and code in _CHANGED:
        return changed_archive(f"s3://{image.bucket}/{image.member.archive}")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = error_message(error) or code
    if code in _GONE:
        return RejectedError(f"S3 has no such {what}: {said}", code=INVALID_S3_OBJECT)
    if code in S3_DENIED:
        return RejectedError(f"S3 denies access to the {what}; allow s3:GetObject on it", code=INVALID_S3_OBJECT)
    if status >= _SERVER_ERROR or code in {"SlowDown", "RequestTimeout"}:
        return HostError(f"S3 didn't give the {what}: {said}", code=code, status=status)
    return RejectedError(f"S3 doesn't give the {what}: {code}: {said}", code=INVALID_S3_OBJECT)
