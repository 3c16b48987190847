"""Members of archives: what they have to wait for, and whose fault it is when they aren't given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from batchcl.aws.session import Aws
from batchcl.errors import HostError
from batchcl.images import ArchiveMember, ImageRef
from batchcl.reading import archives
from batchcl.reading.archives import ArchiveReader
from virtual import run_virtual


def member(archive: str, *, bucket: str = "") -> ImageRef:
    return ImageRef(
        uri=f"{archive}#a.png", bucket=bucket, key="a.png", size_bytes=3, member=ArchiveMember(archive, offset=2)
    )


def reader(client: Any = None) -> ArchiveReader:
    class Fake:
        def blocking_s3(self, **_arguments: Any) -> Any:
            return client

    return ArchiveReader(cast(Aws, Fake()), region="eu-west-1")


def test_who_waits_for_other_members_does_not_run_out_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty reads, one at a time, take twice the deadline of one."""
    monkeypatch.setattr(archives, "_THREADS", 1)
    path = tmp_path / "x.tar"
    path.write_bytes(b"..abc")
    found: list[bytes] = []

    async def slowly(work: Callable[[ImageRef], bytes], image: ImageRef, **_: Any) -> bytes:
        await anyio.sleep(archives._DEADLINE_S / 10)
        return work(image)

    monkeypatch.setattr(anyio.to_thread, "run_sync", slowly)

    async def main() -> None:
        slow = ArchiveReader(cast(Aws, None), region="eu-west-1")

        async def read() -> None:
            found.append(await slow.read(member(str(path))))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(read)

    run_virtual(main)
    assert found == [b"abc"] * 20


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject"),
        EndpointConnectionError(endpoint_url="https://s3"),
    ],
)
def test_an_archive_that_s3_does_not_give_tells_nothing_of_the_service(error: Exception) -> None:
    class Failing:
        def get_object(self, **_arguments: Any) -> Any:
            raise error

    with pytest.raises(HostError):
        anyio.run(reader(Failing()).read, member("x.tar", bucket="b"))
