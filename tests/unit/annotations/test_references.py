"""Names of images in files are found among URIs exactly, by path, or by file name; several candidates are refused."""

from __future__ import annotations

import pytest

from batchcl.annotations import Matches, match_references
from batchcl.annotations.references import normalize_references
from batchcl.errors import SourceError

URIS = {
    "s3://b/photos/a/1.jpg",
    "s3://b/photos/a/2.jpg",
    "s3://b/photos/c/1.jpg",
    "/data/x/3.jpg",
    "s3://b/t.tar#m/4.jpg",
}


def matched(*images: tuple[str, ...], **options: object) -> Matches:
    given = {"folder": "/nowhere", "by_name": True} | options
    return match_references(images, URIS, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://b/a%20b/1.jpg", ("s3://b/a%20b/1.jpg",)),
        ("https://photos.s3.eu-west-1.amazonaws.com/a%20b/1.jpg?X-Amz-Signature=x", ("s3://photos/a b/1.jpg",)),
        ("https://s3-eu-west-1.amazonaws.com/b/a/1.jpg", ("s3://b/a/1.jpg",)),
        ("https://b.s3.amazonaws.com.evil.example/1.jpg", ("1.jpg",)),
        ("http://images.cocodataset.org/val2017/1.jpg", ("val2017/1.jpg",)),
        ("/data/local-files/?d=photos/a%2F1.jpg", ("photos/a/1.jpg",)),
        ("/data/upload/12/0a1b2c3d-1.jpg", ("0a1b2c3d-1.jpg", "1.jpg")),
        ("file:///data/1.jpg", ("/data/1.jpg",)),
        ("C:\\images\\1.jpg", ("/images/1.jpg",)),
        ("./a/1.jpg", ("a/1.jpg",)),
        ("http://[", ()),
        ("a/", ()),
    ],
)
def test_names_become_uris_or_paths(name, expected):
    assert normalize_references([name]) == expected


def test_a_name_is_found_exactly_by_path_or_by_file_name():
    found = matched(("s3://b/photos/a/1.jpg",), ("c/1.jpg",), ("m/4.jpg",), ("elsewhere/3.jpg",), ("5.jpg",))
    assert found == Matches(
        ("s3://b/photos/a/1.jpg", "s3://b/photos/c/1.jpg", "s3://b/t.tar#m/4.jpg", "/data/x/3.jpg", None),
        exact=1,
        by_path=2,
        by_name=1,
    )


def test_only_the_end_from_a_slash_counts():
    assert matched(("hotos/a/1.jpg",), by_name=False).uris == (None,)


def test_names_below_a_folder_are_exact():
    found = matched(("a/1.jpg",), ("1.jpg",), folder="s3://b/photos/", only_exact=True)
    assert found == Matches(("s3://b/photos/a/1.jpg", None), exact=1, by_path=0, by_name=0)
    assert matched(("3.jpg",), folder="/data/x").exact == 1


def test_a_name_that_fits_several_uris_is_refused():
    with pytest.raises(
        SourceError, match=r"the image 1\.jpg .* end of 2 URIs, such as s3://b/photos/a/1\.jpg and s3://"
    ):
        matched(("1.jpg",))


def test_two_names_that_fit_one_uri_are_refused():
    with pytest.raises(SourceError, match="the file name of several images"):
        matched(("x/2.jpg",), ("y/2.jpg",))


def test_a_uri_of_another_image_is_not_taken():
    found = matched(("a/2.jpg",), ("z/2.jpg",), ("a/2.jpg",))
    assert found.uris == ("s3://b/photos/a/2.jpg", None, "s3://b/photos/a/2.jpg")


def test_parent_folders_are_never_joined_into_s3_names():
    assert matched(("../a/1.jpg",), folder="s3://b/photos/x", only_exact=True).uris == (None,)


def test_a_second_name_is_used_after_the_first_names_of_all():
    found = matched(("x/dog/2.jpg", "2.jpg"), ("a/2.jpg",), ("8.jpg", "a/1.jpg"))
    assert found.uris == (None, "s3://b/photos/a/2.jpg", "s3://b/photos/a/1.jpg")
