"""The output root: one store over a local directory, an S3 prefix, or memory (in tests).

batchcl names every path below the root itself, so obstore's normalised paths are safe here; users' keys never pass
through it. A put is atomic: readers see the whole object or none. When a put returns, the object survives a power cut.
A local file is written below `runs/.staging`, forced to the disk and then renamed, so that no folder of the tables ever
shows a temporary name.
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
from batchcl.errors import CredentialsError, ExitCode, OutputCredentialsError, OutputError, StoppedError, UsageError
from batchcl.runs.layout import RUNS, STAGING, output_root

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3CredentialProvider

    from batchcl.aws.credentials import CredentialCache
    from batchcl.aws.session import Aws
    from batchcl.aws.store_access import StoreAccess

__all__ = ["UNENCRYPTED", "Store", "StoredFile", "open_root"]

T = TypeVar("T")

UNENCRYPTED: Final = Encryption()
"""Nothing is asked of S3."""

_READ_AHEAD_BYTES = 1024 * 1024
_PAGE_FILES = 1000
_OP_TIMEOUT = timedelta(seconds=60)
_RETRY_FOR = timedelta(minutes=3)
_STALE_S = 86_400.0
_ATTEMPTS = 8
_BACKOFF_S = 0.25
_BACKOFF_MAX_S = 20.0
_DEBUG = "\n\nDebug source"
_NOT_SENT = "HTTP error"
_NOISE = re.compile(
    r"^(?:.*?Error performing [A-Z]+ https?://\S+ in \S+"
    r"(?: after \d+ retries, max_retries: \d+, retry_timeout: \S+)?\s+- |"
    r"Generic \w+ error: )(?:Server returned non-2xx status code: )?"
)
"""What obstore says before the reason: its own words, the URL, how long and how often it tried."""

_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file below the root: `path` relative to it; `etag` tells its content, None where the store has none."""

    path: str
    size_bytes: int
    etag: str | None = None


class _Attempt(NamedTuple):
    """One attempt at a write, from 0."""

    number: int

    def failed(self, error: BaseError) -> None:
        """Raise `error`, unless another attempt may succeed."""
        if self.number + 1 == _ATTEMPTS or not _may_pass(error):
            raise error


def _may_pass(error: BaseError) -> bool:
    """Whether a write that failed this way may succeed the next time.

    obstore doesn't repeat a conditional PUT whose connection broke, nor any on 400 RequestTimeout or 409. It says which
    it was in words only, behind the URL, in which a user's prefix is URL-encoded: no " - " and no tag can be in it.
    """
    if isinstance(error, AlreadyExistsError):
        return True
    reason = str(error).partition(" - ")[2]
    code = re.search(r"<Code>(\w+)</Code>", reason)
    return reason.startswith(_NOT_SENT) or (code is not None and code[1] in _TRANSIENT_CODES)


class Store:
    """Reads and writes below one output root. Raises `OutputError` with the path and the reason.

    In S3 it waits for credentials that may come back, and raises `CredentialsError` for those that don't.

    Args:
        root: as a user knows it.
        backend: obstore's store for it.
        folder: the directory, of a local root.
        blocking: what synchronous functions use instead of `backend`.
        keys: what signs the requests of both; None where they take care of that.
        sleep: waits so many seconds.
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
        """The store at `root`: a directory, or `s3://bucket/prefix`, which needs `aws`. Blocks.

        Raises:
            UsageError: `root` is neither; see `output_root`. Or `encryption` contradicts the environment.
            OutputError: the directory does not exist, or can't be made with `create`.
            CredentialsError: there are none for S3.
            RefusedError: there is no endpoint of S3's.
        """
        root = output_root(root)
        if not root.startswith("s3://"):
            return _open_folder(Path(root), create=create)
        from batchcl.aws.store_access import find_store_access_now

        return _open_s3(root, find_store_access_now(_needed(aws, root), _bucket_of(root)), encryption)

    @classmethod
    async def open_async(
        cls, root: str, *, aws: Aws | None = None, create: bool = False, encryption: Encryption = UNENCRYPTED
    ) -> Store:
        """`open` for asynchronous callers, which can be cancelled."""
        root = output_root(root)
        if not root.startswith("s3://"):
            return await anyio.to_thread.run_sync(partial(_open_folder, Path(root), create=create))
        from batchcl.aws.store_access import find_store_access

        return _open_s3(root, await find_store_access(_needed(aws, root), _bucket_of(root)), encryption)

    @classmethod
    def memory(cls) -> Store:
        """A store that lives in this process."""
        return cls("memory", MemoryStore())

    @property
    def is_s3(self) -> bool:
        """Whether the root lies in S3."""
        return self.root.startswith("s3://")

    def uri(self, path: str) -> str:
        """`path` as a user or another tool can open it."""
        return f"{self.root}/{path}" if path else self.root

    async def put(self, path: str, data: bytes) -> None:
        """Write the object, replacing an older one. Never used below `results/` and `failures/`."""
        with _explained("writing", self.uri(path)):
            if self._folder is not None:
                await self._rename(await self._stage(data, self._folder), path, self._folder, overwrite=True)
                return
            async for attempt in self._attempts():
                try:
                    await self._signed(lambda: obstore.put_async(self._backend, path, data, use_multipart=False))
                except (GenericError, AlreadyExistsError) as error:
                    attempt.failed(error)
                else:
                    return

    async def put_new(self, path: str, data: bytes) -> bool:
        """Write the object only if none is there; False if one was. Exactly one of several callers gets True.

        Where the answer to an attempt was lost, what is stored then decides: `data` must tell its writer, or be the
        same whoever writes it.
        """
        with _explained("creating", self.uri(path)):
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
                    attempt.failed(error)  # a conflict with another writer, of which nothing came
                except GenericError as error:
                    attempt.failed(error)
                else:
                    return True
            raise AssertionError  # the last attempt raises

    async def _create_file(self, path: str, data: bytes, folder: Path) -> bool:
        if await anyio.to_thread.run_sync((folder / path).exists):
            await anyio.to_thread.run_sync(_fsync_names, folder / path, folder)  # its writer may have died before that
            return False
        try:
            await self._rename(await self._stage(data, folder), path, folder, overwrite=False)
        except AlreadyExistsError:
            return False
        return True

    async def _signed(self, operation: Callable[[], Awaitable[T]]) -> T:
        """What `operation` returns; again with other keys where S3 refuses those that it was signed with."""
        keys = self._keys
        if keys is None:
            return await operation()

        async def attempt() -> T:
            used = await keys.current()
            try:
                found = await operation()
            except (PermissionDeniedError, UnauthenticatedError, GenericError) as error:
                if (said := _keys_error(error)) is None:
                    raise
                await keys.renew(used)
                if lost := keys.refused("s3", said):
                    raise lost from error
                raise
            keys.accepted("s3")
            return found

        return await keys.patiently(attempt)

    async def _attempts(self) -> AsyncIterator[_Attempt]:
        """Attempts at a write, with random pauses between them. obstore itself repeats those that 5xx answers."""
        for number in range(_ATTEMPTS):
            yield _Attempt(number)
            await self._sleep(self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**number)))

    async def _stage(self, data: bytes, folder: Path) -> str:
        """Write a temporary file, and force its content to the disk."""
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

    async def put_mine(self, path: str, data: bytes, *, what: str) -> None:
        """Write the object that only one runner may write.

        A write whose answer was lost looks like somebody else's when it is tried again, so the content decides: `data`
        must tell its writer, or be the same whoever writes it.

        Raises:
            StoppedError: another runner has written `what` there.
        """
        if await self.put_new(path, data):
            return
        if await self.get(path) != data:
            raise StoppedError(
                f"another runner is at work on this run: it has written {what} ({self.uri(path)}); this one stops"
            )
        if self._folder is not None:
            with _explained(
                "writing", self.uri(path)
            ):  # the first attempt may have failed to force the name to the disk
                await anyio.to_thread.run_sync(_fsync_names, self._folder / path, self._folder)

    async def get(self, path: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        with _explained("reading", self.uri(path)):
            return await self._get(path)

    async def _get(self, path: str) -> bytes | None:
        try:
            answer = await self._signed(lambda: obstore.get_async(self._backend, path))
            return bytes(await answer.bytes_async())
        except FileNotFoundError:
            return None

    async def exists(self, path: str) -> bool:
        """Whether the object is there."""
        with _explained("looking for", self.uri(path)):
            try:
                await self._signed(lambda: obstore.get_async(self._backend, path))  # a refused HEAD says no reason
            except FileNotFoundError:
                return False
            return True

    def get_now(self, path: str) -> bytes | None:
        """`get` for synchronous callers."""
        with _explained("reading", self.uri(path)):
            try:
                return bytes(obstore.get(self._blocking, path).bytes())
            except FileNotFoundError:
                return None

    async def delete(self, path: str) -> None:
        """Remove the object; none being there is fine."""
        with _explained("deleting", self.uri(path)):
            try:
                await self._signed(lambda: obstore.delete_async(self._backend, path))
            except FileNotFoundError:
                return

    async def list_all(self, prefix: str) -> list[StoredFile]:
        """All files below `prefix`, sorted by path, without those whose name begins with a dot."""

        async def listed() -> list[StoredFile]:
            pages = obstore.list(self._backend, prefix, chunk_size=_PAGE_FILES)
            return [file async for page in pages for file in _files(page)]

        with _explained("listing", self.uri(prefix)):
            found = await self._signed(listed)
        return sorted(found, key=lambda file: file.path)

    def open_file(self, path: str, *, size_bytes: int | None = None) -> BinaryIO:
        """The object as a seekable file that reads only what is asked for. Blocks; used in worker threads.

        One request less where the caller knows the size.
        """
        if size_bytes is None:
            with _explained("reading", self.uri(path)):
                size_bytes = obstore.head(self._blocking, path)["size"]
        return io.BufferedReader(_Readable(self._blocking, path, size_bytes, self.uri(path)), _READ_AHEAD_BYTES)

    def list_now(self, prefix: str) -> list[StoredFile]:
        """`list_all` for synchronous callers."""
        with _explained("listing", self.uri(prefix)):
            found = [file for page in obstore.list(self._blocking, prefix) for file in _files(page)]
        return sorted(found, key=lambda file: file.path)

    async def children(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, sorted, without those that begin with a dot."""
        with _explained("listing", self.uri(prefix)):
            answer = await self._signed(lambda: obstore.list_with_delimiter_async(self._backend, prefix))
        names = (folder.rstrip("/").rsplit("/", 1)[-1] for folder in answer["common_prefixes"])
        return sorted(name for name in names if not name.startswith("."))

    async def check_writable(self, *, single_writer: bool = False) -> None:
        """Write and remove a small object, so that a root without access is found before a call is spent.

        Raises:
            OutputError: it can't be written; or, unless `single_writer`, a second creation of the object is not
                refused, so that nothing keeps two runners apart.
        """
        probe = f"{RUNS}/.probe-{os.getpid()}-{os.urandom(4).hex()}"
        await self.put_new(probe, b"1")
        exclusive = not await self.put_new(probe, b"2")
        await self.delete(probe)
        if self._folder is not None:
            await anyio.to_thread.run_sync(_tidy, self._folder / STAGING)
        if not exclusive and not single_writer:
            raise OutputError(
                f"{self.root} lies on a store without conditional writes, so two writers could repeat images; make "
                "sure that there is only one and say so with --single-writer, or use another root"
            )


def _files(page: Iterable[Any]) -> Iterator[StoredFile]:
    """Those of a page that batchcl may have written; desktops leave hidden files of their own everywhere."""
    for entry in page:
        if not entry["path"].rpartition("/")[2].startswith("."):
            yield StoredFile(entry["path"], entry["size"], entry["e_tag"])


def _tidy(staging: Path) -> None:
    """Remove what killed processes have left in the staging folder, and the folder when it is empty."""
    with suppress(OSError):  # another process may be at work in it
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
    """Force the name of `file` to the disk, in each folder up to `root`."""
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
    """`Store.open`, for S3 with the credentials that the AWS CLI would use. Raises `CredentialsError` too."""
    aws = None
    if root.startswith("s3://"):
        from batchcl.aws.session import Aws as Session

        aws = Session.from_environment(profile=profile, region=region)
    return Store.open(root, aws=aws, create=create, encryption=encryption)


class _Readable(io.RawIOBase):
    """An object of a known size with the parts of Python's file protocol that pyarrow asks for."""

    def __init__(self, backend: ObjectStore, path: str, size_bytes: int, where: str) -> None:
        self._backend = backend
        self._path = path
        self._size_bytes = size_bytes
        self._where = where
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size_bytes - self._at)
        if length <= 0:
            return 0
        with _explained("reading", self._where):
            data = memoryview(obstore.get_range(self._backend, self._path, start=self._at, length=length))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _open_folder(path: Path, *, create: bool) -> Store:
    with _explained("opening the output root", str(path)):
        is_there, is_folder = path.exists(), path.is_dir()
    if is_there and not is_folder:
        raise OutputError(f"can't use {path} as output root: it is a file; name a directory")
    if not create and not is_folder:
        raise OutputError(f"there is no output root {path}; check the path, or run batchcl run first")
    with _explained("making the output root", str(path)):
        path.mkdir(parents=True, exist_ok=True)
    return Store(str(path), LocalStore(str(path)), folder=path)


def _bucket_of(root: str) -> str:
    return root.removeprefix("s3://").partition("/")[0]


def _needed(aws: Aws | None, root: str) -> Aws:
    if aws is None:
        raise UsageError(f"{root} needs an AWS session")
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
            client_options={"allow_http": access.allows_http, "timeout": _OP_TIMEOUT},
            retry_config={"retry_timeout": _RETRY_FOR},
        )

    with _explained("opening the output root", root):
        return Store(
            root,
            backend(access.provide),
            blocking=backend(access.provide_now),  # an asynchronous one needs a loop that runs in the calling thread
            keys=access.credentials,
        )


@contextmanager
def _explained(doing: str, what: str) -> Iterator[None]:
    """Turn the store's errors into ours, without its debug dump."""
    try:
        yield
    except CredentialsError as error:
        lasted = error.exit_code is ExitCode.STOPPED
        raise OutputCredentialsError(f"{doing} {what} failed: {error}", has_lasted=lasted) from error
    except (BaseError, OSError) as error:
        began, document = _said(error)
        _, _, raised = began.partition("credential provider: CredentialsError: ")
        if raised:
            raise OutputCredentialsError(f"{doing} {what} failed: {raised}") from error
        if (refusal := _keys_error(error)) is not None:
            raise OutputCredentialsError(
                f"{doing} {what} failed: {refusal}; check the profile and its keys, or log in again"
            ) from error
        if began.startswith(_NOT_SENT):
            raise OutputError(
                f"{doing} {what} failed: {_connection_reason(error)}; check the endpoint, the proxy and the network"
            ) from error
        reason = ": ".join(filter(None, [began, *_answer(document)]))
        raise OutputError(f"{doing} {what} failed: {reason}; check that it exists and may be written") from error


def _said(error: Exception) -> tuple[str, str]:
    """What the store says, without its debug dump, URL, durations and retries, and the XML that S3 has answered."""
    text = str(error).split(_DEBUG, 1)[0].strip().replace("\n", " ")
    began, _, document = _NOISE.sub("", text, count=1).partition(": <")
    return began.removesuffix(":"), document


def _connection_reason(error: Exception) -> str:
    """Why a request got no response, which stands in the debug dump alone."""
    details = str(error).partition(_DEBUG)[2]
    if "kind: Timeout" in details:
        return "no response in time"
    found = re.search(r'(?:message|error): "([^"]+)"', details)
    return f"the connection failed: {found[1]}" if found else "the connection failed"


def _answer(document: str) -> tuple[str, str]:
    """Code and message of S3's answer; empty where it has none."""
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", f"<{document}") for tag in ("Code", "Message"))
    return code[1] if code else "", message[1] if message else ""


def _keys_error(error: Exception) -> str | None:
    """What S3 says when it refuses the keys of a request; None where it doesn't."""
    code, message = _answer(_said(error)[1])
    if not code:
        return None
    from batchcl.aws.errors import is_keys_error

    return f"{code}: {message}" if is_keys_error(code, message) else None
