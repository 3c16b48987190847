"""Errors of local files: of the image, of the disk, or of this machine."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
import pytest

from batchcl.errors import CallError, HostError, ImageError, ShortageError
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader


def failing(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CallError:
    def refuse(_self: Path) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    image = ImageRef(uri=str(tmp_path / "a.png"), bucket="", key=str(tmp_path / "a.png"))
    with pytest.raises(CallError) as caught:
        anyio.run(FileReader().read, image)
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((each, ImageError) for each in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP)),
        *((each, HostError) for each in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO)),
        *((each, ShortageError) for each in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)),
    ],
)
def test_only_permanent_file_errors_fail_the_image_at_once(code, kind, tmp_path, monkeypatch) -> None:
    error = failing(code, tmp_path, monkeypatch)
    assert type(error) is kind
    assert os.strerror(code) in str(error)
