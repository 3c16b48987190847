from __future__ import annotations

import pytest

from batchcl.errors import UsageError
from batchcl.job import Job, load_job
from batchcl.monitoring import OPTIONS, Targets, environment
from batchcl.monitoring.targets import redact, site
from batchcl.options import option_fields

SECRET = "https://me:hunter2@hooks.example/services/T0/B0/secret?token=secret"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:nights"


def job(**options: object) -> Job:
    return Job(sources=["x/"], model="birds@v1", out="out", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ping", "hc-ping.com/secret", "expected a URL such as https://host/path"),
        ("webhook", "ftp://h/secret", "expected a URL"),
        ("webhook", "https:///secret", "expected a URL"),
        ("webhook", "https://h:secret/", "expected a URL"),
        ("webhook", "https://h/secret x", "expected a URL"),
        ("ping", "https://[secret", "expected a URL"),
        ("sns_topic", "nights", "'nights' is not the ARN of a standard SNS topic"),
        ("sns_topic", f"{TOPIC}.fifo", "is not the ARN of a standard SNS topic"),
        ("metrics_file", "nightly.txt", "'nightly.txt' does not end with NAME.prom"),
        ("metrics_file", ".prom", "does not end with NAME.prom"),
        ("metrics_file", "missing/nightly.prom", "there is no directory missing; create it"),
    ],
)
def test_an_invalid_option_is_one_sentence_without_secrets(name, value, problem):
    with pytest.raises(UsageError, match=f"^Job.{name} ") as from_python:
        job(**{name: value})
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} ") as from_flags:
        load_job(None, {"sources": ["x/"], "model": "m", "out": "out", name: value})
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')}: ") as from_retry:
        Targets.read({name: value})
    for error in (from_python, from_flags, from_retry):
        assert problem in str(error.value)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_secret_option_is_not_in_a_repr():
    targets = {"ping": SECRET, "webhook": SECRET}
    for text in (repr(job(**targets)), str(job(**targets)), repr(Targets.of(job(**targets)))):
        assert "secret" not in text
        assert "hunter2" not in text
    assert "webhook='...'" in repr(job(**targets))
    assert "webhook=None" in repr(job())


def test_monitoring_is_off_by_default_and_on_with_any_option(tmp_path):
    assert not Targets.of(job())
    values = {
        "metrics_file": str(tmp_path / "x.prom"),
        "otel": True,
        "ping": SECRET,
        "webhook": SECRET,
        "sns_topic": TOPIC,
    }
    assert set(values) == set(OPTIONS)
    for name, value in values.items():
        assert Targets.of(job(**{name: value}))
    assert {each.name for each in option_fields().values() if each.option.panel == "Monitoring"} == set(OPTIONS)


@pytest.mark.parametrize("text", ["yes", "on", "TRUE", "1", "no", "off", "0", "false"])
def test_a_retry_reads_the_flag_of_a_variable_as_a_run_does(monkeypatch, text):
    monkeypatch.setenv("BATCHCL_OTEL", text)
    of_run = load_job(None, {"sources": ["x/"], "model": "m", "out": "out"}).otel
    assert Targets.read(environment()).otel is of_run


def test_an_invalid_variable_is_named_unless_a_flag_replaces_it(monkeypatch):
    monkeypatch.setenv("BATCHCL_PING", "secret")
    monkeypatch.setenv("BATCHCL_WEBHOOK", SECRET)
    with pytest.raises(UsageError, match=r"^BATCHCL_PING: expected a URL such as https://host/path$"):
        environment()
    assert environment(without={"ping"}) == {"webhook": SECRET}


def test_only_scheme_host_and_port_of_a_url_are_shown():
    assert site("https://me:hunter2@hooks.example:8443/services/secret?x=1#y") == "https://hooks.example:8443"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "reading https://b.s3.amazonaws.com/a.jpg?X-Amz-Signature=abc&x=1 failed",
            "reading https://b.s3.amazonaws.com/a.jpg failed",
        ),
        ("s3://b/a.jpg?X-Amz-Security-Token=abc: denied", "s3://b/a.jpg denied"),
        ("('https://u:p@h/x#frag', 3)", "('https://h/x', 3)"),
        (
            "b,a.jpg?X-Amz-Credential=AKID/2026&X-Amz-Signature=abc;",
            "b,a.jpg?X-Amz-Credential=...&X-Amz-Signature=...;",
        ),
        ("AWSAccessKeyId=AKID&Signature=a%2Bb&Expires=1", "AWSAccessKeyId=...&Signature=...&Expires=1"),
        ("my_api_key=abc client-secret=def password=x", "my_api_key=... client-secret=... password=..."),
        ("run 2026-11-28T01:00:00+00:00 is done: 5 = 3 + 2", "run 2026-11-28T01:00:00+00:00 is done: 5 = 3 + 2"),
        ("user@host.example wrote to s3://b/c@d", "user@host.example wrote to s3://b/c@d"),
    ],
)
def test_texts_lose_credentials_and_queries(text, shown):
    assert redact(text) == shown
