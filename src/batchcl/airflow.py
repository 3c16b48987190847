"""Airflow operators that run the `batchcl` command in a separate environment or container.

```python
from batchcl.airflow import BatchclRunOperator

score = BatchclRunOperator(
    task_id="score",
    command="/srv/labels/.venv/bin/batchcl",
    config="/srv/labels/nightly.toml",
    execution_timeout=timedelta(hours=6),
    retries=5,
)
```

This module needs Airflow and the standard library only: install batchcl with `pip install --no-deps` in Airflow's
environment. See docs/airflow.md.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import os
import queue
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, ClassVar, Final, Literal, Protocol, TypeAlias

from airflow.sdk import BaseHook, BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

__all__ = ["BatchclOperator", "BatchclRunOperator"]

Command: TypeAlias = str | Sequence[str]
Options: TypeAlias = Mapping[str, Any]

GRACE_S: Final = 25.0
"""Seconds from SIGTERM to the end of a run, as `batchcl run --grace`."""

_DONE: Final = 0
_USAGE: Final = 2
_FAILURES: Final = 3
_STOPPED: Final = 4
_REFUSED: Final = 5
_MEANING: Final = {
    1: "stdout failed, or a bug",
    _USAGE: "the command line, the job file or a list is wrong",
    _FAILURES: "too many images failed, or a --fail-if holds",
    _STOPPED: "stopped early, or another process works on it",
    _REFUSED: "refused before a call was made",
    130: "interrupted",
}

_RUN_ID: Final = "{{ ti.dag_id }}.{{ ti.task_id }}.{{ run_id }}{% if ti.map_index >= 0 %}.{{ ti.map_index }}{% endif %}"
_OWN_OPTIONS: Final = {"sources", "config", "model", "out", "run_id", "grace", "json", "log_format"}
_KILL_MARGIN_S: Final = 5.0
_POLL_S: Final = 0.2
_STREAMS_S: Final = 2.0
"""Seconds to read on after the process has ended, if another one holds its streams; after SIGTERM, the grace period."""
_MOST_OUTPUT: Final = 1_000_000
_AIRFLOW_OWN: Final = re.compile(r"_*AIRFLOW__|_AIRFLOW_|AIRFLOW_CONN_|AIRFLOW_VAR_")
_WEB_URL: Final = re.compile(r"(https?://)(?:[^/@\s]*@)?([^/?#\s]+)[^\s]*")
_IDENTITY: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


class BatchclOperator(BaseOperator):
    """Runs a batchcl command; its exit code determines the state of the task.

    0 succeeds; 2, 3 and 5 fail without a retry; any other exit code, and death by a signal, is retried.
    With `--json` among the arguments, the object on stdout is the XCom `return_value`, also if the task fails;
    otherwise stdout is logged.

    Args:
        arguments: words after `batchcl`, such as `["model", "reap", "--json"]`. (templated)
        command: the executable, or the words of a command that the arguments are appended to, such as
            `["docker", "run", "--rm", IMAGE]`. (templated)
        aws_conn_id: an AWS connection whose keys, profile, region and endpoints are passed in the environment.
        env: environment variables; they replace the worker's unless `append_env` is set. (templated)
        append_env: add `env` to the worker's environment, which is used without Airflow's own settings and connections.
        cwd: working directory; by default that of the worker. (templated)
        on_failures: whether exit code 3 fails the task, or logs a warning and succeeds.
        grace_s: seconds that the command has after SIGTERM when the task is ended; SIGKILL follows 5 s later.
        kwargs: of `BaseOperator`.
    """

    template_fields: Sequence[str] = ("arguments", "command", "env", "cwd")
    template_fields_renderers: ClassVar[dict[str, str]] = {"env": "json"}
    ui_color: str = "#e8f0fa"

    def __init__(
        self,
        *,
        arguments: Sequence[str] = (),
        command: Command = "batchcl",
        aws_conn_id: str | None = None,
        env: Mapping[str, str] | None = None,
        append_env: bool = False,
        cwd: str | None = None,
        on_failures: Literal["fail", "warn"] = "fail",
        grace_s: float = GRACE_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not command:
            raise ValueError("command is empty; expected a path or a list of words")
        if on_failures not in {"fail", "warn"}:
            raise ValueError(f"on_failures={on_failures!r} is not valid: expected 'fail' or 'warn'")
        self.arguments = arguments
        self.command = command
        self.aws_conn_id = aws_conn_id
        self.env = env
        self.append_env = append_env
        self.cwd = cwd
        self.on_failures = on_failures
        self.grace_s = grace_s
        self._child: _Child | None = None
        self._is_killed = False

    def execute(self, context: Context) -> Any:
        """Run the command; return its JSON object, or raise for its exit code."""
        words = [*([self.command] if isinstance(self.command, str) else self.command), *self._words()]
        output = _Output(self.log, is_json="--json" in words)
        self.log.info("running %s", _WEB_URL.sub(r"\1\2/…", shlex.join(words)))
        env = self._environment()
        try:
            child = self._child = _Child(words, env=env, cwd=self.cwd, grace_s=self.grace_s)
        except (OSError, ValueError) as error:
            hint = "; give a command of several words as a list" if " " in words[0] else ""
            raise AirflowFailException(
                f"starting {words[0]!r} in {self.cwd or os.getcwd()} failed: {error}{hint}"
            ) from error
        try:
            if self._is_killed:  # before there was a child
                child.terminate()
            output.read(child)
        finally:
            child.terminate()  # after an exception, such as Airflow's at the execution timeout
            output.read(child)
        return self._finish(context, child.code, output)

    def on_kill(self) -> None:
        """Send SIGTERM to the command; `execute` waits for its end, and sends SIGKILL after the grace period.

        Airflow calls this in a signal handler while `execute` runs, so it does nothing else.
        """
        self._is_killed = True
        if self._child is not None:
            self._child.terminate()

    def _words(self) -> list[str]:
        return [str(word) for word in self.arguments]

    def _show(self, result: Any) -> None:
        """Log a summary of the result, if there is one."""

    def _environment(self) -> dict[str, str]:
        inherits = self.env is None or self.append_env
        env = {name: value for name, value in os.environ.items() if not _AIRFLOW_OWN.match(name)} if inherits else {}
        if self.aws_conn_id is not None:
            added = _aws_environment(self.aws_conn_id)
            if any(name in added for name in _IDENTITY):
                env = {name: value for name, value in env.items() if name not in _IDENTITY}
            env |= added
        return env | {name: str(value) for name, value in (self.env or {}).items()}

    def _finish(self, context: Context, code: int, output: _Output) -> Any:
        ti = context["ti"]
        result = output.result()
        self._show(result)
        if output.report is not None:
            ti.xcom_push(key="report", value=output.report)
        if code == _DONE:
            return result
        values = result if isinstance(result, dict) else {}
        text = _describe(code)
        if reason := values.get("reason") or output.error:
            text = f"{text}: {reason}"
        if code == _FAILURES and self.on_failures == "warn" and values.get("status", "done") == "done":
            self.log.warning("%s", text)
            return result
        if result is not None and self.do_xcom_push:
            ti.xcom_push(key="return_value", value=result)
        if code in {_USAGE, _FAILURES, _REFUSED}:
            raise AirflowFailException(text)
        raise AirflowException(text)


class BatchclRunOperator(BatchclOperator):
    """Runs `batchcl run`. All tries of a task resume the same run, which is named after the DAG run.

    The summary is the XCom `return_value`, also if the task fails; the path of its report is the XCom `report`.
    The run's deadline is the `execution_timeout` minus the grace period, unless `options` has a `deadline`.

    Args:
        sources: what to score; by default the sources of the job file. (templated)
        config: path of a job file, as the command sees it. (templated)
        model: PROJECT@VERSION, PROJECT or an ARN. (templated)
        out: output root. (templated)
        run_id: by default made of the ids of DAG, task and DAG run, and of the map index of a mapped task. (templated)
        options: further keys of a job file with their values; None and False omit an option. (templated)
        kwargs: of `BatchclOperator`. `on_failures="warn"` succeeds only if the run is done, not if it was stopped.
    """

    template_fields: Sequence[str] = (
        *("sources", "config", "model", "out", "run_id", "options"),
        *(name for name in BatchclOperator.template_fields if name != "arguments"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"env": "json", "options": "json"}

    def __init__(
        self,
        *,
        sources: str | Sequence[str] = (),
        config: str | None = None,
        model: str | None = None,
        out: str | None = None,
        run_id: str = _RUN_ID,
        options: Options | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(options, Mapping) and (own := sorted(_OWN_OPTIONS & options.keys())):  # not the XCom of a task
            raise ValueError(f"options has {', '.join(own)}: pass it to the operator, where it has an argument")
        self.sources = sources
        self.config = config
        self.model = model
        self.out = out
        self.run_id = run_id
        self.options = options
        self._deadline_s()

    def _deadline_s(self) -> float | None:
        """Seconds from the start of the run; None without `execution_timeout`."""
        timeout: dt.timedelta | None = self.execution_timeout
        if timeout is None:
            return None
        left_s = timeout.total_seconds() - self.grace_s
        if left_s < self.grace_s:
            raise ValueError(
                f"execution_timeout={timeout} of {self.task_id} is too short: the run needs {self.grace_s:.0f} s at "
                f"its end; use at least {2 * self.grace_s:.0f} s"
            )
        return left_s

    def _words(self) -> list[str]:
        deadline_s = self._deadline_s()
        options = {
            "config": self.config,
            "model": self.model,
            "out": self.out,
            "run_id": self.run_id,
            "if_held": "wait",
            "deadline": None if deadline_s is None else dt.timedelta(seconds=deadline_s),
            "grace": dt.timedelta(seconds=self.grace_s),
            "log_format": "json",
            "json": True,
            **(self.options or {}),
        }
        sources = [self.sources] if isinstance(self.sources, str) else self.sources
        return ["run", *_flags(options), *(["--", *map(str, sources)] if sources else [])]

    def _show(self, result: Any) -> None:
        if isinstance(result, dict) and "planned" in result:  # a refused run has no summary
            counts = ", ".join(f"{result[name]:,} {name}" for name in ("planned", "scored", "failed", "skipped"))
            cost = result["cost_usd"]
            dollars = "" if cost is None else f", at least ${cost:.2f} for the model"
            self.log.info("run %s is %s: %s%s", result["run_id"], result["status"], counts, dollars)


class _Child:
    """A command in a new POSIX session, so that signals to the worker's process group don't reach it.

    Args:
        words: of the command.
        env: its whole environment.
        cwd: its working directory.
        grace_s: seconds from SIGTERM to SIGKILL, which follows `_KILL_MARGIN_S` later.
    """

    def __init__(self, words: Sequence[str], *, env: Mapping[str, str], cwd: str | None, grace_s: float) -> None:
        self._grace_s = grace_s
        self._kill_at = math.inf
        self._lines: queue.SimpleQueue[tuple[bool, str | None]] = queue.SimpleQueue()
        self._open_streams = 2
        self._process = subprocess.Popen(  # noqa: S603 - the command of the DAG's author
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        for stream in (self._process.stdout, self._process.stderr):
            threading.Thread(target=self._pass_on, args=(stream,), daemon=True).start()

    @property
    def code(self) -> int:
        """The exit code, or minus the number of the signal that ended the process."""
        return self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM unless the process has ended or received it; may be called in a signal handler."""
        if self._kill_at == math.inf and self._process.poll() is None:
            self._kill_at = time.monotonic() + self._grace_s + _KILL_MARGIN_S
            self._send(signal.SIGTERM)

    def lines(self) -> Iterator[tuple[bool, str]]:
        """Yield the lines of stdout (True) and stderr (False) until the process has ended."""
        give_up_at = math.inf
        while True:
            now = time.monotonic()
            if now >= self._kill_at:
                self._kill_at = now + _KILL_MARGIN_S
                self._send(signal.SIGKILL)
            if self._process.poll() is not None:
                give_up_at = min(give_up_at, now + _STREAMS_S if self._kill_at == math.inf else self._kill_at)
                if not self._open_streams or now >= give_up_at:
                    return
            with suppress(queue.Empty):
                is_stdout, line = self._lines.get(timeout=_POLL_S)
                if line is None:
                    self._open_streams -= 1
                else:
                    yield is_stdout, line

    def _pass_on(self, stream: IO[bytes]) -> None:
        is_stdout = stream is self._process.stdout
        with stream:
            for line in stream:
                self._lines.put((is_stdout, line.decode(errors="backslashreplace").rstrip("\r\n")))
        self._lines.put((is_stdout, None))

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to the process and those that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class _Log(Protocol):
    def log(self, level: int, event: str, *args: Any) -> Any: ...


class _Output:
    """Logs the lines of a command and keeps its result.

    Args:
        log: of the task.
        is_json: whether stdout has a JSON document, which is not logged.

    Attributes:
        error: the message of the last line that reported an error; empty if there was none.
        report: the path of the report that was written.
    """

    def __init__(self, log: _Log, *, is_json: bool) -> None:
        self._log = log
        self._is_json = is_json
        self._stdout: list[str] = []
        self._size = 0
        self.error = ""
        self.report: str | None = None

    def read(self, child: _Child) -> None:
        """Read all that `child` writes until it ends."""
        for is_stdout, line in child.lines():
            if (event := _event(line)) is not None:
                self._log_event(event)
            elif is_stdout and self._is_json:
                self._size += len(line)
                self._stdout.append(line)
            elif line:
                self._write(logging.INFO, line)
                if not is_stdout and line.startswith("batchcl: "):
                    self.error = line.removeprefix("batchcl: ")

    def result(self) -> Any:
        """The JSON document on stdout; None if there is none."""
        if not self._is_json or self._size > _MOST_OUTPUT:
            return None
        for text in ("\n".join(self._stdout), *self._stdout[-1:]):  # a container may write lines of its own
            with suppress(ValueError):
                return json.loads(text)
        for line in self._stdout:
            self._write(logging.INFO, line)
        return None

    def _log_event(self, event: Mapping[str, Any]) -> None:
        level = logging.getLevelNamesMapping().get(str(event.get("level")).upper(), logging.INFO)
        message = str(event["message"])
        self._write(level, message)
        if event["event"] == "report" and isinstance(event.get("path"), str):
            self.report = event["path"]
        if level >= logging.ERROR:
            self.error = message
        if isinstance(trace := event.get("traceback"), str):
            self._write(level, trace)

    def _write(self, level: int, text: str) -> None:
        with suppress(OSError):  # Airflow's supervisor is gone; the run continues, and the next try follows it
            self._log.log(level, "%s", text)


def _describe(code: int) -> str:
    """An exit code with its meaning, or the signal that ended the process, also as a shell reports it."""
    if code in _MEANING:
        return f"exit code {code} ({_MEANING[code]})"
    try:
        name = signal.Signals(-code if code < 0 else code - 128).name
    except ValueError:
        return f"exit code {code}"
    return f"death by {name}" if code < 0 else f"exit code {code} ({name})"


def _event(line: str) -> dict[str, Any] | None:
    """The log event in a line of `--log-format json`; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"event", "message"} <= event.keys() else None


def _flags(options: Options) -> Iterator[str]:
    """Options of the command line: `{"max_tps": 5, "incremental": True}` → `--max-tps=5`, `--incremental`."""
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else (value,):
            if each is True:
                yield flag
            elif isinstance(each, dt.timedelta):
                yield f"{flag}={each.total_seconds():.0f}s"
            elif each is not None and each is not False:
                yield f"{flag}={each}"


def _aws_environment(conn_id: str) -> dict[str, str]:
    """The environment variables for an AWS connection."""
    connection = BaseHook.get_connection(conn_id)
    extra = connection.extra_dejson
    if roles := sorted(name for name in extra if name.startswith(("role_arn", "assume_role"))):
        raise AirflowFailException(
            f"connection {conn_id!r} is not supported: it has {', '.join(roles)}. Put a profile with the role into "
            "~/.aws/config on the worker, and its name into profile_name of the connection's extra"
        )
    services = extra.get("service_config") or {}
    found = {
        "AWS_ACCESS_KEY_ID": connection.login or extra.get("aws_access_key_id"),
        "AWS_SECRET_ACCESS_KEY": connection.password or extra.get("aws_secret_access_key"),
        "AWS_SESSION_TOKEN": extra.get("aws_session_token"),
        "AWS_PROFILE": extra.get("profile_name"),
        "AWS_REGION": extra.get("region_name"),
        "AWS_ENDPOINT_URL": extra.get("endpoint_url"),
    } | {f"AWS_ENDPOINT_URL_{name.upper()}": service.get("endpoint_url") for name, service in services.items()}
    return {name: str(value) for name, value in found.items() if value}
