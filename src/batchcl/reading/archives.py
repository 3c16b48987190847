"""Images in tar archives, on this machine or in S3, plain or gzip: read from where the list found them."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from typing import Any, Final

import anyio
import anyio.to_thread
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from batchcl.aws.errors import NO_CREDENTIALS
from batchcl.aws.session import Aws
from batchcl.errors import CallError, FatalCallError, HostError, ImageError
from batchcl.images import ImageRef
from batchcl.reading.blobs import Blob, ChangedError, FileBlob, ObjectBlob
from batchcl.reading.gunzip import CutError, GrowsError, Gunzipped, is_gzip
from batchcl.reading.objects import refused

__all__ = ["ArchiveReader", "content_of"]

_OPEN_ARCHIVES: Final = 4
"""A gzip archive that is open takes some 20 MB; images come in the archives' order."""

_THREADS: Final = 16

_DEADLINE_S: Final = 15 * 60.0
"""From an image's turn on: all that lies before it may have to be decompressed. S3's client has its own for a read."""


class ArchiveReader:
    """Reads archives' members. See `ImageReader`.

    A member of a plain archive costs one read of its bytes. Of a gzip archive everything up to it is decompressed,
    once, if the images are asked for in about the archive's order.
    """

    def __init__(self, aws: Aws, *, region: str) -> None:
        self._aws = aws
        self._region = region
        self._clients: dict[str, Any] = {}
        self._contents: OrderedDict[tuple[object, ...], Blob] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = anyio.Semaphore(_THREADS)
        self._limiter = anyio.CapacityLimiter(_THREADS)

    def carries(self, image: ImageRef) -> bool:
        """Members of archives do."""
        return image.member is not None

    def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            client.close()

    async def read(self, image: ImageRef) -> bytes:
        """The member's bytes."""
        try:
            async with self._turns:
                with anyio.fail_after(_DEADLINE_S):
                    return await anyio.to_thread.run_sync(
                        self._read, image, abandon_on_cancel=True, limiter=self._limiter
                    )
        except TimeoutError as error:
            raise HostError(f"the archive couldn't be read within {_DEADLINE_S:.0f} s", code="Timeout") from error
        except ChangedError as error:
            raise ImageError(str(error), code="ArchiveChanged") from error
        except (CutError, GrowsError, zlib.error) as error:
            raise ImageError(f"the archive can't be read: {error}", code="UnreadableArchive") from error
        except OSError as error:
            raise ImageError(f"the archive can't be read: {error.strerror}", code="UnreadableFile") from error
        except (ClientError, BotoCoreError) as error:
            raise _from_s3(error) from error

    def _read(self, image: ImageRef) -> bytes:
        assert image.member is not None
        size = image.size_bytes or 0
        data = self._content(image).read(image.member.offset, size)
        if len(data) < size:
            raise CutError(f"it ends {size - len(data):,} bytes before the image does")
        return data

    def _content(self, image: ImageRef) -> Blob:
        assert image.member is not None
        key = (image.bucket, image.member.archive, image.version_id, image.etag, image.last_modified)
        with self._lock:  # also while it is opened, as all that wait want the same one
            content = self._contents.get(key)
            if content is None:
                content = self._contents[key] = content_of(self._blob(image, image.member.archive))
                while len(self._contents) > _OPEN_ARCHIVES:
                    self._contents.popitem(last=False)
            self._contents.move_to_end(key)
            return content

    def _blob(self, image: ImageRef, archive: str) -> Blob:
        if not image.bucket:
            return FileBlob(archive, last_modified=image.last_modified)
        region = image.region or self._region
        if region not in self._clients:
            self._clients[region] = self._aws.blocking_s3(region=region)
        return ObjectBlob(
            self._clients[region], bucket=image.bucket, key=archive, etag=image.etag, version_id=image.version_id
        )


def content_of(blob: Blob) -> Blob:
    """What `blob` holds, decompressed if it is a gzip file. Blocks."""
    return Gunzipped(blob) if is_gzip(blob.read(0, 2)) else blob


def _from_s3(error: ClientError | BotoCoreError) -> CallError:
    """S3's refusal of an archive, as that of the image in it."""
    if isinstance(error, ClientError):
        return refused(error, what="archive")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return FatalCallError(NO_CREDENTIALS, code="Credentials")
    return HostError(f"S3 didn't give the archive: {error}", code="S3Unreachable")
