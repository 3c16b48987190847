from __future__ import annotations

import anyio
from prometheus_client.parser import text_string_to_metric_families

from batchcl.monitoring import Event, Targets, send_event
from receivers import receiving

EVENT = Event(
    kind="models-without-lease",
    text="birds@v1 runs without a lease, see https://user:hunter2@h/p?X-Amz-Signature=abc",
    exit_code=4,
    fields={"models": [{"model": "birds@v1", "url": "s3://b/k?X-Amz-Signature=abc"}]},
    gauges={"batchcl_models_without_lease": 1.0},
)


def test_an_event_reaches_every_back_end(tmp_path):
    path = tmp_path / "reap.prom"
    with receiving() as receiver:
        targets = Targets(metrics_file=str(path), ping=f"{receiver.url}/check", webhook=f"{receiver.url}/hook")
        assert anyio.run(lambda: send_event(targets, EVENT, max_s=60.0)) == []
    bodies = {request.path.partition("?")[0]: request for request in receiver.requests}
    assert set(bodies) == {"/check/4", "/hook"}
    assert bodies["/check/4"].body.decode() == "birds@v1 runs without a lease, see https://h/p"
    sent = bodies["/hook"].json
    assert (sent["event"], sent["severity"]) == ("models-without-lease", "warning")
    assert sent["models"] == [{"model": "birds@v1", "url": "s3://b/k"}]
    found = {each.name: each.samples[0] for each in text_string_to_metric_families(path.read_text())}
    assert found["batchcl_models_without_lease"].labels == {"task": "reap"}
    assert found["batchcl_models_without_lease"].value == 1
    assert "batchcl_last_success_timestamp_seconds" not in found


def test_an_event_without_trouble_is_a_success_and_no_document(tmp_path):
    path = tmp_path / "reap.prom"
    with receiving() as receiver:
        targets = Targets(metrics_file=str(path), ping=f"{receiver.url}/check?create=1", webhook=f"{receiver.url}/hook")
        event = Event(kind="models-without-lease", text="none", severity="info")
        assert anyio.run(lambda: send_event(targets, event, max_s=60.0)) == []
    assert [path.partition("&rid=")[0] for path in receiver.paths] == ["/check?create=1"]
    assert "batchcl_last_success_timestamp_seconds" in path.read_text()


def test_a_failing_back_end_is_one_sentence_without_its_secret(tmp_path):
    with receiving() as receiver:
        receiver.statuses = [404]
        targets = Targets(metrics_file=str(tmp_path / "gone" / "reap.prom"), webhook=f"{receiver.url}/secret?key=1")
        failures = anyio.run(lambda: send_event(targets, EVENT, max_s=60.0))
    assert sorted(failures) == [
        f"the metrics file {tmp_path}/gone/reap.prom failed: No such file or directory",
        f"the webhook {receiver.url} failed: HTTP status 404",
    ]
