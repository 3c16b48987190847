from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from PIL import Image

from batchcl.errors import HostError, ImageError
from batchcl.images import MAX_BYTES_S3, ImageRef, SkipReason
from batchcl.loaders.base import Prepared
from batchcl.loaders.fitting import FittingReader
from pixels import encoded


class FakeReader:
    """A reader of `images`, which accepts local or remote ones; counts its reads."""

    def __init__(self, images: dict[str, bytes], *, local: bool) -> None:
        self.images = images
        self.local = local
        self.reads = 0

    def accepts(self, image: ImageRef) -> bool:
        return image.local == self.local

    async def read(self, image: ImageRef) -> bytes:
        self.reads += 1
        if image.key not in self.images:
            raise HostError("reading the object took longer than 120 s", code="Timeout")
        return self.images[image.key]


def picture(kind: str, side: int = 100) -> bytes:
    return encoded(Image.new("RGB", (side, side), "red"), kind)


def local(key: str) -> ImageRef:
    return ImageRef(uri=f"/{key}", bucket="", key=key)


def remote(key: str, *, version_id: str | None = None, size_bytes: int | None = None) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, version_id=version_id, size_bytes=size_bytes)


def reader(images: dict[str, bytes], **more: Any) -> FittingReader:
    return FittingReader(FakeReader(images, local=True), FakeReader(images, local=False), processors=1, **more)


def run(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    anyio.run(act)


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (local("a.jpg"), True),
        (local("a.webp"), True),
        (remote("a.jpg"), False),
        (remote("folder.x/a"), False),
        (remote("scan 12.05.2026"), False),
        (remote("a.tiff"), True),
        (remote("a.jpg", size_bytes=MAX_BYTES_S3), False),
        (remote("a.jpg", size_bytes=MAX_BYTES_S3 + 1), True),
    ],
)
def test_inline_and_suspect_images_are_prepared_before_the_call(image: ImageRef, wanted: bool) -> None:
    assert reader({}).needs_preparation(image) is wanted


def test_a_changed_image_is_kept_until_it_is_released() -> None:
    async def act() -> None:
        fitting_reader = reader({"a.webp": picture("WEBP")})
        for image in (local("a.webp"), remote("a.webp"), remote("a.webp", version_id="v")):
            assert await fitting_reader.prepare(image) == Prepared("WEBP to JPEG")
            assert fitting_reader.accepts(image)
            assert (await fitting_reader.read(image)).startswith(b"\xff\xd8")
            fitting_reader.release(image)
            assert fitting_reader.accepts(image) is image.local

    run(act)


def test_images_within_the_limits_are_not_kept() -> None:
    async def act() -> None:
        large = picture("PNG") + bytes(5_000_000)  # over the limit for bytes, within the limit for objects
        fitting_reader = reader({"a.png": picture("PNG"), "b.jpg": large})
        assert await fitting_reader.prepare(local("a.png")) == Prepared()
        assert await fitting_reader.read(local("a.png")) == picture("PNG")
        assert await fitting_reader.prepare(remote("b.jpg")) == Prepared()
        assert not fitting_reader.accepts(remote("b.jpg"))
        assert fitting_reader._ready == {}

    run(act)


def test_unfixable_images_are_skipped_and_read_errors_raised() -> None:
    async def act() -> None:
        fitting_reader = reader({"a.gif": b"GIF89a nonsense"})
        found = await fitting_reader.prepare(remote("a.gif"))
        assert isinstance(found, SkipReason)
        assert found.code in {"BrokenImage", "UnknownFormat"}
        with pytest.raises(HostError):
            await fitting_reader.prepare(remote("slow.gif"))

    run(act)


def test_the_memory_for_prepared_images_is_limited() -> None:
    async def act() -> None:
        fitting_reader = reader({"a.gif": picture("GIF")}, max_held_bytes=100)
        assert fitting_reader.has_capacity()
        await fitting_reader.prepare(local("a.gif"))
        assert not fitting_reader.has_capacity()
        fitting_reader.release(local("a.gif"))
        fitting_reader.release(local("a.gif"))
        assert fitting_reader.has_capacity()

    run(act)


def test_only_refusals_about_the_image_may_be_fixed() -> None:
    fitting_reader = reader({})
    assert fitting_reader.may_fix(ImageError("too large", code="ImageTooLargeException"))
    assert not fitting_reader.may_fix(ImageError("missing", code="InvalidS3ObjectException"))


def test_images_are_changed_on_all_cores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=10)

    def fit(_: bytes) -> None:
        together.wait()  # fails unless three threads are here

    monkeypatch.setattr("batchcl.loaders.fitting.usable_cores", lambda: 3)
    monkeypatch.setattr("batchcl.loaders.fitting.fit", fit)

    async def act() -> None:
        names = ("a.gif", "b.gif", "c.gif")
        images = FakeReader(dict.fromkeys(names, b"x"), local=True)
        fitting_reader = FittingReader(images, images)
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(fitting_reader.prepare, local(name))

    run(act)
