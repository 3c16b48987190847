"""Terminals whose screen a test can read: as a stream, and as a pseudo-terminal for a process."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyte


class TerminalScreen(io.StringIO):
    """A terminal as the stream that stderr is written to.

    Attributes:
        writes: number of calls of `write`.
    """

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.screen = pyte.Screen(columns, rows)
        self.screen.set_mode(pyte.modes.LNM)  # a terminal driver sends CR LF for LF
        self._input = pyte.Stream(self.screen)
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        self._input.feed(text)
        return len(text)

    def lines(self) -> list[str]:
        return _text(self.screen).split("\n")


def _text(screen: pyte.Screen) -> str:
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n")


LATEST_S = 60.0


class PseudoTerminal:
    """A terminal whose screen the test reads."""

    def __init__(self, columns: int, rows: int) -> None:
        self._master, self.slave = pty.openpty()
        self.screen = pyte.Screen(columns, rows)
        self._input = pyte.ByteStream(self.screen)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def text(self) -> str:
        return _text(self.screen)

    def await_(self, condition: Callable[[str], Any]) -> str:
        """Return the screen when it meets `condition`."""
        end = time.monotonic() + LATEST_S
        while not condition(self.text()):
            left = end - time.monotonic()
            assert left > 0, f"the screen is still\n{self.text()}"
            if select.select([self._master], [], [], min(left, 0.2))[0]:
                with suppress(OSError):  # no process has the other side open
                    self._input.feed(os.read(self._master, 65_536))
        return self.text()

    def close(self) -> None:
        os.close(self._master)
        os.close(self.slave)


@contextmanager
def on_terminal(
    start: Callable[..., subprocess.Popen[Any]], env: Mapping[str, str], *, columns: int, rows: int, **group: Any
) -> Iterator[tuple[PseudoTerminal, subprocess.Popen[Any]]]:
    """Call `start`, which creates a process, for a process on a new terminal; it is killed at the end of the block."""
    terminal = PseudoTerminal(columns, rows)
    process = start(
        env={name: value for name, value in env.items() if name != "CI"} | {"TERM": "xterm-256color"},
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        **group,
    )
    try:
        yield terminal, process
    finally:
        process.kill()
        process.wait()
        terminal.close()
