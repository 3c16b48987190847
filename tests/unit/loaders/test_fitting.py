from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from PIL import Image

from batchcl.errors import HostError, ImageError
from batchcl.images import MAX_BYTES_S3, ImageRef, SkipReason
from batchcl.loaders import fitting
from batchcl.loaders.base import Prepared
from batchcl.loaders.fitting import FittingReader
from pixels import encoded


class Shelf:
    """A reader of `images`, which it carries if `local`; counts how often it was asked."""

    def __init__(self, images: dict[str, bytes], *, local: bool) -> None:
        self.images = images
        self.local = local
        self.asked = 0

    def carries(self, image: ImageRef) -> bool:
        return image.local == self.local

    async def read(self, image: ImageRef) -> bytes:
        self.asked += 1
        if image.key not in self.images:
            raise HostError("S3 didn't give the object within 120 s", code="Timeout")
        return self.images[image.key]


def picture(kind: str, side: int = 100) -> bytes:
    return encoded(Image.new("RGB", (side, side), "red"), kind)


def local(key: str) -> ImageRef:
    return ImageRef(uri=f"/{key}", bucket="", key=key)


def remote(key: str, *, version_id: str | None = None, size_bytes: int | None = None) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, version_id=version_id, size_bytes=size_bytes)


def reader(images: dict[str, bytes]) -> FittingReader:
    return FittingReader(Shelf(images, local=True), Shelf(images, local=False), processors=1)


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
def test_bytes_are_looked_at_first_and_objects_where_name_or_size_give_reason_to(image: ImageRef, wanted: bool) -> None:
    assert reader({}).wants(image) is wanted


def test_a_changed_image_travels_as_its_new_bytes_until_it_is_released() -> None:
    async def act() -> None:
        shelf = reader({"a.webp": picture("WEBP")})
        for image in (local("a.webp"), remote("a.webp"), remote("a.webp", version_id="v")):
            assert await shelf.prepare(image) == Prepared("WEBP to JPEG")
            assert shelf.carries(image)
            assert (await shelf.read(image)).startswith(b"\xff\xd8")
            shelf.release(image)
            assert shelf.carries(image) is image.local

    run(act)


def test_what_is_fine_is_not_held() -> None:
    async def act() -> None:
        large = picture("PNG") + bytes(5_000_000)  # over what may travel as bytes, and fine for an object
        shelf = reader({"a.png": picture("PNG"), "b.jpg": large})
        assert await shelf.prepare(local("a.png")) == Prepared()
        assert await shelf.read(local("a.png")) == picture("PNG")
        assert await shelf.prepare(remote("b.jpg")) == Prepared()
        assert not shelf.carries(remote("b.jpg"))
        assert shelf._ready == {}

    run(act)


def test_what_can_not_be_mended_is_unfit_and_what_a_host_does_not_give_is_its_error() -> None:
    async def act() -> None:
        shelf = reader({"a.gif": b"GIF89a nonsense"})
        found = await shelf.prepare(remote("a.gif"))
        assert isinstance(found, SkipReason)
        assert found.code in {"BrokenImage", "UnknownFormat"}
        with pytest.raises(HostError):
            await shelf.prepare(remote("slow.gif"))

    run(act)


def test_there_is_room_for_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_HELD_BYTES", 100)

    async def act() -> None:
        shelf = reader({"a.gif": picture("GIF")})
        assert shelf.has_room()
        await shelf.prepare(local("a.gif"))
        assert not shelf.has_room()
        shelf.release(local("a.gif"))
        shelf.release(local("a.gif"))
        assert shelf.has_room()

    run(act)


def test_refusals_about_the_picture_may_be_mended() -> None:
    shelf = reader({})
    assert shelf.may_mend(ImageError("too large", code="ImageTooLargeException"))
    assert not shelf.may_mend(ImageError("missing", code="InvalidS3ObjectException"))
