from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchcl.sources.tar import Member, MemberKind, TarError, is_tar, walk

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def packed(
    *members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT, encoding: str = "utf-8"
) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form, encoding=encoding, errors="surrogateescape") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def special(name: str, kind: bytes, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def members(data: bytes) -> list[Member]:
    return list(walk(lambda offset, size: data[offset : offset + size]))


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)


@given(st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=6), st.sampled_from(FORMATS[1:]))
@example([("../../etc/passwd", b"x"), ("/etc/passwd", b"y"), ("a//b", b""), ("new\nline", b"z" * 512)], FORMATS[1])
def test_members_have_their_exact_name_and_offset(files: list[tuple[str, bytes]], form: int) -> None:
    data = packed(*files, form=form)
    listed = members(data)
    assert [(each.name, data[each.offset : each.offset + each.size]) for each in listed] == files
    assert {each.kind for each in listed} <= {MemberKind.FILE}


@pytest.mark.parametrize("form", FORMATS)
def test_members_that_are_not_files_have_their_kind(form: int) -> None:
    data = packed(
        special("dir", tarfile.DIRTYPE),
        special("sym", tarfile.SYMTYPE, linkname="/etc/passwd"),
        special("hard", tarfile.LNKTYPE, linkname="../x", size=7),
        special("fifo", tarfile.FIFOTYPE),
        special("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        ("a.png", b"A"),
        special("label", b"V"),
        form=form,
    )
    assert [(each.name, each.kind.value) for each in members(data)] == [
        ("dir", "folders"),
        ("sym", "links"),
        ("hard", "links"),
        ("fifo", "devices and pipes"),
        ("null", "devices and pipes"),
        ("a.png", "files"),
        ("label", "members of unknown types"),
    ]


@pytest.mark.parametrize("form", ["gnu", "posix", "v7", "ustar"])
def test_archives_of_gnu_tar_with_sparse_files_are_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.png").write_bytes(b"A" * 700)
    (tmp_path / "link.png").hardlink_to(tmp_path / "a.png")
    with (tmp_path / "holes.png").open("wb") as holes:
        for place in range(0, 60 * 65536, 65536):
            holes.seek(place)
            holes.write(b"x")
    (tmp_path / ("n" * 90 + ".png")).write_bytes(b"N")
    supports_sparse = form in {"gnu", "posix"}
    command = [
        "tar",
        f"--format={form}",
        *(["-S"] if supports_sparse else []),
        "-cf",
        "x.tar",
        "a.png",
        "link.png",
        "holes.png",
        "n" * 90 + ".png",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "x.tar").read_bytes()
    listed = {each.name.rpartition("/")[2]: each for each in members(data)}
    assert data[listed["a.png"].offset :][:700] == b"A" * 700
    assert listed["link.png"].kind is MemberKind.LINK
    assert data[listed["n" * 90 + ".png"].offset :][:1] == b"N"
    assert len(listed) == 4
    assert (MemberKind.SPARSE in {each.kind for each in listed.values()}) is supports_sparse


def test_sizes_over_8_gb_and_names_not_in_utf8_are_read() -> None:
    info = special("big", tarfile.REGTYPE, size=9 << 30)
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarError, match="truncated in member 1, 'big'"):
        members(header)
    assert members(packed(("\udcff.png", b"x"), form=tarfile.GNU_FORMAT))[0].name == "\udcff.png"


def test_global_pax_headers_and_pax_sizes_are_read() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}) as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        info.pax_headers = {"size": "3"}
        archive.addfile(info, io.BytesIO(b"abc"))
    data = sink.getvalue()
    assert [(each.name, data[each.offset :][: each.size]) for each in members(data)] == [("a.png", b"abc")]


GOOD = packed(("a.png", b"A" * 600), ("b.png", b"B" * 100), ("c.png", b""))


@pytest.mark.parametrize("cut", [1, 511, 513, 1000, 1535, 1536, 1600, 2048, 2140, 2559, 2560, 3000, 3071, 3072])
def test_a_truncated_archive_yields_its_complete_members(cut: int) -> None:
    data = GOOD[:cut]
    whole = [each for each in members(GOOD) if each.offset + each.size <= cut]
    walking = walk(lambda offset, size: data[offset : offset + size])
    assert [next(walking) for _ in whole] == whole
    with pytest.raises(TarError, match="archive is truncated"):
        next(walking)


@given(st.integers(0, 3 * 512 - 1), st.integers(1, 255))
def test_a_corrupt_header_is_never_taken_for_the_end(place: int, by: int) -> None:
    begin = (0, 1536, 2560)[place // 512] + place % 512
    data = bytearray(GOOD)
    data[begin] = (data[begin] + by) % 256
    try:
        listed = members(bytes(data))
    except TarError:
        return
    assert len(listed) == 3  # the checksum's own digits may be written in several ways


@pytest.mark.parametrize(
    ("kind", "size"), [(tarfile.XHDTYPE, 2 << 30), (tarfile.GNUTYPE_LONGNAME, 1 << 40), (tarfile.XGLTYPE, -1)]
)
def test_a_huge_header_is_refused_without_reading_it(kind: bytes, size: int) -> None:
    sizes: list[int] = []
    block = special("x", kind, size=size).tobuf(tarfile.GNU_FORMAT)

    def read(offset: int, count: int) -> bytes:
        sizes.append(count)
        return block if not offset else b"x" * count

    with pytest.raises(TarError, match="corrupt at byte 512"):
        list(walk(read))
    assert max(sizes) <= 512


@pytest.mark.parametrize(
    "record", [b"5 a=b\n", b"0 a=b\n", b"-6 a=b\n", b"6 ab\n", b"99 path=x\n", b"x", b"13 size=1e300\n"]
)
def test_invalid_pax_records_are_refused(record: bytes) -> None:
    block = special("x", tarfile.XHDTYPE, size=len(record)).tobuf(tarfile.USTAR_FORMAT)
    data = block + record.ljust(512, b"\0") + GOOD
    with pytest.raises(TarError, match="corrupt"):
        members(data)


def test_tar_is_detected_by_its_first_header() -> None:
    assert is_tar(GOOD)
    assert is_tar(packed(("a", b""), form=tarfile.USTAR_FORMAT)[:512])
    assert not is_tar(GOOD[:511])
    assert not is_tar(b"\0" * 10240)
    assert not is_tar(b"s3://bucket/key\n" * 100)
