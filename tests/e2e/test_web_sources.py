"""Images on the web through a whole run. The real command doesn't connect to this machine, so Python lets it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import batchcl
from batchcl.reading import web
from servers import aws_env


class Quiet(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, folder: Path, **more: Any) -> None:
        super().__init__(*arguments, directory=str(folder), **more)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def host(demo) -> Iterator[str]:
    """A web server with the demo's pictures."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Quiet(*given, folder=demo.data.images))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def addresses(demo, host, tmp_path: Path) -> Path:
    names = sorted(path.name for path in demo.data.images.iterdir())[:5]
    path = tmp_path / "addresses.txt"
    path.write_text("".join(f"{host}/{name}?n={n}\n" for n, name in enumerate(names)) + f"{host}/missing.png\n")
    return path


def test_a_list_of_addresses_needs_leave_and_reaches_no_private_address(cli, demo, service, addresses, tmp_path):
    job = ("run", addresses, "--model", demo.arn, "--out", tmp_path / "out")
    refused = cli(*job, env=aws_env(service))
    assert refused.code == 2
    assert "addresses.txt line 1: 'http://127.0.0.1:" in refused.err
    assert "images on the web need --allow-http-sources" in refused.err
    private = cli(*job, "--allow-http-sources", "--json", env=aws_env(service))
    assert private.code == 3, private.err
    assert private.json | {"planned": 6, "failed": 6, "calls": 0} == private.json
    rows = pl.read_parquet(f"{tmp_path}/out/failures/**/*.parquet")
    assert set(rows["error_code"]) == {"PrivateAddress"}


def test_images_on_the_web_are_scored(demo, service, addresses, host, tmp_path, monkeypatch):
    for name, value in aws_env(service).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(web.open_web_reader.__wrapped__, "__kwdefaults__", _loopback())  # type: ignore[attr-defined]
    job = batchcl.Job(
        sources=(str(addresses),), model=demo.arn, out=str(tmp_path / "out"), allow_http_sources=True, max_failures="1"
    )
    done = batchcl.run_sync(job)
    assert (done.scored, done.failed) == (5, 1)
    rows = pl.read_parquet(f"{tmp_path}/out/results/**/*.parquet")
    assert set(rows["uri"]) == set(addresses.read_text().splitlines()[:5])
    assert set(rows["bucket"]) == {""}
    failed = pl.read_parquet(f"{tmp_path}/out/failures/**/*.parquet")
    assert failed.select("uri", "error_code").rows() == [(f"{host}/missing.png", "Http404")]


def _loopback() -> dict[str, Any]:
    """The reader's defaults, but for its judgement of addresses."""
    defaults = dict(web.open_web_reader.__wrapped__.__kwdefaults__)  # type: ignore[attr-defined]
    return defaults | {"socket_for": lambda info: socket.socket(*info[:3])}
