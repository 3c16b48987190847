"""The back end that writes a file for the textfile collector of Prometheus' node_exporter.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Each file has its own value of the label `task`,
because node_exporter rejects all files when two of them have the same series.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final

from batchcl.monitoring.metrics import METRICS, Histogram, Sample
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import SendError

__all__ = ["MetricsFile", "check_folder_writable", "render"]

_KEPT: Final = ("batchcl_last_success_timestamp_seconds", "batchcl_last_exit_code")
"""Metrics of earlier runs, which remain in the file until they have a new value."""

_LINE: Final = re.compile(rf"^({'|'.join(_KEPT)})\{{[^}}]*\}} (\S+)$", re.MULTILINE)
_MAX_BYTES: Final = 1_000_000


class MetricsFile:
    """Replaces the file at the start, every minute and at the end.

    A reader sees the old or the new file, never a part. The time of the last success and the last exit code are taken
    over from the file, so that they survive runs that fail or are killed.
    """

    every_s = 60.0

    def __init__(self, path: str) -> None:
        self.name = f"the metrics file {path}"
        self._path = path
        self._task = os.path.basename(path).removesuffix(".prom")

    def send(self, report: Report) -> None:
        """Write the samples, if there are any."""
        if not report.samples:
            return
        new = {sample.name for sample in report.samples}
        try:
            kept = [sample for sample in self._kept() if sample.name not in new]
            _replace(self._path, render((*report.samples, *kept), task=self._task))
        except OSError as error:
            raise SendError(error.strerror or type(error).__name__) from error

    def _kept(self) -> Iterator[Sample]:
        """The metrics of earlier runs in the file; none if it is missing or is not a text file."""
        try:
            with open(self._path, encoding="utf-8") as file:
                text = file.read(_MAX_BYTES)
        except (FileNotFoundError, UnicodeDecodeError):
            return
        for name, value in dict(_LINE.findall(text)).items():
            with suppress(ValueError):
                yield Sample(name, float(value))


def check_folder_writable(path: str) -> None:
    """Raise `OSError` if no file can be created in the directory of `path`; leaves no file. Blocks."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", prefix=f".{os.path.basename(path)}."):
        pass


def _replace(path: str, text: str) -> None:
    """Write `text` next to `path`, under a name that node_exporter does not read, and rename it."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:  # readable by node_exporter's user, if the umask allows
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def render(samples: Iterable[Sample], *, task: str) -> str:
    """The samples in Prometheus' text format, in the order of `METRICS`."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    return "".join(line for name in METRICS if name in by_name for line in _lines(name, by_name[name], task))


def _lines(name: str, samples: Iterable[Sample], task: str) -> Iterator[str]:
    metric = METRICS[name]
    yield f"# HELP {name} {metric.help}\n# TYPE {name} {metric.kind}\n"
    for sample in samples:
        labels = {"task": task, **sample.labels}
        if not isinstance(sample.value, Histogram):
            yield f"{name}{_labels(labels)} {sample.value!r}\n"
            continue
        total = 0
        bounds = [*map(repr, sample.value.bounds), "+Inf"]
        for bound, count in zip(bounds, sample.value.counts, strict=True):
            total += count
            yield f"{name}_bucket{_labels(labels | {'le': bound})} {total}\n"
        yield f"{name}_sum{_labels(labels)} {sample.value.total!r}\n{name}_count{_labels(labels)} {total}\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
