from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from batchcl.errors import SourceError
from batchcl.groundtruth import DETECTION
from batchcl.images import MAX_BYTES_S3
from batchcl.workflow.create import check_labels, refuse_skipped
from batchcl.workflow.local import DatasetEntry, LocalDataset, LocalImage, read_local, split_entries
from pixels import encoded


def picture(width: int = 64, height: int = 64, kind: str = "PNG", shade: int = 0) -> bytes:
    return encoded(Image.new("RGB", (width, height), (shade, shade, shade)), kind)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def put(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return put


def test_the_first_folder_is_the_label_at_any_depth(tmp_path, put):
    put("cat/b.png", picture())
    put("cat/2024/may/a.JPG", picture(kind="JPEG"))
    put("dog/x y+%41.png", picture(shade=9))
    found = read_local(tmp_path)
    assert [(entry.labels, entry.image and entry.image.key) for entry in found.entries] == [
        (("cat",), "cat/b.png"),
        (("cat",), "cat/2024/may/a.JPG"),
        (("dog",), "dog/x y+%41.png"),
    ]
    assert found.skipped == ()
    assert found.labels() == {"cat": 2, "dog": 1}


def test_size_and_md5_are_those_of_the_bytes(tmp_path, put):
    put("cat/a.png", picture())
    (entry,) = read_local(tmp_path).entries
    assert entry.image is not None
    assert entry.image.size_bytes == len(picture())
    assert entry.image.md5 == hashlib.md5(picture()).hexdigest()


def test_hidden_files_and_folders_are_ignored_and_counted(tmp_path, put):
    for name in (".DS_Store", "cat/.a.png", ".git/cat.png"):
        put(name, b"x")
    put("cat/a.png", picture())
    found = read_local(tmp_path)
    assert ([each.name for each in found.entries], found.skipped, found.hidden) == (["cat/a.png"], (), 3)
    assert found.remarks() == ["hidden files and folders ignored: 3"]


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("cat/notes.txt", b"x", "UnsupportedExtension"),
        ("cat/a.png", b"", "EmptyFile"),
        ("cat/a.png", b"GIF89a" + bytes(99), "InvalidImageFormatException"),
        ("cat/a.jpg", b"\xff\xd8\xff", "InvalidImageFormatException"),
        ("cat/a.png", picture(63, 64), "TooFewPixels"),
        ("cat/a.png", picture(4097, 300), "TooManyPixels"),
        ("cat/a.png", picture(1300, 64), "TooLong"),
        ("a.png", picture(), "NoLabel"),
    ],
)
def test_unusable_files_are_skipped_with_a_reason(tmp_path, put, name, data, code):
    put(name, data)
    put("dog/fine.png", picture())
    found = read_local(tmp_path)
    (skipped,) = found.skipped
    assert (skipped.path, skipped.code) == (str(tmp_path / name), code)
    with pytest.raises(SourceError, match=r"1 files or lines can't be used: .*--skip-invalid"):
        refuse_skipped(found)


def test_a_file_over_15_mb_is_too_large(tmp_path, put):
    with put("cat/a.png", b"").open("r+b") as file:
        file.truncate(MAX_BYTES_S3 + 1)
    put("cat/b.png", picture())
    assert [each.code for each in read_local(tmp_path).skipped] == ["TooLarge"]


def test_links_to_folders_are_not_followed(tmp_path, put):
    put("cat/a.png", picture())
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    assert len(read_local(tmp_path).entries) == 1


def test_a_manifest_keeps_everything_but_the_image_locations(tmp_path, put):
    boxes = {
        "image_size": [{"width": 64, "height": 64, "depth": 3}],
        "annotations": [{"class_id": 1, "left": 1, "top": 2, "width": 3, "height": 4}],
    }
    metadata = {"objects": [{"confidence": 1}], "class-map": {"1": "cat"}, "type": "groundtruth/object-detection"}
    line = {"source-ref": "pictures/a.png", "bb": boxes, "bb-metadata": metadata, "own": [1, None, "x"]}
    put("pictures/a.png", picture())
    put("all.manifest", f"{json.dumps(line)}\n\n{json.dumps(line | {'source-ref': 's3://b/k k'})}\n".encode())
    local, remote = read_local(tmp_path / "all.manifest").entries
    assert (local.image and local.image.key, local.uri) == ("pictures/a.png", None)
    assert (remote.image, remote.uri) == (None, "s3://b/k k")
    for entry in (local, remote):
        assert entry.labels == ("cat",)
        assert {"source-ref": line["source-ref"], **(entry.attributes or {})} == line


def test_images_outside_the_manifests_folder_get_unique_keys(tmp_path, put):
    put("a.png", picture())
    put("b/a.png", picture(shade=1))
    lines = [json.dumps({"source-ref": ref}) for ref in ("../a.png", "a.png", str(tmp_path / "b" / "a.png"))]
    put("b/all.manifest", "\n".join(lines).encode())
    keys = [entry.image.key for entry in read_local(tmp_path / "b/all.manifest").entries if entry.image]
    assert keys == ["000001-a.png", "a.png", "a.png"]


def test_a_broken_manifest_line_is_named(tmp_path, put):
    put("a.manifest", b'{"source-ref": "s3://b/a"}\n{"source-ref": 1}\n')
    with pytest.raises(SourceError, match=r"1 files or lines can't be used: .*a\.manifest, line 2: .*--skip-invalid"):
        refuse_skipped(read_local(tmp_path / "a.manifest"))


def test_no_usable_image_is_an_error_with_the_first_reason(tmp_path, put):
    with pytest.raises(SourceError, match="no such directory or file"):
        read_local(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="needs a folder for each label"):
        read_local(tmp_path)
    put("a.png", picture())
    with pytest.raises(SourceError, match=r"1 can't be used: .*a\.png: it is not in a folder"):
        read_local(tmp_path)


def entry(label: str, md5: str, *, located: bool = False) -> DatasetEntry:
    image = LocalImage(path=Path(label), key=md5, size_bytes=1, md5=md5)
    boxes = {"b": {}, "b-metadata": {"type": DETECTION}}
    return DatasetEntry(image=image, uri=None, labels=(label,), attributes=boxes if located else None)


def test_one_label_is_only_enough_for_object_location():
    with pytest.raises(SourceError, match="needs at least two labels; the images have: cat"):
        check_labels(LocalDataset((entry("cat", "1"),)))
    check_labels(LocalDataset((entry("cat", "1", located=True),)))
    with pytest.raises(SourceError, match="251 labels; a model can have at most 250"):
        check_labels(LocalDataset(tuple(entry(str(n), str(n)) for n in range(251))))


entries = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=60).map(
    lambda pairs: tuple(entry(label, f"{label}{number}") for label, number in pairs)
)


@given(entries, st.floats(0.05, 0.95))
def test_a_split_keeps_all_images_and_copies_together(images: tuple[DatasetEntry, ...], share: float) -> None:
    rest, aside = split_entries(images, share)
    assert sorted(map(id, (*rest, *aside))) == sorted(map(id, images))
    assert not {each.identity for each in rest} & {each.identity for each in aside}
    for label in "abc":
        different = {each.identity for each in images if each.labels == (label,)}
        put_aside = {each.identity for each in aside if each.labels == (label,)}
        if len(different) > 1:
            assert 1 <= len(put_aside) < len(different)
            assert abs(len(put_aside) - share * len(different)) <= 1
        else:
            assert not put_aside


@given(entries, st.randoms(use_true_random=False))
def test_a_split_depends_on_the_bytes_not_on_the_order(images: tuple[DatasetEntry, ...], random) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)
    sets = [{each.identity for each in split_entries(tuple(order), 0.3)[1]} for order in (images, shuffled)]
    assert sets[0] == sets[1]


def test_train_and_test_folders_are_the_two_datasets(tmp_path, put):
    for n, name in enumerate(("train/cat/a.png", "train/dog/b.png", "test/cat/a.png", "Test/dog/c.png")):
        put(name, picture(shade=n))
    put("README.md", b"x")
    found = read_local(tmp_path)
    assert found.divided
    assert [(each.name, each.labels, each.kind) for each in found.entries] == [
        ("Test/dog/c.png", ("dog",), "test"),
        ("test/cat/a.png", ("cat",), "test"),
        ("train/cat/a.png", ("cat",), "train"),
        ("train/dog/b.png", ("dog",), "train"),
    ]
    assert (found.labels(), found.labels("train")) == ({"cat": 2, "dog": 2}, {"cat": 1, "dog": 1})
    assert [each.code for each in found.skipped] == ["NoLabel"]
    assert found.remarks() == []


def test_folders_beside_train_and_test_are_skipped(tmp_path, put):
    for n, name in enumerate(("train/cat/a.png", "test/cat/b.png", "validation/cat/c.png")):
        put(name, picture(shade=n))
    found = read_local(tmp_path)
    assert found.divided
    assert [each.code for each in found.skipped] == ["NoDataset"]


@pytest.mark.parametrize("names", [("train/a.png", "test/b.png"), ("train/a/x.png", "bus/b.png"), ("train/a/x.png",)])
def test_labels_may_be_called_train_and_test(tmp_path, put, names):
    for n, name in enumerate(names):
        put(name, picture(shade=n))
    found = read_local(tmp_path)
    assert not found.divided
    assert {each.labels[0] for each in found.entries} == {name.partition("/")[0] for name in names}


@pytest.mark.parametrize("labels", [("cat", "Cat"), ("cat", "cat "), ("café", "cafe\u0301"), ("big cat", "big  cat")])
def test_labels_that_hardly_differ_are_reported(tmp_path, put, labels):
    for n, label in enumerate(labels):
        put(f"{label}/a.png", picture(shade=n))
    (remark,) = read_local(tmp_path).remarks()
    assert "differ only in case, spaces or Unicode form" in remark
    assert all(repr(label) in remark for label in labels)


def test_identical_images_with_two_labels_are_reported(tmp_path, put):
    for name in ("cat/a.png", "dog/b.png", "dog/c.png"):
        put(f"one/{name}", picture())
    assert read_local(tmp_path / "one").remarks() == [
        "identical images with different labels: 1, for example cat/a.png and dog/b.png"
    ]
    for n, name in enumerate(("train/cat/a.png", "test/cat/a.png", "train/dog/a.png", "test/owl/a.png")):
        put(f"two/{name}", picture(shade=n // 2 * (n + 1)))
    assert read_local(tmp_path / "two").remarks() == [
        "identical images in both datasets: 1, for example test/cat/a.png and train/cat/a.png",
        "labels that only the test dataset has: 'owl'",
        "labels that only the training dataset has: 'dog'",
    ]


def test_a_csv_gives_images_their_labels(tmp_path, put):
    put("pictures/a b.png", picture())
    put("all.csv", b'\xef\xbb\xbfpictures/a b.png,cat,"in, box"\r\n\r\ns3://b/k+%41.png,dog\nimage,label\nx\n')
    found = read_local(tmp_path / "all.csv")
    assert [(each.name, each.labels, each.attributes) for each in found.entries] == [
        ("pictures/a b.png", ("cat", "in, box"), None),
        ("s3://b/k+%41.png", ("dog",), None),
    ]
    assert [each.code for each in found.skipped] == ["Unreadable", "BadLine"]


def test_images_in_two_buckets_are_refused(tmp_path, put):
    lines = [json.dumps({"source-ref": f"s3://{bucket}/k{n}"}) for n, bucket in enumerate(("one", "two", "two"))]
    put("all.manifest", "\n".join(lines).encode())
    with pytest.raises(SourceError, match=r"are in 2 buckets: two \(2 images\), one \(1 images\)"):
        read_local(tmp_path / "all.manifest")
