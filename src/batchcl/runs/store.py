"""Storage of an output root: a local directory, an S3 prefix, or memory (in tests), all through obstore.

obstore normalizes paths. That is safe here because batchcl chooses every path below the root; keys of users' images are
never passed to it. Writes are atomic: readers see the whole object or none. When a write returns, the object survives a
power cut. Local files are written below `runs/.staging`, synced to disk and then renamed, so table folders never
contain temporary files.
"""

from __future__ import annotations

import io
import os
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeVar

import anyio.to_thread
import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, MemoryStore, S3Store

from batchcl.choices import Encryption
from batchcl.errors import (
    CredentialsError,
    ErrorCode,
    ExitCode,
    OutputCredentialsError,
    OutputError,
    StoppedError,
    UsageError,
)
from batchcl.runs.layout import RUNS, STAGING, output_root

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3CredentialProvider

    from batchcl.aws.credentials import CredentialCache
    from batchcl.aws.session import Aws
    from batchcl.aws.store_access import StoreAccess

__all__ = ["UNENCRYPTED", "Store", "StoredFile", "open_root"]

T = TypeVar("T")

UNENCRYPTED: Final = Encryption()
"""No encryption headers are sent; S3 applies the bucket's default."""

_READ_AHEAD_BYTES = 1024 * 1024
_PAGE_FILES = 1000
_REQUEST_TIMEOUT = timedelta(seconds=60)
_RETRY_TIMEOUT = timedelta(minutes=3)
_STALE_S = 86_400.0
_ATTEMPTS = 8
_BACKOFF_S = 0.25
_BACKOFF_MAX_S = 20.0
_DEBUG_HEADING = "\n\nDebug source"
_NO_RESPONSE = "HTTP error"
"""The reason in obstore's message if a request got no response: it was not sent, or the response was lost."""

_PREFIX = re.compile(
    r"^(?:.*?Error performing [A-Z]+ https?://\S+ in \S+"
    r"(?: after \d+ retries, max_retries: \d+, retry_timeout: \S+)?\s+- |"
    r"Generic \w+ error: )(?:Server returned non-2xx status code: )?"
)
"""The start of obstore's messages, before the reason: operation, URL, duration and number of retries."""

_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file below the root. `path` is relative to the root; `etag` is None if the store has none."""

    path: str
    size_bytes: int
    etag: str | None = None


class _Attempt(NamedTuple):
    """One attempt at a write, numbered from 0."""

    number: int

    def raise_unless_retryable(self, error: BaseError) -> None:
        """Raise `error` if this was the last attempt or another one can't succeed."""
        if self.number + 1 == _ATTEMPTS or not _is_transient(error):
            raise error


def _is_transient(error: BaseError) -> bool:
    """Whether a write that failed with `error` may succeed when it is repeated.

    obstore doesn't repeat conditional PUTs after connection errors, nor any PUT after 400 RequestTimeout or 409. The
    reason is only in the text of its message, after the URL. The URL can't imitate a reason: a user's prefix in it is
    URL-encoded, so it contains neither " - " nor a tag.
    """
    if isinstance(error, AlreadyExistsError):
        return True
    reason = str(error).partition(" - ")[2]
    code = re.search(r"<Code>(\w+)</Code>", reason)
    return reason.startswith(_NO_RESPONSE) or (code is not None and code[1] in _TRANSIENT_CODES)


class Store:
    """Reads and writes objects below one output root. All methods may raise `OutputError` with the path and the reason.

    Three ways to write: `put_new` creates an object, if there is none; `put_mine` creates it, and fails if another
    process has created it; `put` replaces it.

    S3: if credentials are refused, waits for renewed ones for a limited time, then raises `CredentialsError`.

    Args:
        root: as the user wrote it, normalized; used in messages and URIs.
        backend: obstore's store for the root.
        folder: the directory of a local root.
        blocking: used by synchronous methods instead of `backend`.
        keys: credentials for the requests of both; None if none are needed.
        sleep: waits the given number of seconds between attempts.
    """

    def __init__(
        self,
        root: str,
        backend: ObjectStore,
        *,
        folder: Path | None = None,
        blocking: ObjectStore | None = None,
        keys: CredentialCache | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._sleep = sleep
        self._rng = random.Random()
        self.root = root
        self._backend = backend
        self._blocking = blocking or backend
        self._keys = keys
        self._folder = folder

    @classmethod
    def open(
        cls, root: str, *, aws: Aws | None = None, create: bool = False, encryption: Encryption = UNENCRYPTED
    ) -> Store:
        """Open the store at `root`: a directory, or `s3://bucket/prefix`, which requires `aws`. Blocks.

        Raises:
            UsageError: `root` is invalid (see `output_root`), or `encryption` contradicts the environment.
            OutputError: the directory does not exist, or, with `create`, can't be created.
            CredentialsError: there are no credentials for S3.
            RefusedError: no S3 endpoint could be determined.
        """
        root = output_root(root)
        if not root.startswith("s3://"):
            return _open_folder(Path(root), create=create)
        from batchcl.aws.store_access import find_store_access_blocking

        return _open_s3(root, find_store_access_blocking(_require_aws(aws, root), _bucket_of(root)), encryption)

    @classmethod
    async def open_async(
        cls, root: str, *, aws: Aws | None = None, create: bool = False, encryption: Encryption = UNENCRYPTED
    ) -> Store:
        """Asynchronous, cancellable version of `open`."""
        root = output_root(root)
        if not root.startswith("s3://"):
            return await anyio.to_thread.run_sync(partial(_open_folder, Path(root), create=create))
        from batchcl.aws.store_access import find_store_access

        return _open_s3(root, await find_store_access(_require_aws(aws, root), _bucket_of(root)), encryption)

    @classmethod
    def memory(cls) -> Store:
        """A store in memory, for tests."""
        return cls("memory", MemoryStore())

    @property
    def is_s3(self) -> bool:
        """Whether the root is in S3."""
        return self.root.startswith("s3://")

    def uri(self, path: str) -> str:
        """`path` in the form that users and other tools can open."""
        return f"{self.root}/{path}" if path else self.root

    async def put(self, path: str, data: bytes) -> None:
        """Write the object, replacing an existing one. Never used below `results/` and `failures/`."""
        with _translate_errors("writing", self.uri(path)):
            if self._folder is not None:
                await self._rename(await self._stage(data, self._folder), path, self._folder, overwrite=True)
                return
            async for attempt in self._attempts():
                try:
                    await self._signed(lambda: obstore.put_async(self._backend, path, data, use_multipart=False))
                except (GenericError, AlreadyExistsError) as error:
                    attempt.raise_unless_retryable(error)
                else:
                    return

    async def put_new(self, path: str, data: bytes) -> bool:
        """Create the object; returns False if it exists already. Exactly one of several concurrent callers gets True.

        In S3 by a conditional write (`If-None-Match: *`), locally by a rename that does not overwrite.

        If the response to an attempt was lost, the stored object is compared with `data`. So `data` must identify its
        writer, or be the same for all writers.
        """
        with _translate_errors("creating", self.uri(path)):
            if self._folder is not None:
                return await self._create_file(path, data, self._folder)
            async for attempt in self._attempts():
                try:
                    await self._signed(
                        lambda: obstore.put_async(self._backend, path, data, mode="create", use_multipart=False)
                    )
                except AlreadyExistsError as error:
                    stored = await self._get(path)
                    if stored is not None:
                        return attempt.number > 0 and stored == data
                    attempt.raise_unless_retryable(error)  # a conflict with a write that failed
                except GenericError as error:
                    attempt.raise_unless_retryable(error)
                else:
                    return True
            raise AssertionError  # unreachable: the last attempt returns or raises

    async def _create_file(self, path: str, data: bytes, folder: Path) -> bool:
        if await anyio.to_thread.run_sync((folder / path).exists):
            # its writer may have died before it synced the name
            await anyio.to_thread.run_sync(_fsync_names, folder / path, folder)
            return False
        try:
            await self._rename(await self._stage(data, folder), path, folder, overwrite=False)
        except AlreadyExistsError:
            return False
        return True

    async def _signed(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation`; repeat it with renewed credentials if S3 refuses those that it was signed with.

        All asynchronous requests to S3 are sent by this method.
        """
        keys = self._keys
        if keys is None:
            return await operation()

        async def attempt() -> T:
            used = await keys.current()
            try:
                result = await operation()
            except (PermissionDeniedError, UnauthenticatedError, GenericError) as error:
                if (reason := _credentials_reason(error)) is None:
                    raise
                await keys.renew(used)
                if expired := keys.refused("s3", reason):
                    raise expired from error
                raise
            keys.accepted("s3")
            return result

        return await keys.retry_while_failing(attempt)

    async def _attempts(self) -> AsyncIterator[_Attempt]:
        """Attempts at a write, with full jitter between them. obstore itself retries after 5xx responses."""
        for number in range(_ATTEMPTS):
            yield _Attempt(number)
            await self._sleep(self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**number)))

    async def _stage(self, data: bytes, folder: Path) -> str:
        """Write a temporary file and sync its content to disk; returns its path."""
        staged = f"{STAGING}/{secrets.token_hex(8)}"
        await obstore.put_async(self._backend, staged, data, use_multipart=False)
        await anyio.to_thread.run_sync(_fsync, folder / staged)
        return staged

    async def _rename(self, staged: str, path: str, folder: Path, *, overwrite: bool) -> None:
        try:
            await obstore.rename_async(self._backend, staged, path, overwrite=overwrite)
        except BaseError:
            await obstore.delete_async(self._backend, staged)
            raise
        await anyio.to_thread.run_sync(_fsync_names, folder / path, folder)

    async def put_exclusive(self, path: str, data: bytes, *, what: str) -> None:
        """Create an object that only one process may create; creating it again with the same `data` is fine.

        A retry after a lost response finds its own object, so the content is compared: `data` must identify its writer,
        or be the same for all writers.

        Raises:
            StoppedError: another process has created it, with other content; `what` describes it in the message.
        """
        if await self.put_new(path, data):
            return
        if await self.get(path) != data:
            raise StoppedError(
                f"this process stops: another process is working on the same run and has written {what} "
                f"({self.uri(path)}); wait until that one has ended",
                code=ErrorCode.RUN_TAKEN_OVER,
            )
        if self._folder is not None:
            with _translate_errors("writing", self.uri(path)):  # an earlier attempt may have failed to sync the name
                await anyio.to_thread.run_sync(_fsync_names, self._folder / path, self._folder)

    async def get(self, path: str) -> bytes | None:
        """The object's bytes, or None if it doesn't exist."""
        with _translate_errors("reading", self.uri(path)):
            return await self._get(path)

    async def _get(self, path: str) -> bytes | None:
        try:
            response = await self._signed(lambda: obstore.get_async(self._backend, path))
            return bytes(await response.bytes_async())
        except FileNotFoundError:
            return None

    async def exists(self, path: str) -> bool:
        """Whether the object exists."""
        with _translate_errors("looking for", self.uri(path)):
            try:
                # not HEAD: the response to a refused HEAD has no body with the reason
                await self._signed(lambda: obstore.get_async(self._backend, path))
            except FileNotFoundError:
                return False
            return True

    async def delete(self, path: str) -> None:
        """Delete the object if it exists."""
        with _translate_errors("deleting", self.uri(path)):
            try:
                await self._signed(lambda: obstore.delete_async(self._backend, path))
            except FileNotFoundError:
                return

    async def list_all(self, prefix: str) -> list[StoredFile]:
        """All files below `prefix`, sorted by path, except those whose name begins with a dot."""

        async def list_pages() -> list[StoredFile]:
            pages = obstore.list(self._backend, prefix, chunk_size=_PAGE_FILES)
            return [file async for page in pages for file in _files(page)]

        with _translate_errors("listing", self.uri(prefix)):
            files = await self._signed(list_pages)
        return sorted(files, key=lambda file: file.path)

    def open_file(self, path: str, *, size_bytes: int | None = None) -> BinaryIO:
        """Open the object as a seekable file that fetches only the ranges that are read. Blocks; for worker threads.

        `size_bytes` saves a request if the caller knows the size.
        """
        if size_bytes is None:
            with _translate_errors("reading", self.uri(path)):
                size_bytes = obstore.head(self._blocking, path)["size"]
        return io.BufferedReader(_RemoteFile(self._blocking, path, size_bytes, self.uri(path)), _READ_AHEAD_BYTES)

    def list_sync(self, prefix: str) -> list[StoredFile]:
        """Synchronous version of `list_all`."""
        with _translate_errors("listing", self.uri(prefix)):
            files = [file for page in obstore.list(self._blocking, prefix) for file in _files(page)]
        return sorted(files, key=lambda file: file.path)

    async def children(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, sorted, except those that begin with a dot."""
        with _translate_errors("listing", self.uri(prefix)):
            response = await self._signed(lambda: obstore.list_with_delimiter_async(self._backend, prefix))
        names = (folder.rstrip("/").rsplit("/", 1)[-1] for folder in response["common_prefixes"])
        return sorted(name for name in names if not name.startswith("."))

    async def check_writable(self, *, single_writer: bool = False) -> None:
        """Create and delete a small object, so that missing access is reported before the first call.

        Raises:
            OutputError: the object can't be written; or, unless `single_writer`, the store accepts a second creation,
                so two processes could write the same run.
        """
        probe = f"{RUNS}/.probe-{os.getpid()}-{os.urandom(4).hex()}"
        await self.put_new(probe, b"1")
        is_exclusive = not await self.put_new(probe, b"2")
        await self.delete(probe)
        if self._folder is not None:
            await anyio.to_thread.run_sync(_clean_staging, self._folder / STAGING)
        if not is_exclusive and not single_writer:
            raise OutputError(
                f"the output root {self.root} was refused: its storage doesn't support conditional writes, so two "
                "processes could score images twice; use another root, or pass --single-writer if no other process "
                "writes to it",
                code=ErrorCode.NO_CONDITIONAL_WRITES,
            )


def _files(page: Iterable[Any]) -> Iterator[StoredFile]:
    """The files of a page of a listing, except hidden ones, which desktop systems create."""
    for entry in page:
        if not entry["path"].rpartition("/")[2].startswith("."):
            yield StoredFile(entry["path"], entry["size"], entry["e_tag"])


def _clean_staging(staging: Path) -> None:
    """Delete files that killed processes have left in the staging folder, and the folder if it is empty."""
    with suppress(OSError):  # another process may be using it
        for staged in staging.iterdir():
            if time.time() - staged.stat().st_mtime > _STALE_S:
                staged.unlink(missing_ok=True)
        staging.rmdir()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_names(file: Path, root: Path) -> None:
    """Sync the name of `file` to disk, in each folder up to `root`."""
    for folder in file.parents:
        _fsync(folder)
        if folder == root:
            break


def open_root(
    root: str,
    *,
    profile: str | None = None,
    region: str | None = None,
    create: bool = False,
    encryption: Encryption = UNENCRYPTED,
) -> Store:
    """Like `Store.open`, for S3 with the credentials that the AWS CLI would use."""
    aws = None
    if root.startswith("s3://"):
        from batchcl.aws.session import Aws as Session

        aws = Session.from_environment(profile=profile, region=region)
    return Store.open(root, aws=aws, create=create, encryption=encryption)


class _RemoteFile(io.RawIOBase):
    """An object of a known size with the methods of Python's file protocol that pyarrow calls."""

    def __init__(self, backend: ObjectStore, path: str, size_bytes: int, uri: str) -> None:
        self._backend = backend
        self._path = path
        self._size_bytes = size_bytes
        self._uri = uri
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size_bytes}[whence] + offset
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size_bytes - self._offset)
        if length <= 0:
            return 0
        with _translate_errors("reading", self._uri):
            data = memoryview(obstore.get_range(self._backend, self._path, start=self._offset, length=length))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _open_folder(path: Path, *, create: bool) -> Store:
    with _translate_errors("opening the output root", str(path)):
        exists, is_folder = path.exists(), path.is_dir()
    if exists and not is_folder:
        raise OutputError(
            f"opening the output root {path} failed: it is a file; pass a directory", code=ErrorCode.NOT_AN_OUTPUT_ROOT
        )
    if not create and not is_folder:
        raise OutputError(
            f"opening the output root {path} failed: it does not exist; check the path, or create it with "
            "`batchcl run`",
            code=ErrorCode.NOT_AN_OUTPUT_ROOT,
        )
    with _translate_errors("creating the output root", str(path)):
        path.mkdir(parents=True, exist_ok=True)
    return Store(str(path), LocalStore(str(path)), folder=path)


def _bucket_of(root: str) -> str:
    return root.removeprefix("s3://").partition("/")[0]


def _require_aws(aws: Aws | None, root: str) -> Aws:
    if aws is None:
        raise UsageError(f"opening {root} failed: an output root in S3 requires an AWS session; pass `aws`")
    return aws


def _open_s3(root: str, access: StoreAccess, encryption: Encryption) -> Store:
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    config = access.store_config() | encryption.store_config()

    def backend(provide: S3CredentialProvider) -> S3Store:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,  # type: ignore[arg-type]
            credential_provider=provide,
            client_options={"allow_http": access.allows_http, "timeout": _REQUEST_TIMEOUT},
            retry_config={"retry_timeout": _RETRY_TIMEOUT},
        )

    with _translate_errors("opening the output root", root):
        return Store(
            root,
            backend(access.provide),
            blocking=backend(access.provide_blocking),  # an asynchronous provider requires a loop in the calling thread
            keys=access.credentials,
        )


@contextmanager
def _translate_errors(doing: str, what: str) -> Iterator[None]:
    """Translate obstore's errors and OSErrors in the block to `OutputError`: "<doing> <what> failed: <reason>"."""
    try:
        yield
    except CredentialsError as error:
        has_lasted = error.exit_code is ExitCode.STOPPED
        raise OutputCredentialsError(
            f"{doing} {what} failed: {error}", code=error.code, has_lasted=has_lasted
        ) from error
    except (BaseError, OSError) as error:
        message, document = _split_message(error)
        _, _, provider_error = message.partition("credential provider: CredentialsError: ")
        if provider_error:
            raise OutputCredentialsError(f"{doing} {what} failed: {provider_error}") from error
        if (reason := _credentials_reason(error)) is not None:
            raise OutputCredentialsError(
                f"{doing} {what} failed: {reason}; check the profile and its keys, or log in again",
                code=ErrorCode.INVALID_CREDENTIALS,
            ) from error
        if message.startswith(_NO_RESPONSE):
            raise OutputError(
                f"{doing} {what} failed: {_connection_reason(error)}; check the endpoint, the proxy and the network",
                code=ErrorCode.SERVICE_UNREACHABLE,
            ) from error
        service_code, _ = details = _code_and_message(document)
        reason = ": ".join(filter(None, [message, *details]))
        raise OutputError(
            f"{doing} {what} failed: {reason}; check that it exists and is writable",
            code=ErrorCode.ACCESS_DENIED if service_code == "AccessDenied" else None,
        ) from error


def _split_message(error: Exception) -> tuple[str, str]:
    """The message of obstore's error without debug output, URL, durations and retry counts; and S3's XML document."""
    text = str(error).split(_DEBUG_HEADING, 1)[0].strip().replace("\n", " ")
    message, _, document = _PREFIX.sub("", text, count=1).partition(": <")
    return message.removesuffix(":"), document


def _connection_reason(error: Exception) -> str:
    """Why a request got no response. The reason is only in obstore's debug output."""
    details = str(error).partition(_DEBUG_HEADING)[2]
    if "kind: Timeout" in details:
        return "no response in time"
    match = re.search(r'(?:message|error): "([^"]+)"', details)
    return f"the connection failed: {match[1]}" if match else "the connection failed"


def _code_and_message(document: str) -> tuple[str, str]:
    """Code and message in S3's error document; empty if there is none."""
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", f"<{document}") for tag in ("Code", "Message"))
    return code[1] if code else "", message[1] if message else ""


def _credentials_reason(error: Exception) -> str | None:
    """S3's code and message if it refuses the credentials of a request; None for other errors."""
    code, message = _code_and_message(_split_message(error)[1])
    if not code:
        return None
    from batchcl.aws.errors import is_keys_error

    return f"{code}: {message}" if is_keys_error(code, message) else None
