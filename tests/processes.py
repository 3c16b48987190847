"""`batchcl` processes of tests, most of them forked from a server that has the imports done.

`Batchcl` is a `subprocess.Popen` of `python -m batchcl`. Such a process spends a second of processor time on imports,
and the suite starts hundreds. On Linux, `Batchcl` therefore asks a server to fork. The server is a process without
Python threads; each process of the tests starts one when it first needs it. The forked process sets environment,
working directory, streams, session and signals as they are after an exec, and calls `batchcl.__main__.main`. It has its
own pid and is a child of the tests' process: it is signalled, killed and awaited like any other. The server ends with
the process of the tests, however that ends.

Tests of what happens before `main` start `python -m batchcl` without `Batchcl`: streams that are closed at the start,
limits, imports, memory. A variable in `env` that is read at that time, such as PYTHONIOENCODING, makes `Batchcl` an
ordinary process by itself.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, Final

import botocore.hooks
import botocore.session
from botocore.loaders import Loader

_READ_AT_START: Final = ("LANG", "LC_", "LD_", "MALLOC_", "OMP_", "OPENBLAS_", "OPENSSL_", "POLARS_", "PYTHON")
"""Prefixes of environment variables that the interpreter and libraries read before `main`."""

_NO_THREADS: Final = dict.fromkeys(("_RJEM_MALLOC_CONF", "JE_ARROW_MALLOC_CONF"), "background_thread:false")
"""Environment variables of polars' and pyarrow's allocators, which have threads otherwise."""

_SERVICES: Final = ("rekognition", "s3", "sts")
_PR_SET_CHILD_SUBREAPER: Final = 36
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class Batchcl(subprocess.Popen[bytes]):
    """A process that runs `batchcl WORDS`. No signal is ignored, even if the tests run in the background or `nohup`."""

    def __init__(self, *words: object, env: Mapping[str, str], **settings: Any) -> None:
        command = [sys.executable, "-m", "batchcl", *map(str, words)]
        super().__init__(command, env=dict(env), preexec_fn=_reset_signals, **settings)

    def _execute_child(self, *given: Any) -> None:
        """What `Popen` calls to fork and exec."""
        args, _, _, _, _, cwd, env, *_, new_session, group = given
        stdin, _, _, stdout, _, stderr = pipes = given[10:16]
        if sys.platform != "linux" or _read_at_start(env) != _read_at_start(os.environ):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        request = (args[3:], env, os.fspath(cwd or os.getcwd()), new_session, group)
        self.pid = _server().fork(pickle.dumps(request), [stdin, stdout, stderr])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _reset_signals() -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_START)}


class _Server:
    """The server, as the process of the tests sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())],
                env=os.environ | _NO_THREADS,
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )

    def fork(self, request: bytes, streams: list[int]) -> int:
        """The id of a new child of this process; -1 among `streams` is the stream of this process."""
        own = [number if each == -1 else each for number, each in enumerate(streams)]
        with self._lock, _adopting():
            socket.send_fds(self._connection, [request], own)
            pid = self._connection.recv(20)
        assert pid, "the process did not start; the reason is on stderr"
        return int(pid)

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


@cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


@contextmanager
def _adopting() -> Iterator[None]:
    """During the block, a process whose parent ends becomes a child of this process, if it descends from it."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


_data_files: dict[Any, Any] = {}


def cached_loader(_paths: str | None) -> Loader:
    """Replaces `botocore.session.create_loader`: all sessions of a process share the data files that were read."""
    loader = Loader()
    loader._cache = _data_files  # Loader ignores its argument `cache`
    return loader


def accepts_kwargs(handler: Callable[..., Any]) -> bool:
    """Replaces `botocore.hooks.accepts_kwargs`, which takes most of the time to open a session: it is called 120 times.

    As inspect's `getfullargspec`, it says nothing of what a decorated handler wraps.
    """
    code = getattr(handler, "__code__", None)
    if code is None:
        return inspect.getfullargspec(handler).varkw is not None
    return bool(code.co_flags & inspect.CO_VARKEYWORDS)


def _serve(connection: socket.socket) -> None:
    """Fork for each request, until the other side is closed."""
    for number in _SIGNALS:  # of a terminal: what they mean is up to the tests
        signal.signal(number, signal.SIG_IGN)
    _import_all()
    gc.collect()
    gc.freeze()
    while True:
        request, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not request:
            return
        connection.send(_fork(request, streams))
        for each in streams:
            os.close(each)


def _import_all() -> None:
    """Import what commands import, and read botocore's data files."""
    import batchcl

    for module in walk_packages(batchcl.__path__, "batchcl."):
        if module.name != "batchcl.airflow":
            import_module(module.name)
    botocore.session.create_loader = cached_loader
    botocore.hooks.accepts_kwargs = accepts_kwargs
    session = botocore.session.Session()
    for name in _SERVICES:
        session.create_client(name, "us-east-1", aws_access_key_id="-", aws_secret_access_key="-")


def _fork(request: bytes, streams: list[int]) -> bytes:
    """Fork twice; the second process becomes a child of the tests' process when the first one ends. Returns its id."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, about a thread that polars starts when it is imported
        child = os.fork()
    if not child:
        try:
            if not os.fork():
                _run(request, streams, writer)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as file:
        return file.read()


def _run(request: bytes, streams: list[int], writer: int) -> None:
    words, env, cwd, new_session, group = pickle.loads(request)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    if new_session:
        os.setsid()
    if group != -1:
        os.setpgid(0, group)
    for each in _SIGNALS:
        signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)
    for number, mode, buffering, name in ((0, "r", -1, "stdin"), (1, "w", -1, "stdout"), (2, "w", 1, "stderr")):
        os.dup2(streams[number], number)
        old = getattr(sys, name)
        new = open(number, mode, buffering, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
    os.write(writer, str(os.getpid()).encode())
    os.closerange(3, 1 << 16)

    from batchcl import __main__

    sys.argv = [__main__.__file__, *words]
    sys.path[0] = cwd
    __main__.main()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
