"""stdout for data and stderr for log lines, and what happens if writing to them fails.

A failing stderr never ends or changes a command. A thread writes it, so that a blocked reader does not block it.
A failing stdout raises `StreamError`, whatever the cause.
"""

from __future__ import annotations

import datetime as dt
import errno
import io
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

from batchcl.errors import BatchclError, ErrorCode, ExitCode

__all__ = [
    "StreamError",
    "can_redraw",
    "install",
    "log",
    "log_as_json",
    "log_bug",
    "printable",
    "set_footer",
    "write_hint",
    "write_line",
]

_MOST_LINES: Final = 1000
_FLUSH_S: Final = 0.5
_STANDARD: Final = (0, 1, 2)

_is_json = False


class StreamError(BatchclError):
    """Writing to stdout failed."""

    code: str = ErrorCode.STDOUT_FAILED
    exit_code = ExitCode.BUG


def install() -> None:
    """Replace `sys.stdout` and `sys.stderr` for the rest of the process."""
    for descriptor in _STANDARD:
        _occupy(descriptor)
    sys.stdout = _Stdout(sys.stdout)
    sys.stderr = _Stderr(sys.stderr)


def log_as_json(wanted: bool) -> None:
    """Set whether every line on stderr is a JSON object, including those that libraries log."""
    global _is_json  # noqa: PLW0603 - one setting of the process, like the streams themselves
    _is_json = wanted
    if wanted:
        logging.basicConfig(handlers=[_JsonHandler()], level=logging.WARNING)
    logging.captureWarnings(wanted)


def printable(text: str) -> str:
    """`text` with control characters escaped: labels and keys may contain them, and a terminal would execute them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\u00a0" else repr(each)[1:-1] for each in text)


def write_line(
    text: str, *, event: str = "message", level: str = "info", fields: Mapping[str, Any] | None = None
) -> None:
    """Write one line about the command to stderr; `fields` are only in JSON."""
    if _is_json:
        log(event, text, level=level, fields=fields)
    else:
        sys.stderr.write(f"batchcl: {printable(text)}\n")
        sys.stderr.flush()


def write_hint(text: str) -> None:
    """Write a line below another one to stderr, unless that is JSON."""
    if not _is_json:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def log(event: str, text: str, *, level: str = "info", fields: Mapping[str, Any] | None = None) -> None:
    """Write one line with the time to stderr: text, or an object with `time`, `level`, `event` and `message`."""
    now = dt.datetime.now(dt.UTC)
    if _is_json:
        import orjson

        values = {"time": now, "level": level, "event": event, "message": text} | dict(fields or {})
        valid = {name: _valid(value) if isinstance(value, str) else value for name, value in values.items()}
        line = orjson.dumps(valid, default=str, option=orjson.OPT_UTC_Z).decode()
    else:
        line = f"{now:%Y-%m-%dT%H:%M:%SZ} {printable(text)}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _valid(text: str) -> str:
    """`text` for JSON: bytes of a file name that are not UTF-8 are escaped."""
    return text.encode(errors="backslashreplace").decode()


def can_redraw() -> bool:
    """Whether stderr is a terminal on which lines can be replaced.

    CI systems that provide a terminal record it as a log, which would show every version of the lines.
    """
    is_ci = os.environ.get("CI", "").lower() not in {"", "0", "false"}
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in {"", "dumb", "unknown"} and not is_ci


def set_footer(text: str) -> None:
    """Show `text` below everything that is written to stderr, instead of the last footer; an empty text removes it.

    stderr must be a terminal; see `can_redraw`. `text` has no line end after its last line, and its lines are narrower
    than the terminal. They may contain colors, but no other escape sequences. The cursor is left at the start of the
    footer: from there it can be removed even if the terminal has wrapped its lines after a resize.
    """
    if isinstance(sys.stderr, _Stderr):
        sys.stderr.set_footer(text)


def log_bug() -> None:
    """Write the traceback of the current exception to stderr."""
    if _is_json:
        text = str(sys.exception()) or type(sys.exception()).__name__
        log("bug", text, level="error", fields={"traceback": traceback.format_exc()})
    else:
        sys.stderr.write(traceback.format_exc())


def _occupy(descriptor: int) -> None:
    """Open a closed standard descriptor on /dev/null, so that no later file or socket gets its number."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


class _Standard(io.TextIOBase):
    """Base of the replacements of stdout and stderr.

    Args:
        stream: the original; None if it was closed when the process started.
        descriptor: its number.
    """

    def __init__(self, stream: TextIO | None, descriptor: int) -> None:
        self._stream = stream
        self._descriptor = descriptor

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if self._stream is None else self._stream.encoding


class _Stdout(_Standard):
    """Raises `StreamError` at the first failing write, and drops later output."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream, 1)
        self._failed = False

    def write(self, text: str) -> int:
        if not self._failed:
            with self._explained():
                if self._stream is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and not self._failed:
            with self._explained():
                self._stream.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            self._failed = True
            lacking = ascii(error.object[error.start])
            raise StreamError(
                f"writing to stdout failed: its encoding {error.encoding} lacks {lacking}; set PYTHONIOENCODING=utf-8"
            ) from error
        except (OSError, ValueError) as error:
            self._failed = True
            reason = getattr(error, "strerror", None) or str(error)
            raise StreamError(f"writing to stdout failed: {reason}; check its destination") from error


class _Stderr(_Standard):
    """Passes text to a thread that writes it. Drops text while 1,000 pieces are waiting, and what can't be written."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream, 2)
        self._pending: deque[str] = deque()
        self._footer = ""
        self._shown_footer = ""
        self._at_line_start = True
        self._changed = threading.Condition()
        self._is_idle = True
        self._is_stuck = False
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        if self._stream is not None and text:
            with self._changed:
                if len(self._pending) < _MOST_LINES:
                    self._pending.append(text)
                    self._wake()
        return len(text)

    def set_footer(self, text: str) -> None:
        """See the function `set_footer`. A footer that was not written before the next one is dropped."""
        with self._changed:
            if self._stream is not None and text != self._footer:
                self._footer = text
                self._wake()

    def _wake(self) -> None:
        self._is_idle = False
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._pass_on, name="stderr", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Wait until everything is written, but not for a blocked stream."""
        with self._changed:
            if not self._is_stuck:
                self._is_stuck = not self._changed.wait_for(lambda: self._is_idle, _FLUSH_S)

    def _pass_on(self) -> None:
        assert self._stream is not None
        while True:
            with self._changed:
                if not self._is_due():
                    self._is_idle, self._is_stuck = True, False
                    self._changed.notify_all()
                    self._changed.wait_for(self._is_due)
                text = "".join(self._pending)
                self._pending.clear()
                self._at_line_start = text.endswith("\n") if text else self._at_line_start
                before, self._shown_footer = self._shown_footer, self._footer if self._at_line_start else ""
                text = _with_footer(text, self._shown_footer, before=before)
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()

    def _is_due(self) -> bool:
        return bool(self._pending) or (self._at_line_start and self._footer != self._shown_footer)


def _with_footer(text: str, footer: str, *, before: str) -> str:
    """`text` and the footer below it, as control sequences for a cursor that is at the start of the footer `before`.

    Lines are replaced in place and not wrapped, so that nothing flickers. Afterwards the cursor is at the start again.
    """
    erase = "\r\x1b[J" if before and (text or not footer) else ""
    if not footer:
        return erase + text
    up = footer.count("\n")
    lines = footer.replace("\n", "\x1b[K\n")
    return f"{erase}{text}\x1b[?7l\r{lines}\x1b[J\x1b[?7h\r" + (f"\x1b[{up}A" if up else "")


class _JsonHandler(logging.Handler):
    """Log records of libraries as JSON, except the SDK's, whose errors are reported where they are raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] not in {"aiobotocore", "botocore"}

    def emit(self, record: logging.LogRecord) -> None:
        log("library", record.getMessage(), level=record.levelname.lower(), fields={"logger": record.name})
