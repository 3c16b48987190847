from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from batchcl.emulator.image_rules import check_bytes, open_picture
from batchcl.errors import HostError, ImageError
from batchcl.images import MAX_BYTES_INLINE
from batchcl.imaging.decode import PixelBudget, decode_upright
from batchcl.imaging.fit import FittedImage, fit
from pixels import encoded, noise

TURNED = 6
ORIENTATION = 0x0112


def marked(width: int, height: int) -> Image.Image:
    """A grey image with a red mark in its upper left quarter."""
    image = Image.new("RGB", (width, height), "grey")
    ImageDraw.Draw(image).rectangle([0, 0, width // 2 - 1, height // 2 - 1], fill="red")
    return image


def changed(data: bytes, **options: Any) -> FittedImage:
    """The result of `fit`, which must be within the service's limits."""
    found = fit(data, **options)
    assert found is not None
    check_bytes(found.data, inline=True)
    open_picture(found.data)
    return found


def pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def code(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        fit(data)
    return caught.value.code


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(64, 64), (1280, 64), (4096, 205), (300, 200)])
def test_images_within_the_limits_are_not_changed(kind: str, size: tuple[int, int]) -> None:
    assert fit(encoded(Image.new("RGB", size), kind)) is None


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_become_png_or_jpeg_of_the_same_size(kind: str) -> None:
    found = changed(encoded(noise(300, 200), kind))
    picture = pixels(found.data)
    assert picture.size == (300, 200)
    assert found.note == f"{kind} to {picture.format}"


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_small_lossless_images_stay_lossless(kind: str) -> None:
    found = changed(encoded(noise(100, 90), kind))
    assert np.array_equal(np.asarray(pixels(found.data)), np.asarray(noise(100, 90)))


def test_too_many_pixels_are_shrunk_to_the_maximum() -> None:
    found = changed(encoded(marked(5000, 2500), "JPEG"))
    assert pixels(found.data).size == (4096, 2048)
    assert found.note == "5000 x 2500 to 4096 x 2048 pixels"


def test_too_few_pixels_are_enlarged() -> None:
    found = changed(encoded(marked(40, 20)))
    assert pixels(found.data).size == (128, 64)
    assert found.note == "40 x 20 to 128 x 64 pixels"


def test_too_many_bytes_are_reduced_to_the_callers_limit() -> None:
    data = encoded(noise(1200, 1200), compress_level=0)
    assert len(data) > MAX_BYTES_INLINE
    found = changed(data)
    assert found.note == f"PNG to JPEG; {len(data):,} to {len(found.data):,} bytes"
    assert fit(data, limit_bytes=len(data)) is None
    smallest = changed(data, limit_bytes=100_000)
    assert len(smallest.data) <= 100_000
    assert max(pixels(smallest.data).size) < 1200


def test_a_limit_that_cannot_be_met_is_an_error() -> None:
    with pytest.raises(ImageError, match="can't be shrunk to 10 bytes"):
        fit(encoded(noise(100, 100)), limit_bytes=10)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "PNG"])
def test_a_rotated_image_becomes_upright(kind: str) -> None:
    """Orientation 6: the file's top is the right side of the displayed image."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    found = changed(encoded(marked(60, 30), kind, exif=exif))
    picture = pixels(found.data)
    assert picture.size == (64, 128)
    assert picture.getexif().get(ORIENTATION, 1) == 1
    seen = np.asarray(picture.convert("RGB")).astype(int)
    red = (seen[:, :, 0] - seen[:, :, 1]) > 60
    assert red[:60, 36:].mean() > 0.9, "the mark has gone to the right upper quarter"
    assert red[:, :28].mean() < 0.1
    assert "30 x 60 to 64 x 128 pixels" in found.note


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["BMP", "PNG", "WEBP"]))
def test_any_image_of_at_most_20_to_1_becomes_acceptable(width: int, height: int, kind: str) -> None:
    data = encoded(Image.new("RGB", (width, height)), kind)
    if max(width, height) > 20 * min(width, height):
        assert code(data) == "TooLong"
        return
    found = fit(data)
    result = pixels(data if found is None else found.data)
    open_picture(data if found is None else found.data)
    assert result.width / result.height == pytest.approx(width / height, rel=0.02)


def test_cmyk_is_converted_by_the_files_profile() -> None:
    ink = marked(100, 100).convert("CMYK")
    plain = changed(encoded(ink, "JPEG", quality=95))
    assert plain.note == "CMYK to RGB"
    red, green, blue = np.asarray(pixels(plain.data).convert("RGB"))[20, 20].astype(int)
    assert red > 200
    assert green + blue < 80
    odd = encoded(ink, "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert changed(odd).note == "CMYK to RGB", "a profile for other colours is passed over"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8_without_clipping(kind: str) -> None:
    ramp = np.linspace(0, 65535, 100 * 100).astype(np.uint16).reshape(100, 100)
    found = changed(encoded(Image.fromarray(ramp), kind))
    assert "16 to 8 bits" in found.note
    seen = np.asarray(pixels(found.data).convert("L")).astype(int)
    assert abs(seen - (ramp >> 8)).max() <= 1


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    found = changed(encoded(clear, "TIFF"))
    assert "transparency on white" in found.note
    assert pixels(found.data).convert("RGB").getpixel((50, 50)) == (255, 255, 255)


def test_the_first_of_several_frames_is_used() -> None:
    data = encoded(marked(80, 80), "GIF", save_all=True, append_images=[Image.new("RGB", (80, 80), "blue")])
    found = changed(data)
    assert found.note == "GIF to PNG; the first frame"
    assert pixels(found.data).convert("RGB").getpixel((10, 10)) == (255, 0, 0)


def test_images_over_20_to_1_are_refused() -> None:
    assert code(encoded(Image.new("RGB", (64 * 21, 64)))) == "TooLong"


def test_files_that_are_not_images_are_refused() -> None:
    assert code(b"") == "EmptyFile"
    assert code(b"hello, world" * 20) == "UnknownFormat"
    assert code(b"%!PS-Adobe-3.0 EPSF-3.0\n" * 10) == "UnknownFormat", "no decoder but the common ones is tried"
    whole = encoded(noise(300, 300), "WEBP", lossless=True)
    assert code(whole[: len(whole) // 2]) == "BrokenImage"
    deep = Image.fromarray(np.ones((80, 80), dtype=np.float32))
    assert code(encoded(deep, "TIFF")) == "UnknownFormat"


@pytest.mark.filterwarnings("ignore")  # as everywhere except in these tests
def test_a_lack_of_memory_is_not_an_error_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", load)
    with pytest.raises(HostError, match="memory"):
        fit(encoded(noise(80, 80), "BMP"))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    idat = b"IDAT" + zlib.compress(b"")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    assert code(bomb) == "TooManyPixels"
    assert code(encoded(Image.new("1", (10_000, 9_500)), "TIFF", compression="group4")) == "TooManyPixels"


@settings(max_examples=60)
@given(st.data())
def test_corrupt_files_are_image_errors_or_valid_images(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["WEBP", "TIFF", "BMP", "GIF", "PNG", "JPEG"]))
    good = bytearray(encoded(marked(30, 40), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(8, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = fit(bytes(good))
    except ImageError:
        return
    if found is not None:
        open_picture(found.data)


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_a_jpeg_equals_pillows_own(monkeypatch: pytest.MonkeyPatch, has_descriptors: bool) -> None:
    if not has_descriptors:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    data = encoded(noise(600, 400), "JPEG", quality=99)
    upright = decode_upright(data).image
    wanted = encoded(upright, "JPEG", quality=95)
    assert len(wanted) < len(data)
    assert changed(data, limit_bytes=len(data) - 1).data == wanted


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has files in memory")
def test_jpegs_are_encoded_without_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    webp = encoded(noise(100, 100), "WEBP")
    descriptors = []
    save = Image.Image.save

    def observed(image: Image.Image, file: Any, *args: Any, **options: Any) -> None:
        descriptors.append(file.fileno())  # with which Pillow releases it: see its `_encode_to_file`
        save(image, file, *args, **options)

    monkeypatch.setattr(Image.Image, "save", observed)
    before = set(os.listdir("/proc/self/fd"))
    changed(webp)
    assert descriptors
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_png_is_compressed_more_only_if_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    save = Image.Image.save

    def observed(image: Image.Image, file: Any, *args: Any, **options: Any) -> None:
        levels.append(options.get("compress_level"))
        save(image, file, *args, **options)

    smooth = Image.linear_gradient("L").resize((400, 400)).convert("RGB")
    data = encoded(smooth, "BMP")
    monkeypatch.setattr(Image.Image, "save", observed)
    quick = changed(data)
    slow = changed(data, limit_bytes=len(quick.data) - 1)
    assert levels == [2, 2, 6]
    assert len(slow.data) < len(quick.data)
    assert np.array_equal(np.asarray(pixels(quick.data)), np.asarray(smooth))
    assert np.array_equal(np.asarray(pixels(slow.data)), np.asarray(smooth))


class CountingLock:
    """A lock that counts the attempts to acquire it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.arrivals = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.arrivals.release()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_the_pixels_that_are_decoded_at_once_are_limited() -> None:
    budget = PixelBudget(100)
    budget._first = counting = CountingLock()  # type: ignore[assignment]
    order: list[str] = []

    def decode(name: str, pixels: int, end: threading.Event) -> threading.Thread:
        def work() -> None:
            with budget.take(pixels):
                order.append(name)
                assert end.wait(10)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert counting.arrivals.acquire(timeout=10)
        return thread

    first, others = threading.Event(), threading.Event()
    others.set()
    threads = [decode("small", 60, first), decode("over the limit", 1000, others), decode("also small", 10, others)]
    assert order == ["small"]
    first.set()
    for thread in threads:
        thread.join(10)
    assert order == ["small", "over the limit", "also small"]
    with budget.take(100):
        pass
