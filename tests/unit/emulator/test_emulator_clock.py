"""The emulator's clock set ahead: what takes hours is over, while clients keep the machine's time."""

from __future__ import annotations

import email.utils
import http.client
import json
import time
from typing import Any

import pytest

from batchcl.emulator.digits import DigitsDataset
from unit.emulator.harness import Server, running_server, train

HOUR_S = 3600.0


def clock(server: Server, ahead_seconds: Any = None) -> tuple[int, Any]:
    """Status and body of the clock route; sets the clock ahead if `ahead_seconds` is given."""
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
    body = None if ahead_seconds is None else json.dumps({"ahead_seconds": ahead_seconds})
    connection.request("GET" if body is None else "PUT", "/_emulator/clock", body=body)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_a_clock_set_ahead_ends_and_bills_what_takes_hours(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=0, start_seconds=HOUR_S) as server:
        client = server.client()
        trained = train(client, bucket=small_digits.bucket)
        arn = trained["ProjectVersionArn"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=2)

        def version() -> dict[str, Any]:
            found: dict[str, Any] = client.describe_project_versions(ProjectArn=trained["ProjectArn"])
            return found

        assert version()["ProjectVersionDescriptions"][0]["Status"] == "STARTING"
        assert clock(server, 2 * HOUR_S)[0] == 200
        described = version()
        assert described["ProjectVersionDescriptions"][0]["Status"] == "RUNNING"
        date = email.utils.parsedate_to_datetime(described["ResponseMetadata"]["HTTPHeaders"]["date"])
        assert date.timestamp() == pytest.approx(time.time() + 2 * HOUR_S, abs=30)
        connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
        connection.request("GET", "/_emulator/usage")
        assert json.loads(connection.getresponse().read())["inference_unit_hours"] == pytest.approx(2, abs=0.1)
        connection.close()


def test_the_clock_cannot_be_set_back(empty: Server) -> None:
    assert clock(empty)[1]["ahead_seconds"] == 0
    assert clock(empty, 60)[1]["ahead_seconds"] == 60
    status, answer = clock(empty, 30)
    assert status == 400
    assert "can't be set back" in answer["error"]
    for wrong in (-1, "soon", 1e12):
        assert clock(empty, wrong)[0] == 400, wrong
    assert clock(empty)[1]["ahead_seconds"] == 60
