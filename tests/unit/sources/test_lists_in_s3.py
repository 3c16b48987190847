"""Lists in S3, on a server that stores keys unchanged."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, SourceError, UnreachableError
from batchcl.sources.files import copy_object
from servers import aws_env, client
from unit.sources.lists import columns, inventory, keys, read, row


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name, value in aws_env(s3=moto).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return client("s3", moto)


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    name = f"lists-{abs(hash(request.node.name))}"
    s3.create_bucket(Bucket=name)
    return name


def upload(s3: Any, bucket: str, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.put_object(Bucket=bucket, Key=f"{prefix}{path.relative_to(folder)}", Body=path.read_bytes())


def test_inventory_keys_with_a_missing_slash_are_found(s3: Any, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "inv").mkdir()
    inventory(tmp_path / "inv", [row("a b"), row("c"), row("d")], files=3)
    upload(s3, bucket, tmp_path / "inv", "inv//acme-photos/daily/")
    aws = Aws.from_environment()
    folder = f"s3://{bucket}/inv//acme-photos/daily"
    assert sorted(keys(f"{folder}/2026-11-20T01-00Z/manifest.json", aws=aws)) == ["a b", "c", "d"]
    assert sorted(keys(f"{folder}/", aws=aws, kind="inventory")) == ["a b", "c", "d"]
    assert list((tmp_path / "tmp").iterdir()) == [], "the temporary copies are removed"


def test_errors_of_an_inventory_in_s3_are_reported(s3: Any, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "inv").mkdir()
    inventory(tmp_path / "inv", [row("a")], files=1)
    (data,) = (tmp_path / "inv" / "data").iterdir()
    data.write_bytes(data.read_bytes() + b"x")
    upload(s3, bucket, tmp_path / "inv", "inv/")
    aws = Aws.from_environment()
    with pytest.raises(SourceError, match=r"0\.csv\.gz is corrupt: its MD5 is"):
        read(f"s3://{bucket}/inv/2026-11-20T01-00Z/manifest.json", aws=aws)
    with pytest.raises(SourceError, match=r"s3://.*/manifest\.json does not exist; check the path"):
        read(f"s3://{bucket}/other/manifest.json", aws=aws, kind="inventory")
    with pytest.raises(SourceError, match="contains no S3 Inventory"):
        read(f"s3://{bucket}/inv/data", aws=aws, as_of="2026-11-20")
    with pytest.raises((SourceError, CredentialsError), match=r"no bucket|access denied"):
        read("s3://missing-bucket-of-lists/inv", aws=aws, kind="inventory")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_symlink_file_in_s3_leads_to_its_manifest(s3: Any, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "inv").mkdir()
    inventory(tmp_path / "inv", [row("a b")], files=1)
    upload(s3, bucket, tmp_path / "inv", "inv/")
    link = "inv/hive/dt=2026-11-20-01-00/symlink.txt"
    s3.put_object(Bucket=bucket, Key=link, Body=f"s3://{bucket}/inv/data/x.csv.gz\n".encode())
    assert keys(f"s3://{bucket}/{link}", aws=Aws.from_environment()) == ["a b"]


def test_a_glob_in_s3_matches_keys_exactly(s3: Any, bucket: str) -> None:
    for key, names in (("in/../1.txt", "abc"), ("in/2.txt", "cd"), ("in/3.text", "x"), ("other/1.txt", "y")):
        s3.put_object(Bucket=bucket, Key=key, Body="".join(f"s3://b/{name}\n" for name in names).encode())
    aws = Aws.from_environment()
    assert keys(f"s3://{bucket}/in/*.txt", aws=aws) == ["a", "b", "c", "d"]
    with pytest.raises(SourceError, match="no object matches"):
        read(f"s3://{bucket}/in/9*.txt", aws=aws)


def test_no_list_in_s3_can_name_local_files(s3: Any, bucket: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    lists = {
        "a.txt": (f"s3://b/k\n{secret}\n", {}),
        "b.txt": (f"{secret}\n", {"kind": "keys"}),
        "c.manifest": (f'{{"source-ref":"{secret}"}}\n', {}),
        "d.csv": (f"{secret},cat\n", {"kind": "label-csv"}),
        "e.jsonl": (f'{{"image":"{secret}"}}\n', {"uri_field": "image"}),
        "f.csv": (f"uri\n{secret}\n", {"columns": columns(uri="uri")}),
    }
    for key, (text, options) in lists.items():
        s3.put_object(Bucket=bucket, Key=key, Body=text.encode())
        with pytest.raises(
            SourceError, match=r" line \d: .*(can't name local files|is neither s3://bucket/key nor a path)"
        ):
            read(f"s3://{bucket}/{key}", aws=Aws.from_environment(), **options)
    s3.put_object(Bucket=bucket, Key="g.txt", Body=f"{secret}\n".encode())
    with pytest.raises(SourceError, match="is s3://bucket/key or an existing file"):
        read(f"s3://{bucket}/g.txt", aws=Aws.from_environment())


class Interrupting:
    """A client whose first `times` responses are interrupted after `at` bytes."""

    def __init__(self, client: Any, *, times: int, at: int, between: Callable[[], object] = lambda: None) -> None:
        self._client = client
        self._times = times
        self._at = at
        self._between = between

    async def get_object(self, **arguments: str) -> dict[str, Any]:
        response: dict[str, Any] = await self._client.get_object(**arguments)
        if self._times:
            self._times -= 1
            return response | {"Body": InterruptedBody(response["Body"], self._at, self._between)}
        return response


class InterruptedBody:
    """A response body that fails after `remaining` bytes, calling `between` first."""

    def __init__(self, body: Any, remaining: int, between: Callable[[], object]) -> None:
        self._body = body
        self._remaining = remaining
        self._between = between

    async def read(self, size: int) -> bytes:
        if not self._remaining:
            self._between()
            raise aiohttp.ClientPayloadError("Response payload is not completed")
        data: bytes = await self._body.read(min(size, self._remaining))
        self._remaining -= len(data)
        return data


@pytest.mark.parametrize(("times", "at"), [(1, 7), (5, 3), (2, 0)])
def test_an_interrupted_copy_continues_after_the_last_byte(s3: Any, bucket: str, times: int, at: int) -> None:
    text = b"".join(b"s3://b/%d\n" % number for number in range(100))
    s3.put_object(Bucket=bucket, Key="a.txt", Body=text)

    async def main() -> None:
        async with Aws.from_environment().s3(region="us-east-1") as client:
            path = await copy_object(Interrupting(client, times=times, at=at), f"s3://{bucket}/a.txt", md5=_md5(text))
            assert path is not None
            assert path.read_bytes() == text
            path.unlink()

    anyio.run(main)


def test_a_copy_fails_after_many_interruptions_or_a_change(s3: Any, bucket: str, tmp_path: Path) -> None:
    s3.put_object(Bucket=bucket, Key="a.txt", Body=b"s3://b/1\n" * 100)

    def change() -> None:
        s3.put_object(Bucket=bucket, Key="a.txt", Body=b"s3://b/2\n" * 100)

    async def copied(**cuts: Any) -> None:
        async with Aws.from_environment().s3(region="us-east-1") as client:
            await copy_object(Interrupting(client, **cuts), f"s3://{bucket}/a.txt")

    for cuts, kind, words in (
        ({"times": 6, "at": 9}, UnreachableError, "payload is not completed; check the endpoint"),
        ({"times": 1, "at": 9, "between": change}, SourceError, "changed while it was copied"),
    ):
        with pytest.raises(kind, match=words):
            anyio.run(partial(copied, **cuts))
    assert list((tmp_path / "tmp").iterdir()) == []


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
