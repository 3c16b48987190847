"""The AWS CLI in a process that runs many commands: loading its modules takes longer than a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from servers import REGION

_COMMANDS: Final = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from awscli.clidriver import create_clidriver

for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = create_clidriver().main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@contextmanager
def aws_cli(env: Mapping[str, str]) -> Iterator[Callable[..., str]]:
    """Yield a function that runs `aws rekognition WORDS…` and returns its stdout; raises AssertionError if it fails."""
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMANDS],
        env={**env, "AWS_DEFAULT_REGION": REGION},  # the AWS CLI ignores AWS_REGION
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*words: object) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(["rekognition", *map(str, words)]) + "\n")
        process.stdin.flush()
        code, out, err = json.loads(process.stdout.readline() or '[-1, "", "the process has ended"]')
        assert code == 0, err
        return str(out)

    with process:
        yield run
