"""A real Airflow with a scheduler, a DAG processor and an API server; needs `BATCHCL_AIRFLOW`: see `make airflow`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote

import pytest

from servers import Demo, free_ports, serving, wait_for

collect_ignore_glob = [] if os.environ.get("BATCHCL_AIRFLOW") else ["*"]

ACCESS_KEY = "AKIDOFTHECONNECTION"
SECRET = "secret-of-the-connection"
PASSED = "value-of-the-variable"
WEBHOOK_PATH = "/path-of-the-webhook"
DAGS = Path(__file__).parents[2] / "configs" / "airflow"
BATCHCL = Path(sys.executable).with_name("batchcl")
_PATIENCE_S = 240
_END = ("success", "failed", "upstream_failed", "skipped")


@dataclass(frozen=True)
class Airflow:
    """A running Airflow.

    Attributes:
        home: its folder, which also has the working directories of the tests.
        port: of its API.
        env: of its processes.
    """

    home: Path
    port: int
    env: dict[str, str]

    def command(self, *words: str) -> str:
        """Run `airflow WORDS…` and return its output."""
        return subprocess.run(
            [_executable(), *words], env=self.env, cwd=self.home, capture_output=True, check=True, text=True
        ).stdout

    def call(self, method: str, path: str, document: object = None) -> Any:
        """Call the public API."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if path.startswith("/api/"):
            request.add_header("Authorization", f"Bearer {self._token()}")
        data = None if document is None else json.dumps(document).encode()
        with urllib.request.urlopen(request, data, timeout=60) as response:
            return json.loads(response.read() or b"null")

    def _token(self) -> str:
        return str(self.call("GET", "/auth/token")["access_token"])

    def trigger(self, dag: str, run_id: str) -> DagRun:
        """Start a DAG run."""
        self.call("PATCH", f"/api/v2/dags/{dag}", {"is_paused": False})
        self.call("POST", f"/api/v2/dags/{dag}/dagRuns", {"dag_run_id": run_id, "logical_date": None})
        return DagRun(self, dag, run_id)

    def logs(self) -> Iterator[tuple[Path, str]]:
        """All logs of tasks."""
        for path in (self.home / "logs").rglob("*.log"):
            yield path, path.read_text()


@dataclass(frozen=True)
class DagRun:
    """A DAG run."""

    airflow: Airflow
    dag: str
    run_id: str

    @property
    def _path(self) -> str:
        return f"/api/v2/dags/{self.dag}/dagRuns/{quote(self.run_id, safe='')}"

    def task(self, task: str) -> dict[str, Any]:
        """The task instance: `state`, `try_number` and so on."""
        found: dict[str, Any] = self.airflow.call("GET", f"{self._path}/taskInstances/{task}")
        return found

    def xcom(self, task: str, key: str = "return_value") -> Any:
        """The value, parsed."""
        return self.airflow.call("GET", f"{self._path}/taskInstances/{task}/xcomEntries/{key}?deserialize=true")[
            "value"
        ]

    def wait_for_state(self, task: str, *states: str) -> dict[str, Any]:
        """Wait until the task has one of the states, or has ended."""
        wait_for(lambda: self.task(task)["state"] in (states or _END), _PATIENCE_S)
        return self.task(task)

    def wait(self) -> str:
        """Wait for the end of the DAG run; return its state."""
        wait_for(lambda: self.airflow.call("GET", self._path)["state"] in _END, _PATIENCE_S)
        return str(self.airflow.call("GET", self._path)["state"])

    def mark_failed(self, task: str) -> None:
        """As with the button in the user interface."""
        self.airflow.call("PATCH", f"{self._path}/taskInstances/{task}", {"new_state": "failed"})

    def clear(self, *tasks: str) -> None:
        """Clear tasks, as with the button in the user interface."""
        values = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": tasks, "only_failed": False}
        self.airflow.call("POST", f"/api/v2/dags/{self.dag}/clearTaskInstances", values)

    def states(self) -> dict[str, str]:
        """Task → state, by `airflow tasks states-for-dag-run`, whose output is shown."""
        shown = self.airflow.command("tasks", "states-for-dag-run", self.dag, self.run_id, "--output", "json")
        rows = json.loads(shown[shown.index("[") :])
        print(f"\n$ airflow tasks states-for-dag-run {self.dag} {self.run_id}")
        for row in rows:
            print(f"  {row['task_id']:10} {row['state']}")
        return {row["task_id"]: row["state"] for row in rows}

    def log(self, task: str, attempt: int | str = "*") -> str:
        """The log of one try, or of all."""
        folder = self.airflow.home / "logs" / f"dag_id={self.dag}" / f"run_id={self.run_id}" / f"task_id={task}"
        return "\n".join(path.read_text() for path in sorted(folder.rglob(f"attempt={attempt}.log")))


@dataclass(frozen=True)
class Processes:
    """The processes of a running task: Airflow's supervisor and task runner, and batchcl."""

    supervisor: int
    runner: int
    child: int

    @classmethod
    def of(cls, word: str) -> Processes | None:
        """Those of the batchcl process with `word` in its command line."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and word in _command_line(int(entry.name)) and _is_run(int(entry.name)):
                child = int(entry.name)
                runner = _parent(child)
                return None if runner <= 1 else cls(_parent(runner), runner, child)
        return None


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _is_run(pid: int) -> bool:
    return " run --" in _command_line(pid)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _executable() -> str:
    return os.environ["BATCHCL_AIRFLOW"]


class Webhook:
    """Receives what is posted to it."""

    def __init__(self) -> None:
        self.received: list[tuple[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path, json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{WEBHOOK_PATH}"
        Thread(target=self._server.serve_forever, daemon=True).start()


@pytest.fixture(scope="session")
def webhook() -> Webhook:
    return Webhook()


@pytest.fixture(scope="session")
def emulator(demo: Demo, clean_env: dict[str, str]) -> Iterator[str]:
    """An emulator with the credentials of the connection; its model is STOPPED."""
    env = clean_env | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    flags = ("--control-tps", 100, "--tps-per-unit", 4)
    with serving(env, *flags, state=demo.state) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def airflow(
    emulator: str, webhook: Webhook, clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, demo: Demo
) -> Iterator[Airflow]:
    """A scheduler with a LocalExecutor on SQLite, and the DAGs of configs/airflow and of dags.py."""
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    port, log_port = free_ports(2)
    _images(home / "images", demo, count=60)
    _images(home / "corrupt", demo, count=4)
    for number in range(2):
        (home / "corrupt" / f"corrupt-{number}.jpg").write_bytes(b"\xff\xd8\xff corrupt")
    _write_dags(home, demo)
    connection = {
        "conn_type": "aws",
        "login": ACCESS_KEY,
        "password": SECRET,
        "extra": {"region_name": "us-east-1", "service_config": {"rekognition": {"endpoint_url": emulator}}},
    }
    env = clean_env | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_CONN_LABELS": json.dumps(connection),
        "AIRFLOW_VAR_PASSED_SECRET": PASSED,
        "AIRFLOW_VAR_BATCHCL_WEBHOOK_SECRET": webhook.url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of these tests, of 32 bytes or more",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_port),
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    running = Airflow(home, port, env)
    running.command("db", "migrate")
    with ExitStack() as stack:
        for word in ("api-server", "scheduler", "dag-processor"):
            stack.enter_context(_running(running, word))
        wait_for(lambda: _has_dags(running, 14), _PATIENCE_S)
        yield running


def _has_dags(airflow: Airflow, count: int) -> bool:
    try:
        return bool(airflow.call("GET", "/api/v2/dags")["total_entries"] >= count)
    except HTTPError:
        raise
    except (URLError, ConnectionError):
        return False


@contextmanager
def _running(airflow: Airflow, word: str) -> Iterator[None]:
    with (airflow.home / f"{word}.log").open("wb") as log:
        process = subprocess.Popen(
            [_executable(), word], env=airflow.env, cwd=airflow.home, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _images(folder: Path, demo: Demo, *, count: int) -> None:
    folder.mkdir()
    pictures = sorted(demo.data.images.glob("*.png"))
    for number in range(count):
        picture = pictures[number % len(pictures)]
        os.link(picture, folder / f"{number:03}{picture.suffix}")


def _write_dags(home: Path, demo: Demo) -> None:
    (home / "nightly.toml").write_text(
        f"sources = ['{home}/images']\nmodel = 'digits@v1'\nstart_model = '2'\nincremental = true\n"
    )
    names = {
        "COMMAND": BATCHCL,
        "JOB": home / "nightly.toml",
        "ROOT": home / "nightly",
        "REPORT": home / "report-{{ dag_run.run_after | ds }}.html",
    }
    for path in DAGS.glob("*.py"):
        text = _with_values(path.read_text(), {name: str(value) for name, value in names.items()})
        text = text.replace("/srv/labels/.venv/bin/batchcl", str(BATCHCL)).replace(
            "command=", "aws_conn_id='labels', command="
        )
        (home / "dags" / path.name).write_text(re.sub(r"schedule=[^\n]+", "schedule=None,", text))
    scenarios = Path(__file__).with_name("scenarios.py").read_text()
    values = {"COMMAND": str(BATCHCL), "HOME": str(home), "MODEL": demo.arn}
    (home / "dags" / "scenarios.py").write_text(_with_values(scenarios, values))


def _with_values(text: str, values: dict[str, str]) -> str:
    """A Python file with other values of its constants."""

    def line(found: re.Match[str]) -> str:
        return f"{found[1]} = {values[found[1]]!r}" if found[1] in values else found[0]

    return re.sub(r"^([A-Z]+) = .*$", line, text, flags=re.MULTILINE)
