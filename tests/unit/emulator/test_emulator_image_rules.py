from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from batchcl.emulator.errors import ApiError
from batchcl.emulator.image_rules import check_bytes, open_picture, pixel_size
from pixels import encoded, noise


def code(data: bytes) -> str:
    with pytest.raises(ApiError) as caught:
        open_picture(data)
    return caught.value.code


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(64, 64), (64, 1280), (1280, 64), (300, 200)])
def test_good_images_open_at_their_size(kind: str, size: tuple[int, int]) -> None:
    picture = open_picture(encoded(noise(*size), kind))
    assert (picture.width, picture.height) == size
    assert picture.image.mode == "RGB"


def test_the_largest_side_opens_and_one_more_does_not() -> None:
    assert open_picture(encoded(Image.new("L", (4096, 256)))).width == 4096
    assert code(encoded(Image.new("L", (4097, 256)))) == "ImageTooLargeException"
    assert code(encoded(Image.new("L", (256, 4097)), "JPEG")) == "ImageTooLargeException"


@pytest.mark.parametrize("size", [(63, 64), (64, 63), (1, 1), (64, 1281), (1281, 64)])
def test_tiny_and_long_images_are_invalid_parameters(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        assert code(encoded(Image.new("RGB", size), kind)) == "InvalidParameterException"


def test_a_header_with_a_huge_size_is_refused_before_decoding() -> None:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    assert code(bomb) == "ImageTooLargeException"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_refused(kind: str) -> None:
    assert code(encoded(noise(80, 80), kind)) == "InvalidImageFormatException"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    data = encoded(noise(200, 200), kind)
    assert code(data[: int(len(data) * share)]) == "InvalidImageFormatException"


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x00" * 9, b"text"])
def test_data_that_is_not_an_image_is_refused(data: bytes) -> None:
    assert code(data) == "InvalidImageFormatException"


def test_corrupt_images_only_raise_the_format_error() -> None:
    codes = set()
    for kind in ("PNG", "JPEG"):
        good = encoded(noise(96, 96), kind)
        rng = np.random.default_rng(1)
        for _ in range(150):
            data = bytearray(good)
            for at in rng.integers(2, 400, 6):
                data[at] = rng.integers(256)
            try:
                open_picture(bytes(data))
            except ApiError as error:
                codes.add(error.code)
    assert "InvalidImageFormatException" in codes
    assert codes <= {"InvalidImageFormatException", "ImageTooLargeException", "InvalidParameterException"}


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 1)), (6, (1, 0)), (8, (0, 1))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_turned_as_exif_says(orientation: int, corner: tuple[int, int], kind: str) -> None:
    stored = Image.new("RGB", (200, 100))
    stored.paste((255, 255, 255), (0, 0, 50, 25))  # a light left upper corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_picture(encoded(stored, kind, exif=exif))
    turned = orientation in {6, 8}
    assert (picture.width, picture.height) == ((100, 200) if turned else (200, 100))
    grey = np.asarray(picture.image.convert("L"))
    assert grey.shape == (picture.height, picture.width)
    assert grey[-5 if corner[1] else 4, -5 if corner[0] else 4] > 200


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_every_colour_mode_of_png_opens(mode: str) -> None:
    image = Image.fromarray(np.full((80, 80), 30_000, np.uint16)) if mode == "I;16" else noise(80, 80).convert(mode)
    grey = np.asarray(open_picture(encoded(image)).image.convert("L"))
    assert grey.mean() == pytest.approx(117 if mode == "I;16" else 127, abs=15)


def test_a_large_jpeg_keeps_its_stated_size() -> None:
    picture = open_picture(encoded(Image.new("RGB", (4000, 3000)), "JPEG"))
    assert (picture.width, picture.height) == (4000, 3000)
    assert picture.image.width < 4000


def test_sizes_come_from_the_header_of_progressive_jpegs_too() -> None:
    assert pixel_size(encoded(noise(120, 70), "JPEG", progressive=True)) == (120, 70)


def test_size_limits_differ_for_inline_bytes_and_s3() -> None:
    for limit, inline in ((4 * 1024**2, True), (15 * 1024**2, False)):
        check_bytes(bytes(limit), inline=inline)
        with pytest.raises(ApiError) as caught:
            check_bytes(bytes(limit + 1), inline=inline)
        assert caught.value.code == "ImageTooLargeException"
