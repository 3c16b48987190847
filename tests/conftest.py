"""Fixtures: the emulator for Rekognition, SeaweedFS and moto for S3, and the CLI."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, chdir, contextmanager
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from unittest.mock import patch

import anyio
import botocore.hooks
import botocore.session
import polars as pl
import pytest
from botocore.hooks import EventAliaser, HierarchicalEmitter
from hypothesis import settings

from batchcl.emulator.demo import demo_data, demo_model
from certificates import certificates
from commands import run_command
from crash.harness import started
from processes import accepts_kwargs, cached_loader
from reports import HostileReport, hostile_report
from servers import (
    CommandResult,
    Demo,
    aws_env,
    run_process,
    running_seaweed,
    serving,
    start_model,
)

settings.register_profile("busy machine", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "30")))
settings.load_profile("busy machine")
pl.Config.set_engine_affinity("in-memory")
"""The default engine has native threads with rare races that are known upstream."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect in one worker and then in the others: in a fresh clone the first one compiles the tests for all.

    What is collected lives to the end: the garbage collector need not look at it, and only seldom at what tests import.
    """
    first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    with Path(__file__).open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if first else fcntl.LOCK_SH)
        gc.disable()
        try:
            return (yield)
        finally:
            gc.freeze()
            gc.set_threshold(2_000, 10, 100)
            gc.enable()


_LONGEST = (
    "test_contract.py::",
    "test_workflow.py::test_the_page",
    "test_workflow.py::test_the_cookbook",
    "test_docs.py::test_python_examples",
    "test_long_run.py::test_twelve_hours",
    "test_two_writers.py::test_a_process_that_wakes",
    "test_emulator_aws_cli.py::",
    "test_demo.py::",
    "test_hostile.py::test_decompression_bombs",
    "test_soak.py::",
    "test_run_s3.py::test_throttling",
    "test_nightly.py::test_corrupt",
    "test_report.py::test_two_nights",
    "test_refusals.py::test_an_unreachable",
    "test_credentials.py::test_rotated_keys",
    "test_model.py::test_the_run_restarts",
    "test_state_machine.py::TestNights",
    "test_permissions.py::test_the_run_policy",
    "test_pace.py::test_a_second_run",
)
"""Tests of five seconds and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that both processors are busy all the time.

    Each worker of pytest-xdist gets consecutive tests to begin with. It starts with its part of the longest ones:
    otherwise one of them begins when the other workers have nothing left to do. Then it has files of each folder:
    tests of some folders compute, those of others mostly wait for processes.
    """
    is_long = re.compile("|".join(map(re.escape, _LONGEST))).search
    longest: dict[Path, list[pytest.Item]] = defaultdict(list)
    others: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        (longest if is_long(item.nodeid) else others)[item.path].append(item)
    before: dict[Path, int] = {}
    sizes: Counter[Path] = Counter()
    for path, found in others.items():
        before[path] = sizes[path.parent]
        sizes[path.parent] += len(found)
    spread = sorted(others, key=lambda path: before[path] / sizes[path.parent])
    rest = chain.from_iterable(others[path] for path in spread)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ends = [len(items) * (n + 1) // workers for n in range(workers)]
    items.clear()
    for n, end in enumerate(ends):
        items += chain.from_iterable(list(longest.values())[n::workers])
        items += islice(rest, end - len(items))


@pytest.fixture(scope="session", autouse=True)
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Share what each command and each client would read or compute again: botocore's data files and event names.

    And trust one certificate instead of the 140 of a public bundle, which each client and each process would parse.
    """
    name_of = cache(partial(EventAliaser._alias_event_name, EventAliaser(HierarchicalEmitter())))

    _, bundle = certificates(tmp_path_factory.mktemp("certificates"))
    uses_index = "BATCHCL_INSTALLERS" in os.environ  # whose certificate is another one
    trusted = {} if uses_index else {"REQUESTS_CA_BUNDLE": str(bundle)}
    with (
        patch.object(botocore.session, "create_loader", cached_loader),
        patch.object(botocore.hooks, "accepts_kwargs", accepts_kwargs),
        patch.object(EventAliaser, "_alias_event_name", lambda _self, name: name_of(name)),
        patch.dict(os.environ, trusted),
    ):
        os.environ.pop("AWS_CA_BUNDLE", None)
        yield


@contextmanager
def shared_by_workers(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A directory that all test workers share; one of them has it at a time."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo's model, trained once for all test workers. Its state is read-only: servers use copies."""
    with shared_by_workers(tmp_path_factory, "demo") as shared:
        state, arn = shared / "state", shared / "arn"
        if not arn.exists():
            arn.write_text(anyio.run(demo_model, state))
    return Demo(state, arn.read_text(), demo_data(tmp_path_factory.mktemp("demo"), state))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> HostileReport:
    """The report of a root whose names, labels and messages try to break its page, written once for all workers."""
    with shared_by_workers(tmp_path_factory, "hostile") as shared:
        written = shared / "written"
        if not written.exists():
            written.write_bytes(pickle.dumps(hostile_report(shared)))
        report: HostileReport = pickle.loads(written.read_bytes())
    return report


@pytest.fixture(scope="session")
def clean_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables without any AWS settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BATCHCL_"))}
    return kept | {"HOME": str(tmp_path_factory.mktemp("home")), "AWS_EC2_METADATA_DISABLED": "true", "COLUMNS": "120"}


@pytest.fixture
def cli(clean_env: dict[str, str]) -> Callable[..., CommandResult]:
    """Run a command in the test's own process, which saves the time of imports."""

    def run(
        *args: object, env: Mapping[str, str] | None = None, stdin: bytes = b"", cwd: Path | None = None
    ) -> CommandResult:
        with patch.dict(os.environ, clean_env | dict(env or {}), clear=True), chdir(cwd or Path.cwd()):
            return run_command("", *args, stdin=stdin)

    return run


@pytest.fixture
def cli_process(clean_env: dict[str, str]) -> Callable[..., CommandResult]:
    """Run a command in a process of its own."""

    def run(
        *args: object, env: Mapping[str, str] | None = None, stdin: bytes = b"", cwd: Path | None = None
    ) -> CommandResult:
        return run_process(*args, env=clean_env | dict(env or {}), stdin=stdin, cwd=cwd)

    return run


@pytest.fixture
def running(clean_env: dict[str, str]) -> Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]:
    """Start `batchcl run` in the background, and kill it at the end of the block."""

    def start(*args: object, env: Mapping[str, str]) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return started("run", *args, env=clean_env | dict(env))

    return start


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 server."""
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server.endpoint


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of moto's S3, which supports regions and lists every key."""
    from moto.server import ThreadedMotoServer  # takes 0.3 s, and few workers need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def service(demo: Demo, clean_env: dict[str, str], seaweed: str) -> Iterator[str]:
    """A fast emulator with the demo's model RUNNING that reads images from SeaweedFS."""
    with ExitStack() as stack:
        env = clean_env | aws_env(s3=seaweed)
        endpoint = stack.enter_context(
            serving(
                env,
                *("--s3-endpoint-url", seaweed, "--control-tps", 100),
                *("--tps-per-unit", 1000, "--account-tps", 1000, "--cached-inference"),
                state=demo.state,
            )
        )
        start_model(endpoint, demo.arn)
        yield endpoint
