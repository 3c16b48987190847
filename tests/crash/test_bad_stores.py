"""Output roots that fill up, refuse access or lack conditional writes: one error sentence, and a correct resume."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from crash.harness import OutputRoot, started, wait_for_rows
from servers import aws_env, client, without_code

FLAGS = ("--run-id", "r", "--shard-size", 5, "--json")
FILLER_BYTES = 64 * 1024


@pytest.fixture
def mounted(tmp_path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def one_sentence(err: bytes) -> str:
    """The error on stderr; fails if there is a traceback."""
    text = without_code(err.decode())
    assert "Traceback" not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("batchcl: "), text
    return last


def test_a_disk_that_fills_up_ends_the_run_resumably(mounted, jobs, seaweed, expected_tables, cli):
    out = OutputRoot(str(mounted / "out"), seaweed)
    job = jobs["local"]
    with started(*job.args(out, *FLAGS, "--max-tps", 20), env=job.env) as process:
        wait_for_rows(out, 5)
        fill(mounted / "filler")
        _, err = process.communicate(timeout=60)
    message = one_sentence(err)
    assert process.returncode == 4, message
    assert str(mounted) in message
    assert "No space left on device" in message
    (mounted / "filler").unlink()
    resumed = cli(*job.args(out, *FLAGS), env=job.env)
    assert resumed.code == 0, resumed.err
    assert out.table() == expected_tables["local"]


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as filler:
        try:
            while filler.write(b"x" * FILLER_BYTES):
                pass
        except OSError:
            return


def test_a_read_only_root_is_refused(mounted, jobs, seaweed):
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    out = OutputRoot(str(mounted), seaweed)
    job = jobs["local"]
    with started(*job.args(out, *FLAGS), env=job.env) as process:
        _, err = process.communicate(timeout=60)
    message = one_sentence(err)
    assert process.returncode == 5, message
    assert str(mounted) in message
    assert "Read-only file system" in message


@dataclass
class Proxy:
    """A proxy in front of an S3 server.

    Attributes:
        endpoint: its URL.
        refuse_after: number of PUTs that are forwarded; later ones get 403. None refuses none.
        refuse_reads: refuse GETs as well from then on.
        conditional: whether PUT with If-None-Match is supported.
    """

    endpoint: str = ""
    refuse_after: int | None = None
    refuse_reads: bool = False
    conditional: bool = True
    puts: list[str] = field(default_factory=list)

    def refuses(self, method: str, path: str) -> bool:
        """Whether this request gets 403."""
        if method == "PUT":
            self.puts.append(path)
        is_refusing = self.refuse_after is not None and len(self.puts) > self.refuse_after
        return is_refusing and (method == "PUT" or self.refuse_reads)


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy of `target` in a thread. It forwards the Host header, so signatures stay valid."""
    proxy = Proxy()
    loop = asyncio.new_event_loop()
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with ClientSession(auto_decompress=False) as session:

            async def handle(request: web.Request) -> web.Response:
                body = await request.read()
                if proxy.refuses(request.method, request.path):
                    refusal = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                    return web.Response(status=403, body=refusal, content_type="application/xml")
                if "If-None-Match" in request.headers and not proxy.conditional:
                    await asyncio.to_thread(_delete, target, request.path)
                url = target + request.raw_path
                async with session.request(
                    request.method, URL(url, encoded=True), headers=request.headers, data=body or None
                ) as answer:
                    kept = {k: v for k, v in answer.headers.items() if k.lower() not in {"transfer-encoding", "date"}}
                    return web.Response(status=answer.status, headers=kept, body=await answer.read())

            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await over.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def _delete(endpoint: str, path: str) -> None:
    """Delete an object if it exists, so that the PUT that follows replaces it."""
    bucket, _, key = path.removeprefix("/").partition("/")
    s3 = client("s3", endpoint)
    if any(each["Key"] == key for each in s3.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", ())):
        s3.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize(("puts", "reads"), [(3, False), (25, True)])
def test_a_bucket_that_starts_refusing_ends_the_run_resumably(puts, reads, jobs, place, seaweed, expected_tables, cli):
    out = place("s3")
    job = jobs["local"]
    with proxied(seaweed) as proxy:
        env = job.env | aws_env(s3=proxy.endpoint)
        proxy.refuse_after, proxy.refuse_reads = puts, reads
        with started(*job.args(out, *FLAGS), env=env) as process:
            _, err = process.communicate(timeout=60)
        message = one_sentence(err)
        assert process.returncode in {4, 5}, message
        assert out.root in message
        assert "403" in message or "denied" in message.lower()
        assert len(proxy.puts) > puts
        assert len(out.uris()) == len(set(out.uris())) < job.images
        proxy.refuse_after = None
        resumed = cli(*job.args(out, *FLAGS), env=env)
        assert resumed.code == 0, resumed.err
    assert resumed.json["planned"] == job.images
    assert out.table() == expected_tables["local"]


def test_a_store_without_conditional_writes_needs_single_writer(jobs, place, seaweed, expected_tables, cli):
    out = place("s3")
    job = jobs["local"]
    with proxied(seaweed) as proxy:
        proxy.conditional = False
        env = job.env | aws_env(s3=proxy.endpoint)
        with started(*job.args(out, *FLAGS), env=env) as process:
            _, err = process.communicate(timeout=60)
        message = one_sentence(err)
        assert process.returncode == 5, message
        assert "--single-writer" in message
        assert out.files("runs", "") == {}, "a refused run leaves no files"
        single = cli(*job.args(out, *FLAGS, "--single-writer"), env=env)
        assert single.code == 0, single.err
    assert out.table() == expected_tables["local"]
