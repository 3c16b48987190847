"""The operators without Airflow: a small `airflow.sdk` replaces Airflow, and shell scripts replace `batchcl`.

`make airflow` tests them in a real one.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from servers import wait_for

SECRET = "secret-of-the-connection"
ROOT = Path(__file__).parents[2]


class AirflowException(Exception):
    """The task is retried."""


class AirflowFailException(AirflowException):
    """The task is not retried."""


class BaseOperator:
    def __init__(
        self, *, task_id: str, execution_timeout: dt.timedelta | None = None, do_xcom_push: bool = True, **_: Any
    ) -> None:
        self.task_id = task_id
        self.execution_timeout = execution_timeout
        self.do_xcom_push = do_xcom_push
        self.logged: list[tuple[int, str]] = []
        self.log = SimpleNamespace(
            log=self._write,
            info=lambda *parts: self._write(20, *parts),
            warning=lambda *parts: self._write(30, *parts),
        )

    def _write(self, level: int, text: str, *parts: object) -> None:
        self.logged.append((level, text % parts if parts else text))


class Task:
    """An operator whose command is a shell script, with what it did to its task instance."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator
        self.xcom: dict[str, Any] = {}

    def run(self) -> Any:
        ti = SimpleNamespace(xcom_push=lambda key, value: self.xcom.update({key: value}))
        return self.operator.execute({"ti": ti})

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.operator.logged)


@pytest.fixture
def connections() -> dict[str, Any]:
    return {}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, connections: dict[str, Any]) -> Iterator[ModuleType]:
    """`batchcl.airflow`, imported with the stand-in."""
    sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.sdk.exceptions")
    hook = SimpleNamespace(get_connection=connections.__getitem__)
    vars(sdk).update(BaseOperator=BaseOperator, BaseHook=hook, Context=dict)
    vars(exceptions).update(AirflowException=AirflowException, AirflowFailException=AirflowFailException)
    for name, each in {
        "airflow": ModuleType("airflow"),
        "airflow.sdk": sdk,
        "airflow.sdk.exceptions": exceptions,
    }.items():
        monkeypatch.setitem(sys.modules, name, each)
    sys.modules.pop("batchcl.airflow", None)
    yield importlib.import_module("batchcl.airflow")
    sys.modules.pop("batchcl.airflow", None)


@pytest.fixture
def score(module: ModuleType, tmp_path: Path) -> Callable[..., Task]:
    """Make a task that runs a shell script; its arguments are those of `batchcl`."""

    def make(script: str = "", **arguments: Any) -> Task:
        path = tmp_path / "script"
        path.write_text(script)
        arguments = {"task_id": "score", "run_id": "night", "out": "out"} | arguments
        return Task(module.BatchclRunOperator(**{"command": ["/bin/sh", str(path)]} | arguments))

    return make


def summary(**values: Any) -> str:
    """A shell command that writes a summary to stdout."""
    counts = {"planned": 3, "scored": 2, "failed": 1, "skipped": 0, "cost_usd": 0.5, "reason": None}
    return f"echo {shlex.quote(json.dumps({'run_id': 'night', 'status': 'done'} | counts | values))}\n"


def event(kind: str, message: str, level: str = "info", **fields: Any) -> str:
    """A shell command that writes a log line to stderr."""
    line = json.dumps({"time": "t", "level": level, "event": kind, "message": message} | fields)
    return f"echo {shlex.quote(line)} >&2\n"


def test_it_imports_with_airflow_and_the_standard_library_only(tmp_path: Path) -> None:
    """As after `pip install --no-deps`; -I and -S leave the interpreter without any installed package."""
    (tmp_path / "batchcl").symlink_to(ROOT / "src" / "batchcl")
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "__init__.py").touch()
    (tmp_path / "airflow" / "sdk").mkdir()
    (tmp_path / "airflow" / "sdk" / "__init__.py").write_text("class BaseOperator: pass\nBaseHook = Context = None")
    (tmp_path / "airflow" / "sdk" / "exceptions.py").write_text("AirflowException = AirflowFailException = Exception")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import batchcl.airflow; "
        "print(sorted(name for name in sys.modules if name.startswith('batchcl')))"
    )
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['batchcl', 'batchcl.__about__', 'batchcl.airflow']", done.stderr


def test_the_command_line_of_a_run(score: Callable[..., Task]) -> None:
    task = score(
        'printf "%s\\n" "$@" >&2\n',
        sources=["s3://photos/", "-odd"],
        config="nightly.toml",
        model="cats@v1",
        options={"start_model": 2, "include": ["*.jpg", "*.png"], "fit": True, "incremental": False, "limit": None},
    )
    task.run()
    words = [text for _, text in task.operator.logged[1:]]
    assert words == [
        *("run", "--config=nightly.toml", "--model=cats@v1", "--out=out", "--run-id=night", "--if-held=wait"),
        *("--grace=25s", "--log-format=json", "--json", "--start-model=2", "--include=*.jpg", "--include=*.png"),
        *("--fit", "--", "s3://photos/", "-odd"),
    ]


@pytest.mark.parametrize(
    ("arguments", "deadline"),
    [
        ({"execution_timeout": dt.timedelta(hours=6)}, "--deadline=21575s"),
        ({"execution_timeout": dt.timedelta(minutes=2), "grace_s": 10}, "--deadline=110s"),
        ({"execution_timeout": dt.timedelta(hours=6), "options": {"deadline": "2h"}}, "--deadline=2h"),
        ({}, None),
    ],
)
def test_the_deadline(score: Callable[..., Task], arguments: dict[str, Any], deadline: str | None) -> None:
    words = score(**arguments).operator._words()
    assert [word for word in words if word.startswith("--deadline")] == ([] if deadline is None else [deadline])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"execution_timeout": dt.timedelta(seconds=49)}, "too short: the run needs 25 s at its end"),
        ({"options": {"run_id": "x", "json": True}}, "options has json, run_id: pass it to the operator"),
        ({"command": []}, "command is empty"),
        ({"on_failures": "ignore"}, "expected 'fail' or 'warn'"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_read(
    score: Callable[..., Task], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(**arguments)


def test_success_returns_the_summary(score: Callable[..., Task]) -> None:
    script = event("progress", "1/3 images") + event("report", "wrote the report r.html", path="r.html", bytes=9)
    task = score(script + event("paused", "calls paused", "warning") + "echo 'plain text' >&2\n" + summary(failed=0))
    assert task.run()["scored"] == 2
    assert task.xcom == {"report": "r.html"}
    assert (20, "1/3 images") in task.operator.logged
    assert (30, "calls paused") in task.operator.logged
    assert (20, "plain text") in task.operator.logged
    assert "run night is done: 3 planned, 2 scored, 0 failed, 0 skipped, at least $0.50 for the model" in task.text


@pytest.mark.parametrize("code", [2, 3, 5])
def test_codes_that_a_retry_would_not_change(score: Callable[..., Task], code: int) -> None:
    task = score(event("error", "the reason", "error") + f"exit {code}")
    with pytest.raises(AirflowFailException, match=rf"exit code {code} \(.*\): the reason"):
        task.run()


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(1, r" \(stdout .*\)"), (4, r" \(stopped .*\)"), (130, r" \(interrupted\)"), (137, r" \(SIGKILL\)"), (99, "")],
)
def test_codes_that_are_retried(score: Callable[..., Task], code: int, meaning: str) -> None:
    task = score(event("error", "the reason", "error") + f"exit {code}")
    with pytest.raises(AirflowException, match=rf"^exit code {code}{meaning}: the reason$") as raised:
        task.run()
    assert not isinstance(raised.value, AirflowFailException)


def test_death_by_a_signal_is_retried(score: Callable[..., Task]) -> None:
    with pytest.raises(AirflowException, match="death by SIGKILL") as raised:
        score("kill -9 $$").run()
    assert not isinstance(raised.value, AirflowFailException)


def test_a_failed_task_has_its_summary_too(score: Callable[..., Task]) -> None:
    task = score(summary(status="stopped", reason="ended by SIGTERM") + "exit 4")
    with pytest.raises(AirflowException, match="ended by SIGTERM"):
        task.run()
    assert task.xcom["return_value"]["status"] == "stopped"


def test_failures_can_be_a_warning(score: Callable[..., Task]) -> None:
    task = score(summary() + event("error", "1 image failed", "error") + "exit 3", on_failures="warn")
    assert task.run()["failed"] == 1
    assert (30, "exit code 3 (too many images failed, or a --fail-if holds): 1 image failed") in task.operator.logged


def test_a_run_that_stopped_for_its_failures_never_succeeds(score: Callable[..., Task]) -> None:
    task = score(summary(status="stopped", reason="too many") + "exit 3", on_failures="warn")
    with pytest.raises(AirflowFailException, match="too many"):
        task.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "/no/such/batchcl"}, "starting '/no/such/batchcl' in .* failed: .*No such file"),
        ({"command": "docker run image"}, "give a command of several words as a list"),
        ({"cwd": "/no/such/folder"}, "in /no/such/folder failed"),
    ],
)
def test_a_command_that_cannot_be_started(score: Callable[..., Task], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        score(**arguments).run()


def test_all_output_is_read_whatever_its_size_and_form(score: Callable[..., Task]) -> None:
    """A megabyte on both streams does not block the command, and a container's own lines are no summary."""
    many = "i=0; while [ $i -lt 4000 ]; do echo 'pulling a layer of an image'; i=$((i+1)); done\n"
    task = score(many + event("progress", "1/3") + many.replace("done", "done >&2") + summary())
    assert task.run()["scored"] == 2
    assert "1/3" in task.text
    task = score("echo 'no summary'; printf 'bad \\377 byte' >&2")
    assert task.run() is None
    assert "no summary" in task.text
    assert "bad \\xff byte" in task.text


def test_a_process_left_behind_does_not_hold_the_task(
    score: Callable[..., Task], module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STREAMS_S", 0.1)
    task = score("sleep 60 &\necho $! >&2\n" + summary())
    assert task.run()["scored"] == 2
    os.kill(int(task.operator.logged[1][1]), signal.SIGKILL)


def killing(task: Task) -> threading.Thread:
    """A thread that calls `on_kill`, as a signal handler does, once the script has written its first line."""

    def kill() -> None:
        wait_for(lambda: len(task.operator.logged) > 1)
        task.operator.on_kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_on_kill_sends_sigterm_and_execute_waits_for_the_drain(score: Callable[..., Task]) -> None:
    drained = event("drain", "drained") + summary(status="stopped", reason="ended by SIGTERM") + "exit 4"
    task = score(f"trap {shlex.quote(drained)} TERM\necho ready >&2\nwhile true; do sleep 0.05; done")
    killer = killing(task)
    with pytest.raises(AirflowException, match=r"exit code 4 .*: ended by SIGTERM"):
        task.run()
    killer.join()
    assert (20, "drained") in task.operator.logged


def test_on_kill_before_the_start(score: Callable[..., Task]) -> None:
    task = score("sleep 60")
    task.operator.on_kill()
    with pytest.raises(AirflowException, match="death by SIGTERM"):
        task.run()


def test_a_command_that_does_not_end_is_killed(
    score: Callable[..., Task], module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KILL_MARGIN_S", 0.1)
    task = score("trap '' TERM\nsleep 60 & echo $! >&2\nwait; wait", grace_s=0.1)
    killer = killing(task)
    with pytest.raises(AirflowException, match="death by SIGKILL"):
        task.run()
    killer.join()
    left = int(task.operator.logged[1][1])
    wait_for(lambda: not Path(f"/proc/{left}").exists() or " Z " in Path(f"/proc/{left}/stat").read_text())


def test_the_execution_timeout_ends_the_command(score: Callable[..., Task]) -> None:
    """Airflow raises an exception in `execute` and calls `on_kill` then."""

    class Timeout(BaseException):
        pass

    def raise_timeout(*_: object) -> None:
        raise Timeout

    drained = shlex.quote(event("drain", "drained") + "exit 4")
    task = score(f"trap {drained} TERM\necho ready >&2\nwhile true; do sleep 0.05; done")
    task.operator.log.log = lambda level, text, *parts: (
        raise_timeout() if parts == ("ready",) else task.operator._write(level, text, *parts)
    )
    with pytest.raises(Timeout):
        task.run()
    assert (20, "drained") in task.operator.logged
    task.operator.on_kill()


def test_the_environment(
    score: Callable[..., Task], connections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's, without Airflow's secrets and with those of the connection, which are not logged."""
    connections["labels"] = SimpleNamespace(
        login="AKID",
        password=SECRET,
        extra_dejson={"region_name": "eu-west-1", "service_config": {"s3": {"endpoint_url": "http://s3"}, "sts": {}}},
    )
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_CONN_X", "_AIRFLOW__STARTUP_MSG", "AWS_PROFILE", "KEPT"):
        monkeypatch.setenv(name, "inherited")
    task = score("env >&2", aws_conn_id="labels", env={"AWS_REGION": "us-east-1"}, append_env=True)
    task.run()
    seen = {text.partition("=")[0]: text.partition("=")[2] for _, text in task.operator.logged[1:]}
    expected = {
        "AWS_ACCESS_KEY_ID": "AKID",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://s3",
        "KEPT": "inherited",
    }
    assert seen | expected == seen
    assert not {"AWS_PROFILE", "AWS_ENDPOINT_URL_STS"} & seen.keys()
    assert not [name for name in seen if "AIRFLOW_" in name]
    assert SECRET not in task.operator.logged[0][1]
    task = score("env >&2", env={"ONLY": "this"})
    task.run()
    assert "ONLY=this" in task.text
    assert "KEPT" not in task.text


def test_a_connection_with_a_role_is_refused(score: Callable[..., Task], connections: dict[str, Any]) -> None:
    """Its keys alone would be another identity."""
    connections["labels"] = SimpleNamespace(login="AKID", password=SECRET, extra_dejson={"role_arn": "arn:…"})
    with pytest.raises(
        AirflowFailException, match=r"'labels' is not supported: it has role_arn\. Put a profile"
    ) as raised:
        score(aws_conn_id="labels").run()
    assert SECRET not in str(raised.value)


def test_urls_are_logged_without_their_secrets(score: Callable[..., Task]) -> None:
    task = score("exit 0", options={"ping": "https://user:word@hc.example:8000/uuid?x=1"})
    task.run()
    assert "--ping=https://hc.example:8000/…" in task.operator.logged[0][1]


def test_other_commands_log_stdout_or_return_its_json(module: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('case "$*" in *--json*) printf "{\\n  \\"a\\": 1\\n}\\n";; *) echo a table;; esac')
    command = ["/bin/sh", str(script)]
    task = Task(module.BatchclOperator(task_id="x", command=command, arguments=["compare", "out"]))
    assert task.run() is None
    assert (20, "a table") in task.operator.logged
    task = Task(module.BatchclOperator(task_id="x", command=command, arguments=["compare", "out", "--json"]))
    assert task.run() == {"a": 1}
