"""Output roots that fill up, refuse or forget: a sentence and an exit code, and each image once when they are well."""

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

from crash.harness import Place, started, wait_for_rows
from servers import aws_env, client

FLAGS = ("--run-id", "r", "--shard-size", 5, "--json")
FILLER_BYTES = 64 * 1024


@pytest.fixture
def mounted(tmp_path) -> Iterator[Path]:
    """A disk of its own, of one megabyte."""
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
    """The last line, which says why it ended; a traceback fails the test."""
    text = err.decode()
    assert "Traceback" not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("batchcl: "), text
    return last


def test_a_disk_that_fills_up_ends_the_run_resumably(mounted, works, seaweed, undisturbed, cli):
    out = Place(str(mounted / "out"), seaweed)
    work = works["local"]
    with started(*work.args(out, *FLAGS, "--max-tps", 20), env=work.env) as process:
        wait_for_rows(out, 5)
        fill(mounted / "filler")
        _, err = process.communicate(timeout=60)
    said = one_sentence(err)
    assert process.returncode == 4, said
    assert str(mounted) in said
    assert "No space left on device" in said
    (mounted / "filler").unlink()
    resumed = cli(*work.args(out, *FLAGS), env=work.env)
    assert resumed.code == 0, resumed.err
    assert out.table() == undisturbed["local"]


def fill(path: Path) -> None:
    """Take all the space there is."""
    with path.open("wb", buffering=0) as filler:
        try:
            while filler.write(b"x" * FILLER_BYTES):
                pass
        except OSError:
            return


def test_a_read_only_root_is_refused(mounted, works, seaweed):
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    out = Place(str(mounted), seaweed)
    work = works["local"]
    with started(*work.args(out, *FLAGS), env=work.env) as process:
        _, err = process.communicate(timeout=60)
    said = one_sentence(err)
    assert process.returncode == 5, said
    assert str(mounted) in said
    assert "Read-only file system" in said


@dataclass
class Proxy:
    """An S3 server in front of another one.

    Attributes:
        endpoint: where it listens.
        refuse_after: so many PUTs are let through, the rest answered with 403; None refuses none.
        refuse_reads: GETs too, from then on.
        conditional: whether a PUT with If-None-Match leaves an object alone that is there.
    """

    endpoint: str = ""
    refuse_after: int | None = None
    refuse_reads: bool = False
    conditional: bool = True
    puts: list[str] = field(default_factory=list)

    def refuses(self, method: str, path: str) -> bool:
        """Whether this request comes too late."""
        if method == "PUT":
            self.puts.append(path)
        late = self.refuse_after is not None and len(self.puts) > self.refuse_after
        return late and (method == "PUT" or self.refuse_reads)


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy of `target` that runs in a thread during the block; signatures hold, as it passes Host on."""
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
                    await asyncio.to_thread(_forget, target, request.path)
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


def _forget(endpoint: str, path: str) -> None:
    bucket, _, key = path.removeprefix("/").partition("/")
    client("s3", endpoint).delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize(("puts", "reads"), [(3, False), (25, True)])
def test_a_bucket_that_begins_to_refuse_ends_the_run_resumably(puts, reads, works, place, seaweed, undisturbed, cli):
    out = place("s3")
    work = works["local"]
    with proxied(seaweed) as proxy:
        env = work.env | aws_env(s3=proxy.endpoint)
        proxy.refuse_after, proxy.refuse_reads = puts, reads
        with started(*work.args(out, *FLAGS), env=env) as process:
            _, err = process.communicate(timeout=60)
        said = one_sentence(err)
        assert process.returncode in {4, 5}, said
        assert out.root in said
        assert "403" in said or "denied" in said.lower()
        assert len(proxy.puts) > puts
        assert len(out.uris()) == len(set(out.uris())) < work.images
        proxy.refuse_after = None
        resumed = cli(*work.args(out, *FLAGS), env=env)
        assert resumed.code == 0, resumed.err
    assert resumed.json["planned"] == work.images
    assert out.table() == undisturbed["local"]


def test_a_store_without_conditional_writes_needs_single_writer(works, place, seaweed, undisturbed, cli):
    out = place("s3")
    work = works["local"]
    with proxied(seaweed) as proxy:
        proxy.conditional = False
        env = work.env | aws_env(s3=proxy.endpoint)
        with started(*work.args(out, *FLAGS), env=env) as process:
            _, err = process.communicate(timeout=60)
        said = one_sentence(err)
        assert process.returncode == 5, said
        assert "--single-writer" in said
        assert out.files("runs", "") == {}, "nothing stays behind"
        single = cli(*work.args(out, *FLAGS, "--single-writer"), env=env)
        assert single.code == 0, single.err
    assert out.table() == undisturbed["local"]
