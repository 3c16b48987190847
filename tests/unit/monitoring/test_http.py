from __future__ import annotations

import base64
import socket
import threading
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest

from batchcl.aws.session import Aws
from batchcl.errors import InterruptedRunError, RefusedError, StoppedError, UsageError
from batchcl.events import Notice, SilentObserver
from batchcl.monitoring import RunNames, Targets, monitored
from batchcl.monitoring.http import Webhook
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import FLUSH_S, SendError
from batchcl.stop_signal import StopSignal
from receivers import receiving
from unit.monitoring.runs import AT, MODEL, ROOT, STARTED, progress, run, summary
from virtual import run_virtual

PRESIGNED = "https://AKIDEXAMPLE:hunter2@bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKID&X-Amz-Signature=abc#x"


@pytest.mark.parametrize(
    ("end", "path"),
    [
        (summary(), "/check"),
        (summary(tolerated=False), "/check/3"),
        (StoppedError("the deadline has passed"), "/check/4"),
        (RefusedError("access denied"), "/check/5"),
        (UsageError("no such list"), "/check/2"),
        (InterruptedRunError("interrupted by ^C"), "/check/130"),
    ],
)
def test_a_check_is_pinged_at_the_start_and_with_the_exit_code(end, path):
    with receiving() as receiver:
        run(Targets(ping=f"{receiver.url}/check?create=1"), end=end)
    first, last = (urlsplit(request.path) for request in receiver.requests)
    assert (first.path, last.path) == ("/check/start", path)
    assert parse_qs(first.query) == parse_qs(last.query)
    assert set(parse_qs(last.query)) == {"create", "rid"}


def test_the_last_ping_has_the_last_notices_as_its_body():
    with receiving() as receiver:
        run(Targets(ping=receiver.url), end=StoppedError(f"reading {PRESIGNED} failed"))
        notices = [STARTED, *(Notice("model", f"notice {n} about {PRESIGNED}") for n in range(300))]
        run(Targets(ping=receiver.url), notices)
    failed, done = receiver.requests[1], receiver.requests[3]
    assert failed.body.decode().splitlines()[-1] == (
        f"batchcl: run night in {ROOT} is stopped (exit code 4), 90 of 120 images scored, 6 failed: "
        "reading https://bucket.s3.amazonaws.com/a.jpg failed"
    )
    lines = done.body.decode().splitlines()
    assert len(lines) == 101
    assert lines[-1] == f"batchcl: run night in {ROOT} is done, 110 of 120 images scored, 6 failed"
    assert lines[-2].endswith("notice 299 about https://bucket.s3.amazonaws.com/a.jpg")


def test_the_webhook_receives_trouble_and_the_end():
    stopped = Notice("model-stop-failed", f"{PRESIGNED}; trying again", {"code": "x?token=abc"}, level="warning")
    with receiving() as receiver:
        run(Targets(webhook=receiver.url), [STARTED, stopped, stopped, Notice("bad-line", "line 3", level="warning")])
    trouble, end = (request.json for request in receiver.requests)
    assert (trouble["event"], trouble["severity"]) == ("model-stop-failed", "warning")
    assert trouble["text"] == "https://bucket.s3.amazonaws.com/a.jpg; trying again"
    assert trouble["details"] == {"code": "x?token=..."}
    assert (trouble["run_id"], trouble["root"], trouble["model"]) == ("night", ROOT, MODEL)
    assert (trouble["scored"], trouble["calls"], trouble["cost_usd"]) == (90, 110, 1.25)
    assert (end["event"], end["severity"], end["status"], end["exit_code"]) == ("end", "info", "done", 0)
    assert (end["scored"], end["calls"], end["cost_usd"], end["model_left"]) == (110, 130, 1.5, None)


def test_a_model_left_running_is_an_error_with_what_stops_it(tmp_path):
    stop_signal = StopSignal()
    stop_signal.on_abandoned = lambda: "the model birds@v1 could not be stopped; `batchcl model reap` stops it"
    path = tmp_path / "nightly.prom"
    with receiving() as receiver:
        targets = Targets(webhook=receiver.url, metrics_file=str(path))
        run(targets, end=StoppedError("credentials fail"), stop_signal=stop_signal)
    (end,) = (request.json for request in receiver.requests)
    assert (end["severity"], end["exit_code"]) == ("error", 4)
    assert end["model_left"] == "the model birds@v1 could not be stopped; `batchcl model reap` stops it"
    assert 'batchcl_model_left_running{task="nightly"} 1\n' in path.read_text()


def test_a_bug_is_a_failure_with_exit_code_1():
    with receiving() as receiver, pytest.raises(ZeroDivisionError):
        run(Targets(webhook=receiver.url), end=ZeroDivisionError("division of https://h/?Signature=abc"))
    (end,) = (request.json for request in receiver.requests)
    assert (end["status"], end["exit_code"], end["reason"]) == ("failed", 1, "ZeroDivisionError")


def test_credentials_of_a_url_are_sent_as_such_and_never_shown():
    with receiving() as receiver:
        receiver.statuses = [401]
        url = receiver.url.replace("http://", "http://me:hunter%202@") + "/secret"
        observer = run(Targets(webhook=url))
    assert receiver.requests[0].headers["Authorization"] == f"Basic {base64.b64encode(b'me:hunter 2').decode()}"
    assert observer.notices[-1].text == f"the webhook {receiver.url} failed: HTTP status 401; the run is not affected"
    assert "hunter" not in repr(Targets(webhook=url, ping=url))


def test_a_request_is_repeated_after_an_error_that_may_pass():
    report = Report(stage="end", document={"event": "end"})
    with receiving() as receiver:
        receiver.statuses = [503, 429, 200, 500, 502, 503]
        webhook = Webhook(receiver.url, pauses_s=(0, 0))
        webhook.send(report)
        assert len(receiver.requests) == 3
        with pytest.raises(SendError, match="HTTP status 503"):
            webhook.send(report)
    assert len(receiver.requests) == 6


def test_a_redirect_is_a_failure():
    with receiving() as receiver:
        receiver.statuses = [302]
        observer = run(Targets(webhook=receiver.url))
    assert receiver.paths == ["/"]
    assert observer.notices[-1].text.endswith("failed: HTTP status 302; the run is not affected")


def test_connection_errors_are_described_without_the_path(monkeypatch):
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    report = Report(stage="end", document={"event": "end"})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(SendError, match=r"^Connection refused$"):
            Webhook(f"http://127.0.0.1:{closed.getsockname()[1]}/x", pauses_s=()).send(report)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(SendError, match=r"^Name or service not known$"):
        Webhook("https://host.invalid/x", pauses_s=()).send(report)


def test_closing_the_event_loop_does_not_wait_for_a_name_lookup(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(30))
    try:
        targets = Targets(ping="https://slow.invalid/x", webhook="https://slow.invalid/x")
        observer = run(targets, flush_s=FLUSH_S, run_loop=run_virtual)
        assert not over.is_set()
    finally:
        over.set()
    assert [each.text for each in observer.notices if each.kind == "monitoring-failed"] == [
        f"the {what} https://slow.invalid failed: not finished within 2.0 s at the end; the run is not affected"
        for what in ("ping of", "webhook")
    ]


def test_a_bug_in_monitoring_does_not_end_a_run():
    clock = iter([AT, AT])

    async def main() -> None:
        names = RunNames(root=ROOT)
        targets = Targets(webhook="http://127.0.0.1:9/")
        async with monitored(
            targets, SilentObserver(), StopSignal(), names, session=Aws, utcnow=lambda: next(clock)
        ) as monitor:
            monitor.started(progress())
            monitor.notice(STARTED)
            monitor.summary = summary()

    anyio.run(main)
    with pytest.raises(StopIteration):
        next(clock)
