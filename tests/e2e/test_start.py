"""Commands start without modules that they don't need. `benchmarks/startup.py` measures what that saves."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping

import pytest

from batchcl.cli.commands import COMMANDS
from servers import aws_env, client, make_bucket

AWS = {"aioboto3", "aiobotocore", "aiohttp", "boto3", "botocore"}
TABLES = {"numpy", "obstore", "polars", "pyarrow"}
LATER = (
    "airflow",
    "analysis",
    "aws.datasets",
    "aws.projects",
    "cli.detect",
    "cli.model",
    "cli.output",
    "diagnosis",
    "emulator",
    "extras",
    "imaging",
    "lifetime.reaper",
    "lifetime.scheduled_stop",
    "loaders.fitting",
    "loaders.s3_objects",
    "monitoring.http",
    "monitoring.otel",
    "monitoring.sns",
    "monitoring.textfile",
    "report",
    "runs.admission",
    "runs.incremental",
    "runs.published",
    "runs.recovery",
    "runs.status",
    "scoring.preprocessing",
    "scoring.retry",
    "spellings",
    "workflow",
)
"""Modules that a run without the options that need them has not loaded at its first call."""

EXTRAS = {"PIL", "altair", "jinja2", "numpy", "scipy", "sklearn", "threadpoolctl", "vl_convert"}

MODULES = """
import json, sys
sys.argv = ["batchcl", *json.loads(sys.argv[1])]
{before}
from batchcl.cli.app import _run
code = _run(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]), file=sys.__stderr__)
"""
AT_THE_FIRST_CALL = """
import batchcl.aws.detect

async def first_call(*_):
    print(json.dumps([0, sorted(sys.modules)]), file=sys.__stderr__, flush=True)
    import os
    os._exit(0)

batchcl.aws.detect.LimitsDetector.detect = first_call
"""


def modules_of(env: Mapping[str, str], *words: str, before: str = "") -> set[str]:
    """The modules that `batchcl WORDS` loads."""
    script = MODULES.replace("{before}", before)
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)], env=dict(env), capture_output=True, text=True, check=False
    )
    code, names = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_the_list_of_commands_loads_none_of_them(clean_env, words):
    loaded = modules_of(clean_env, *words)
    assert packages(loaded).isdisjoint(AWS | TABLES | EXTRAS | {"anyio", "orjson", "pydantic", "rich"})
    ours = {name for name in loaded if name.startswith("batchcl.cli.")}
    assert ours == {"batchcl.cli.app", "batchcl.cli.commands", "batchcl.cli.streams"}


def test_the_help_of_a_command_loads_no_other_command(clean_env):
    loaded = modules_of(clean_env, "run", "--help")
    assert packages(loaded).isdisjoint(AWS | TABLES | EXTRAS | {"rich"})
    modules = {f"batchcl.cli.{each.target.partition(':')[0]}" for each in COMMANDS.values()}
    assert loaded & modules == {"batchcl.cli.run"}


def test_completion_of_a_name_loads_only_that_command(clean_env):
    completing = {"_BATCHCL_COMPLETE": "complete_bash", "COMP_WORDS": "batchcl ru", "COMP_CWORD": "1"}
    script = (
        "import sys; from batchcl.cli.app import _run; _run([]); "
        "print(sorted(n for n in sys.modules if n.startswith('batchcl.cli.')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_env | completing, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["run", "runs"]
    assert "batchcl.cli.model'" not in done.stderr


def test_a_run_loads_only_what_its_first_call_needs(demo, service, clean_env, tmp_path):
    words = ("run", str(demo.data.images), "--model", demo.arn, "--out", str(tmp_path / "out"), "--limit", "1")
    loaded = modules_of(clean_env | aws_env(service), *words, before=AT_THE_FIRST_CALL)
    unneeded = EXTRAS | {"duckdb", "moto", "polars", "pygments", "yaml"}
    assert packages(loaded).isdisjoint(unneeded - {"numpy"})  # which pyarrow imports if it is installed
    assert not loaded & {"pyarrow.acero", "pyarrow.compute", "pyarrow.dataset", "pyarrow.orc"}
    ours = {name for name in loaded if name.startswith("batchcl.")}
    assert not {name for name in ours if name.startswith(tuple(f"batchcl.{each}" for each in LATER))}
    sources = {name.removeprefix("batchcl.sources.") for name in ours if name.startswith("batchcl.sources.")}
    assert sources == {"base", "deduplication", "directory", "filters", "open", "select"}


def test_a_run_of_a_prefix_loads_no_list_formats(demo, service, seaweed, clean_env, tmp_path):
    s3, bucket = client("s3", seaweed), f"b-{uuid.uuid4().hex[:12]}"
    make_bucket(s3, bucket)
    s3.put_object(Bucket=bucket, Key="in/1.jpg", Body=(demo.data.images / "00001.jpg").read_bytes())
    words = ("run", f"s3://{bucket}/in/", "--model", demo.arn, "--out", str(tmp_path / "out"))
    loaded = modules_of(clean_env | aws_env(service, seaweed), *words, before=AT_THE_FIRST_CALL)
    assert packages(loaded).isdisjoint({"polars"})
    sources = {name.removeprefix("batchcl.sources.") for name in loaded if name.startswith("batchcl.sources.")}
    assert sources == {"base", "deduplication", "filters", "open", "s3_prefix", "select"}
