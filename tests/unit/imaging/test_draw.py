from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from batchcl.errors import ImageError
from batchcl.imaging import draw
from batchcl.imaging.draw import annotate, drawing_format
from batchcl.outcomes import Label
from pixels import encoded

BOX = (0.25, 0.5, 0.5, 0.25)


def black(width: int, height: int, *, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", (width, height)), "JPEG", exif=exif)


def drawn(data: bytes, *labels: Label) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(annotate(data, labels)))).astype(int)


def test_a_box_is_drawn_at_its_ratios() -> None:
    seen = drawn(black(800, 400), Label("cat", 99.0, BOX))
    assert seen.shape == (400, 800, 3)
    lit = seen.sum(axis=2) > 60
    assert lit[250, 195:206].any(), "the left edge, at a quarter of the width"
    assert lit[250, 590:601].any(), "the right edge"
    assert lit[199:205, 400].any(), "the upper edge"
    assert lit[295:301, 400].any(), "the lower edge"
    assert not lit[:175].any()
    assert not lit[230:280, 220:580].any(), "nothing is drawn inside"
    assert not lit[310:, :].any()
    assert lit[180:199, 202:260].any(), "its name stands above"


def test_the_image_is_drawn_upright() -> None:
    assert drawn(black(800, 500, orientation=6), Label("cat", 99.0, BOX)).shape == (800, 500, 3)


def test_small_images_are_enlarged_and_image_labels_are_below() -> None:
    seen = drawn(black(100, 64), Label("a", 50.0), Label("b", 40.0))
    assert seen.shape[1] == 500
    assert seen.shape[0] > 320
    assert not seen[:320].any()
    assert (seen[320:] == 255).mean() > 0.5


def test_polygons_are_drawn() -> None:
    polygon = ((0.3, 0.55), (0.7, 0.55), (0.5, 0.7))
    plain = drawn(black(800, 400), Label("cat", 99.0, BOX))
    assert (drawn(black(800, 400), Label("cat", 99.0, BOX, polygon)) != plain).sum() > 300


@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 1.0, 1.0), (-0.2, -0.2, 2.0, 2.0), (0.5, 0.5, 0.0, 0.0), (0.9, 0.9, 0.5, 0.5)]
)
def test_boxes_beyond_the_edge_are_clipped(box: tuple[float, float, float, float]) -> None:
    assert drawn(black(600, 600), Label("x" * 200, 99.0, box), Label("\x1b[31m\u202e", 1.0, box)).any()


def test_names_are_written_as_far_as_the_font_allows() -> None:
    plain = draw._Font(12, names=())
    assert plain.text(Label("Café 猫", 1.0)) == "Cafe ? 1.0"
    assert plain.text(Label("x" * 50, 1.0)) == "x" * 37 + "... 1.0"


def test_a_file_that_is_not_an_image_is_refused() -> None:
    with pytest.raises(ImageError):
        annotate(b"hello", [])


def test_the_format_follows_the_file_name() -> None:
    assert [drawing_format(name) for name in ("a.PNG", "a.jpg", "b.jpeg", "c.gif", "png")] == [
        "PNG",
        "JPEG",
        "JPEG",
        None,
        None,
    ]
    assert annotate(black(600, 600), [], kind="JPEG").startswith(b"\xff\xd8")
