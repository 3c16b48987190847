"""What makes a file outlive a power cut."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["force_to_disk"]


def force_to_disk(file: Path, root: Path) -> None:
    """Have the content of `file` and its name, in each folder from `root` on, on the disk. Blocks.

    A file that somebody has removed meanwhile is left alone. Raises `OSError` where the disk refuses.
    """
    try:
        _fsync(file)
    except FileNotFoundError:
        return
    for folder in file.parents:
        _fsync(folder)
        if folder == root:
            break


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
