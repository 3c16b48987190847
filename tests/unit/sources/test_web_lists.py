"""Lists that name images on the web: with leave, and without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl.errors import SourceError
from unit.sources.lists import read

GOOD = ["https://example.com/a%20b+c.png?sign=%2f&x=1#part", "http://[2606:4700::1]:8080/é.png", "s3://b/k"]


def written(folder: Path, references: list[str]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A list of each kind that may name images on the web."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "keys": ("".join(f"{each}\n" for each in references), {}),
        "manifest": ("".join(json.dumps({"source-ref": each}) + "\n" for each in references), {}),
        "lines": ("".join(json.dumps({"url": each}) + "\n" for each in references), {"uri_field": "url"}),
        "labels": ("".join(f'"{each}",cat\n' for each in references), {"kind": "label-csv"}),
        "csv": ("uri,size_bytes\n" + "".join(f'"{each}",1\n' for each in references), {"kind": "table"}),
    }
    found = {}
    for kind, (text, options) in ways.items():
        path = folder / kind
        path.write_text(text, encoding="utf-8")
        found[kind] = (path, options)
    pq.write_table(pa.table({"uri": references}), folder / "table.parquet")
    return found | {"table": (folder / "table.parquet", {})}


@pytest.mark.parametrize("kind", ["keys", "manifest", "lines", "labels", "csv", "table"])
def test_addresses_are_images_letter_by_letter_where_they_are_allowed(tmp_path: Path, kind: str) -> None:
    path, options = written(tmp_path, GOOD)[kind]
    if kind == "csv":
        from batchcl.sources.tables import Columns  # noqa: PLC0415

        options["columns"] = Columns(uri="uri")
    found = read(path, allow_http_sources=True, **options)
    assert [image.uri for image in found.images] == GOOD
    assert [image.key for image in found.images][:2] == GOOD[:2]
    assert [image.web for image in found.images] == [True, True, False]
    assert found.checked.buckets == {"b"}
    with pytest.raises(SourceError, match=r"neither s3://bucket/key nor a path; images on the web need --allow-http-"):
        read(path, **options)


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "https:///x.png",
        "http://h:0/x",
        "http://h:99999/x",
        "http://[::1/x",
        "http://h/a b.png",
        "http://h/\x7f",
    ],
)
def test_what_is_no_address_is_a_bad_line(tmp_path: Path, address: str) -> None:
    path, options = written(tmp_path, ["https://example.com/a.png", address])["manifest"]
    with pytest.raises(SourceError, match=r"line 2: .* is no address on the web"):
        read(path, allow_http_sources=True, **options)


def test_an_address_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    path, options = written(tmp_path, ["https://me:secret@example.com/a.png"])["keys"]
    with pytest.raises(SourceError, match=r"line 1: the address on example\.com holds a user or password") as caught:
        read(path, allow_http_sources=True, **options)
    assert "secret" not in str(caught.value)
    with pytest.raises(SourceError, match="holds a user or password") as caught:
        read(path, **options)
    assert "secret" not in str(caught.value)


def test_an_address_is_no_source_by_itself() -> None:
    with pytest.raises(SourceError, match="is on the web: write such addresses into a list"):
        read("https://example.com/a.png", allow_http_sources=True)
