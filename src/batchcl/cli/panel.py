"""The live panel of a run: a few lines that stay below all other output of a terminal.

`render` makes the text of a `Snapshot`. `LivePanel` keeps it at the bottom of stderr.
"""

from __future__ import annotations

import locale
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from batchcl.cli import streams
from batchcl.cli.streams import printable
from batchcl.events import Snapshot
from batchcl.quantities import clock_text, pluralize, rate_text

__all__ = ["LivePanel", "render"]

_MAX_WIDTH: Final = 100
_PANEL_WIDTH: Final = 60
_PANEL_ROWS: Final = 8
"""A terminal with fewer columns or rows gets one line."""

_MIN_BAR: Final = 10
_GAP: Final = "  "
_UP: Final = "RUNNING"
_START_TIME: Final = "usually a few minutes, up to 30"

_Part = tuple[int, str, str]
"""Importance, the most important first; text; style."""


class LivePanel:
    """Draws the panel below everything else that is written to stderr, and removes it at `close`.

    The size of the terminal is read for each drawing. A job in the background draws nothing.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._is_ascii = not all(
            encoding.lower().replace("-", "").replace("_", "").startswith("utf")
            for encoding in (sys.stderr.encoding or "", locale.getencoding())
        )

    def show(
        self, snapshot: Snapshot, *, note: str = "", is_minor: bool = False, status_for_s: float | None = None
    ) -> None:
        """Replace the panel; see `render`."""
        if not _is_in_foreground():
            streams.set_footer("")
            return
        columns, rows = _terminal_size()
        text = render(
            snapshot,
            width=columns - 1,  # the cursor of some terminals wraps after the last column
            rows=rows,
            note=note,
            is_minor=is_minor,
            status_for_s=status_for_s,
            ascii_only=self._is_ascii,
        )
        with self._console.capture() as drawn:
            self._console.print(text, end="", soft_wrap=True)
        streams.set_footer(drawn.get())

    def suspend(self) -> None:
        """Remove the panel and stop the process, as ^Z does; returns when it is continued."""
        self.close()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)

    def close(self) -> None:
        """Remove the panel; `show` draws it again."""
        streams.set_footer("")
        sys.stderr.flush()


def render(
    now: Snapshot,
    *,
    width: int,
    rows: int = 24,
    note: str = "",
    is_minor: bool = False,
    status_for_s: float | None = None,
    ascii_only: bool = False,
) -> Text:
    """The panel: three lines without a line end at the last one, or one line on a small terminal.

    No line is wider than `width`: the least important parts are omitted. Control characters are escaped.

    Args:
        now: what to show.
        width: columns that may be used.
        rows: of the terminal.
        note: a last line about a wait or the end of the run; in a panel of one line, it replaces most counters.
        is_minor: the counters are more important than the note; it is left out if there is one line only.
        status_for_s: seconds since the model has had its status; None if unknown.
        ascii_only: use no characters that need UTF-8.
    """
    width = max(1, min(width, _MAX_WIDTH))
    if width < _PANEL_WIDTH - 1 or rows < _PANEL_ROWS:
        lines = [_one_line(now, width, note="" if is_minor else note, status_for_s=status_for_s)]
    else:
        lines = [_progress(now, width, ascii_only=ascii_only), _fit(_calls(now), width)]
        if model := _model(now, status_for_s):
            lines.append(_fit(model, width))
        if note:
            lines.append(Text(printable(note), "yellow"))
    for line in lines:
        if line.cell_len > width:
            line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return Text("\n").join(line for line in lines if line.plain)


def _count(now: Snapshot) -> str:
    return f"{now.done:,}/{now.planned:,}{'' if now.listed else '+'}"


def _eta(now: Snapshot) -> str:
    return "ETA ?" if now.eta_s is None else f"ETA {clock_text(now.eta_s)}"


def _dollars(now: Snapshot) -> str:
    return "cost not counted" if now.dollars is None else f"${now.dollars:,.2f}"


def _percent(now: Snapshot) -> int | None:
    """Rounded down, so that 100 % is complete; None while the number of images is unknown."""
    if not now.listed or now.planned <= 0:
        return None
    return max(0, min(100, 100 * now.done // now.planned))


def _progress(now: Snapshot, width: int, *, ascii_only: bool) -> Text:
    if now.is_listing:
        return _fit([(1, f"listing: {now.planned:,} images so far", ""), (2, clock_text(now.elapsed_s), "")], width)
    percent = _percent(now)
    if percent is None:
        return _fit([(1, f"{_count(now)} images", ""), (2, "listing", "cyan"), (3, _eta(now), "")], width)
    text = _fit([(2, f"{percent:3}%", "bold"), (1, f"{_count(now)} images", ""), (3, _eta(now), "")], width)
    bar_width = width - text.cell_len - 1
    if bar_width < _MIN_BAR:
        return text
    filled = bar_width * percent // 100
    whole, rest = ("#", "-") if ascii_only else ("━", "─")
    return Text.assemble((whole * filled, "green"), (rest * (bar_width - filled), "bright_black"), " ", text)


def _calls(now: Snapshot) -> list[_Part]:
    if not now.calls and not now.done:
        return []
    parts = [(1, rate_text(now.images_per_second), "bold"), (3, _capacity(now), "")]
    throttled = "yellow" if now.throttled_share >= 0.1 else ""  # noqa: PLR2004 - more than the search for the capacity causes
    parts += [(4, f"{now.throttled_share:.1%} throttled", throttled), (2, *_failed(now))]
    if now.skipped:
        parts.append((5, f"{now.skipped:,} skipped", ""))
    parts.append((6, f"{now.in_flight:,} in flight", ""))
    return parts


def _capacity(now: Snapshot) -> str:
    return "capacity unknown" if now.capacity_tps is None else f"capacity {rate_text(now.capacity_tps)}"


def _failed(now: Snapshot) -> tuple[str, str]:
    return f"{now.failed:,} failed", "red" if now.failed else ""


def _model(now: Snapshot, status_for_s: float | None) -> list[_Part]:
    if now.model_status is None and now.dollars is None:
        return []
    parts = [] if now.model_status is None else [(1, *_status(now, status_for_s))]
    if now.units is not None:
        parts.append((4, pluralize(now.units, "unit"), ""))
    parts.append((2, _dollars(now), ""))
    if now.model_status == "STARTING":
        parts.append((5, _START_TIME, "bright_black"))
    else:
        parts.append((3, f"{clock_text(now.elapsed_s)} elapsed", ""))
    return parts


def _status(now: Snapshot, status_for_s: float | None) -> tuple[str, str]:
    status = printable(str(now.model_status))
    if status == _UP:
        return f"model {status}", "green"
    return f"model {status}" + ("" if status_for_s is None else f" for {clock_text(status_for_s)}"), "yellow"


def _one_line(now: Snapshot, width: int, *, note: str, status_for_s: float | None) -> Text:
    percent = _percent(now)
    parts = [] if percent is None else [(2, f"{percent}%", "bold")]
    if note:
        return Text(_GAP).join(Text(text, style) for _, text, style in [*parts, (1, printable(note), "yellow")])
    if now.model_status not in {None, _UP}:
        waited = "" if status_for_s is None else f" {clock_text(status_for_s)}"
        parts.append((1, f"{printable(str(now.model_status))}{waited}", "yellow"))
        parts.append((5, _count(now), ""))
    elif now.is_listing:
        parts += [(1, f"listing {now.planned:,}", ""), (3, clock_text(now.elapsed_s), "")]
    else:
        parts += [(5, _count(now), ""), (1, rate_text(now.images_per_second), ""), (3, _eta(now), "")]
    if now.failed:
        parts.append((4, *_failed(now)))
    if now.dollars is not None:
        parts.append((6, _dollars(now), ""))
    return _fit(parts, width)


def _fit(parts: Sequence[_Part], width: int) -> Text:
    """The parts in their order, without the least important ones if they don't fit."""
    kept = list(parts)
    while True:
        line = Text(_GAP).join(Text(text, style) for _, text, style in kept)
        if line.cell_len <= width or len(kept) < 2:  # noqa: PLR2004 - the last part is truncated instead
            return line
        kept.remove(max(kept))


def _terminal_size() -> tuple[int, int]:
    """Columns and rows of stderr; 80 and 24 if the terminal doesn't know them, such as a serial line."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns = rows = 0
    return columns or 80, rows or 24


def _is_in_foreground() -> bool:
    """Whether the terminal belongs to this job; also true if it is not the terminal that controls the process."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:
        return True
